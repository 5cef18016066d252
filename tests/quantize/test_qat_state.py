"""Quantization-aware training of a small net: what is trained is what is converted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_nets import asr_model, recipe, waves
from torch import nn

from quantasr.errors import TrainingError
from quantasr.numerics.quantizers import Phase
from quantasr.quantize import calibrate, convert, prepare
from quantasr.quantize.training import QatOptions, QatState
from quantasr.recipes import Recipe


def linear_net(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return asr_model(nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8)))


class Branches(nn.Module):
    """Two layers that read one tensor, and one that reads another."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.out = nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.q(x) * self.k(x))


def normed_net() -> Any:
    torch.manual_seed(1)
    body = nn.Sequential(nn.Conv1d(16, 12, 3, padding=1), nn.BatchNorm1d(12), nn.ReLU(), nn.Conv1d(12, 8, 1))
    norm = body[1]
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.2, 3)
        norm.weight.uniform_(-2, 2)
        norm.bias.normal_()
    return asr_model(body, channels_first=True)


def in_training(model: Any, chosen: Recipe, options: QatOptions | None = None, **how: Any) -> tuple[Any, QatState]:
    prepared = prepare(model, chosen, **how)
    calibrate(prepared, waves())
    return prepared, QatState(prepared, options or QatOptions())


def batch() -> torch.Tensor:
    return torch.stack([torch.from_numpy(wave) for wave in waves(4, seed=9)])


def steps(model: Any, state: QatState, count: int = 5, rate: float = 0.02) -> None:
    """Fit some target; scales too."""
    learned = {id(p): p for p in (*model.module.parameters(), *state.parameters()) if p.requires_grad}
    optimizer = torch.optim.SGD(list(learned.values()), lr=rate)
    model.module.train()
    state.train()
    for _ in range(count):
        with state.rounding():
            loss = (model.graph(batch()) - 1).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        state.after_step()
    model.module.eval()
    state.eval()


@pytest.mark.parametrize("scales", ["learned", "observed"])
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group"])
def test_what_is_trained_is_what_is_converted(scales, bits, granularity):
    weight = {"bits": bits, "granularity": granularity} | ({"group_size": 5} if granularity == "per_group" else {})
    model = linear_net()
    prepared, state = in_training(model, recipe(defaults={"weight": weight}), QatOptions(scales=scales))
    before = model.module.body[0].parametrizations.weight.original.detach().clone()
    steps(model, state)
    assert not torch.equal(before, model.module.body[0].parametrizations.weight.original)
    with state.rounding(), torch.no_grad():
        trained = model.graph(batch())
    state.finish()
    convert(prepared)
    with prepared.active(Phase.SIMULATE), torch.no_grad():
        assert torch.equal(model.graph(batch()), trained)
    integers = prepared.weights["body.0"].integers
    assert int(integers.abs().max()) <= 2 ** (bits - 1) - 1


def test_training_makes_the_rounded_model_better():
    model = linear_net()
    prepared, state = in_training(model, recipe(defaults={"weight": {"bits": 2, "granularity": "per_channel"}}))
    with state.settled(), torch.no_grad():
        before = (model.graph(batch()) - 1).square().mean()
    steps(model, state, 60, rate=0.05)
    with state.settled(), torch.no_grad():
        after = (model.graph(batch()) - 1).square().mean()
    assert after < before / 2
    assert not prepared.weights["body.0"].trained.log_scale.grad is not None


def test_before_any_step_it_is_what_calibration_alone_gives():
    first, second = linear_net(), linear_net()
    chosen = recipe(defaults={"weight": {"bits": 4, "granularity": "per_channel"}})
    _, state = in_training(first, chosen)
    with state.settled(), torch.no_grad():
        found = first.graph(batch())
    prepared = prepare(second, chosen)
    calibrate(prepared, waves())
    convert(prepared)
    with prepared.active(Phase.SIMULATE), torch.no_grad():
        # Scales go through a logarithm: single integers may differ.
        torch.testing.assert_close(found, second.graph(batch()), rtol=0.02, atol=0.02)


def test_layers_that_read_one_tensor_share_one_scale():
    torch.manual_seed(0)
    prepared, state = in_training(asr_model(Branches()), recipe())
    assert prepared.inputs["body.q"].trained is prepared.inputs["body.k"].trained
    assert prepared.inputs["body.out"].trained is not prepared.inputs["body.q"].trained
    assert len(state.inputs) == 2


@pytest.mark.parametrize("scales", ["learned", "observed"])
def test_scales_stand_still_after_their_time(scales):
    model = linear_net()
    prepared, state = in_training(model, recipe(), QatOptions(scales=scales, freeze_scales_after=3))
    steps(model, state, 3)
    state.freeze_due(3)
    frozen = [float(prepared.inputs["body.0"].trained.scale), prepared.weights["body.0"].trained.scale.clone()]
    steps(model, state, 3)
    assert float(prepared.inputs["body.0"].trained.scale) == frozen[0]
    assert torch.equal(prepared.weights["body.0"].trained.scale, frozen[1])


def test_live_norms_in_training_are_batch_norms():
    """With weights that 16 bits round away to nothing, training is that of the plain network."""
    plain, model = normed_net(), normed_net()
    defaults = {"mode": "weight_only", "weight": {"bits": 16, "granularity": "per_channel"}}
    _, state = in_training(model, recipe(defaults=defaults), live_norms=True)
    for part in (plain, model):
        part.module.train()
    state.train()
    wanted = plain.graph(batch())
    with state.rounding():
        found = model.graph(batch())
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-3)
    live, norm = model.module.body[1].norm, plain.module.body[1]
    torch.testing.assert_close(live.running_mean, norm.running_mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(live.running_var, norm.running_var, rtol=1e-3, atol=1e-3)
    (wanted - 1).square().mean().backward()
    (found - 1).square().mean().backward()
    torch.testing.assert_close(live.weight.grad, norm.weight.grad, rtol=0.02, atol=5e-3)


def test_live_norms_are_folded_into_what_was_trained():
    model = normed_net()
    prepared, state = in_training(model, recipe(), live_norms=True)
    with torch.no_grad():
        float_now = model.graph(batch())
    torch.testing.assert_close(float_now, normed_net().graph(batch()), rtol=1e-4, atol=1e-4)
    steps(model, state, 4)
    state.freeze_norms()
    steps(model, state, 4)
    with state.settled(), torch.no_grad():
        trained = model.graph(batch())
    state.finish()
    assert prepared.folded == [("body.0", "body.1")]
    assert isinstance(model.module.body[1], nn.Identity)
    convert(prepared)
    with prepared.active(Phase.SIMULATE), torch.no_grad():
        torch.testing.assert_close(model.graph(batch()), trained, rtol=1e-4, atol=1e-4)


def test_frozen_norms_keep_their_statistics():
    model = normed_net()
    _, state = in_training(model, recipe(), live_norms=True)
    steps(model, state, 2)
    state.freeze_norms()
    before = model.module.body[1].norm.running_mean.clone()
    steps(model, state, 2)
    assert torch.equal(model.module.body[1].norm.running_mean, before)


def test_attention_products_are_trained_too():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(16, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.lin(x)
            return torch.matmul(torch.softmax(torch.matmul(y, y.mT), -1), y)

    torch.manual_seed(0)
    model = asr_model(Attention())
    prepared, state = in_training(model, recipe(attention_products=True))
    steps(model, state)
    with state.rounding(), torch.no_grad():
        trained = model.graph(batch())
    state.finish()
    convert(prepared)
    with prepared.active(Phase.SIMULATE), torch.no_grad():
        torch.testing.assert_close(model.graph(batch()), trained)
    assert len(prepared.products.quantizers) == 2
    assert all(q.trained is not None for pair in prepared.products.quantizers.values() for q in pair)


@pytest.mark.parametrize("options", [{"scales": "fixed"}, {"freeze_scales_after": -1}, {"freeze_scales_after": 1.5}])
def test_options_that_do_not_exist_are_refused(options):
    with pytest.raises(TrainingError, match=next(iter(options))):
        QatOptions(**options)
