"""What is trained as one module: norms that are frozen in time, scales in its state, phases in and out of training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_nets import asr_model, recipe, waves
from torch import nn

from quantasr.numerics.quantizers import Phase
from quantasr.quantize import calibrate, prepare
from quantasr.quantize.training import QatOptions, QatState
from quantasr.training.trainee import Trainee


class Tiny(nn.Module):
    """A net whose one norm can be folded and whose other one cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.folds = nn.Conv1d(16, 8, 1), nn.BatchNorm1d(8)
        self.stays, self.out = nn.BatchNorm1d(8), nn.Conv1d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.stays(torch.relu(self.folds(self.conv(x)))))


def tiny() -> Any:
    torch.manual_seed(0)
    model: Any = asr_model(Tiny(), channels_first=True)
    # The tiny graph knows no lengths; what is asked of a model in training is no more than this.
    model.train_outputs = lambda features, lengths: (model.graph(features), lengths // 16, None)
    return model


def quantized(**how: Any) -> tuple[Any, Any]:
    model = tiny()
    prepared = prepare(model, recipe(), live_norms=how.get("freeze_norms_after", 0) != 0)
    calibrate(prepared, waves())
    return Trainee(model, QatState(prepared, QatOptions(scales="learned")), **how), prepared


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    features = torch.stack([torch.from_numpy(wave) for wave in waves(4)])
    return features, torch.full((4,), features.shape[1])


def step(trainee: Trainee) -> None:
    trainee.train()
    trainee(*batch()).logprobs.square().mean().backward()
    trainee.after_step()


@pytest.mark.parametrize("limit", [0, 2])
def test_norms_are_frozen_in_time_in_float(limit):
    trainee = Trainee(tiny(), freeze_norms_after=limit)
    body = trainee.module.body
    seen = []
    for _ in range(3):
        step(trainee)
        seen.append(body.stays.running_mean.clone())
    moved = [not torch.equal(a, b) for a, b in zip([torch.zeros(8), *seen], seen, strict=False)]
    assert moved == [limit > 0, limit > 1, False]
    assert not body.stays.training or limit is None


def test_norms_that_fold_are_live_until_then():
    trainee, prepared = quantized(freeze_norms_after=2)
    live = trainee.module.body.folds
    step(trainee)
    assert not live.frozen
    step(trainee)
    assert live.frozen
    before = live.norm.running_mean.clone()
    step(trainee)
    assert torch.equal(before, live.norm.running_mean)
    trainee.qat.finish()
    assert ("body.conv", "body.folds") in prepared.folded


def test_its_state_holds_all_scales_and_what_is_frozen():
    trainee, _ = quantized(freeze_norms_after=1)
    names = set(trainee.state_dict())
    assert {"steps", "qat.inputs.0.log_scale", "qat.inputs.1.log_scale"} <= names
    assert any(name.endswith("conv.parametrizations.weight.1.trained.log_scale") for name in names)
    step(trainee)
    other, _ = quantized(freeze_norms_after=1)
    assert not other.module.body.folds.frozen
    other.load_state_dict(trainee.state_dict())
    assert other.module.body.folds.frozen
    with torch.no_grad():
        trainee.train(), other.train()
        torch.testing.assert_close(other(*batch()).logprobs, trainee(*batch()).logprobs)


def test_it_rounds_in_training_alone():
    trainee, prepared = quantized()
    with torch.no_grad():
        trainee.eval()
        plain = trainee(*batch()).logprobs
        trainee.train()
        rounded = trainee(*batch()).logprobs
        trainee.eval()
        with trainee.qat.settled():
            simulated = trainee(*batch()).logprobs
    assert not torch.equal(plain, rounded)
    assert torch.equal(rounded, simulated)
    assert {quantizer.phase for quantizer in prepared.quantizers()} == {Phase.FLOAT}
    assert all(shared._last is None for shared in trainee.qat.inputs), "activations are let go"


def test_validation_leaves_nothing_in_the_state():
    """Only the main process validates, and all processes must have the same state."""
    trainee, prepared = quantized()
    before = {name: tensor.clone() for name, tensor in trainee.state_dict().items()}
    with trainee.qat.settled():
        assert all(weight.frozen for weight in prepared.weights.values())
    after = trainee.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
