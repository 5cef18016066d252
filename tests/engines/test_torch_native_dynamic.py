"""Dynamic layers of PyTorch's own int8, against the float layers and against integers worked out here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_nets import asr_model, recipe, waves
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from quantasr.engines.engine import frame_feed
from quantasr.engines.torch_native.backends import find_backend, usable_backends
from quantasr.engines.torch_native.convert import Calibrated, calibrate_native, choose
from quantasr.engines.torch_native.dynamic import PackedEmbedding, RecurrentModule
from quantasr.engines.torch_native.engine import NativeEngine
from quantasr.engines.torch_native.tensors import PackedWeight
from quantasr.quantize import prepare

BACKENDS = usable_backends()
DYNAMIC = {"match": "*", "mode": "dynamic"}


class First(nn.Module):
    """A recurrent layer's outputs without its state."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn
        self.states: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        out, state = self.rnn(x)
        self.states.append(state)
        return out


class Steps(nn.Module):
    """A cell, step by step over the frames."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state, out = None, []
        for frame in x.unbind(1):
            state = self.cell(frame, state)
            out.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(out, 1)


class Turned(nn.Module):
    """A convolution over the frames, or an image of ``height`` rows at each; what it gives is large."""

    def __init__(self, convolution: nn.Module, height: int = 0) -> None:
        super().__init__()
        self.convolution, self.height = convolution, height
        with torch.no_grad():
            convolution.weight.mul_(30)  # type: ignore[operator, union-attr]

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        out: Tensor = self.convolution(x.unflatten(1, (-1, self.height)) if self.height else x)
        return out.flatten(1, -2).transpose(1, 2)


def converted(body: nn.Module, *rules: dict[str, Any], backend: str = BACKENDS[0]) -> tuple[Calibrated, Any]:
    """``body`` with every layer that its rules make dynamic, converted in place."""
    prepared = prepare(asr_model(body), recipe(*(rules or (DYNAMIC,))))
    calibrated = calibrate_native(prepared, waves(), [find_backend(backend)], seconds=0.5)
    chosen = choose(calibrated, find_backend(backend), timing=False)
    calibrated.install(chosen.plan)
    return calibrated, chosen


def close(left: Tensor, right: Tensor, tolerance: float = 0.02) -> bool:
    return float((left - right).abs().mean()) < tolerance * float(right.abs().mean())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    "make",
    [
        lambda: First(nn.LSTM(16, 24, 2, batch_first=True, bidirectional=True)),
        lambda: First(nn.LSTM(16, 24, bias=False)),
        lambda: First(nn.GRU(16, 24, 2, batch_first=True)),
        lambda: First(nn.GRU(16, 24, bidirectional=True)),
        lambda: Steps(nn.LSTMCell(16, 24)),
        lambda: Steps(nn.GRUCell(16, 24, bias=False)),
        lambda: Steps(nn.RNNCell(16, 24)),
        lambda: Steps(nn.RNNCell(16, 24, nonlinearity="relu")),
        lambda: nn.Sequential(nn.Linear(16, 40), nn.Tanh(), nn.Linear(40, 24, bias=False)),
        lambda: Turned(nn.Conv1d(16, 24, 1)),
        lambda: Turned(nn.Conv1d(16, 24, 3, stride=2, padding=2, dilation=3, bias=False)),
        lambda: Turned(nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(1, 0), dilation=(1, 3)), height=4),
    ],
    ids=[
        *("lstm", "lstm-no-bias", "gru", "gru-both-ways", "lstm-cell", "gru-cell", "rnn-cell", "rnn-relu", "linear"),
        *("conv-pointwise", "conv1d", "conv2d"),
    ],
)
def test_dynamic_layers_give_what_the_float_layers_give(make: Any, bits: int, backend: str) -> None:
    torch.manual_seed(0)
    body = make().eval()
    x = torch.randn(3, 20, 16)
    with torch.no_grad():
        expected = body(x)
        calibrated, chosen = converted(body, {**DYNAMIC, "weight": {"bits": bits}}, backend=backend)
        found = body(x)
    assert not chosen.reasons and chosen.plan.dynamic
    assert not torch.equal(found, expected)  # something was quantized
    assert close(found, expected, 1e-3 if bits == 16 else 0.05)
    calibrated.uninstall()
    with torch.no_grad():
        assert torch.equal(body(x), expected)


def test_states_and_packed_sequences_pass_through() -> None:
    torch.manual_seed(1)
    body = First(nn.LSTM(16, 24, 2, bidirectional=True)).eval()
    x = torch.randn(9, 3, 16)
    packed = pack_padded_sequence(x, torch.tensor([5, 9, 7]), enforce_sorted=False)
    state = tuple(torch.randn(4, 3, 24) for _ in range(2))
    with torch.no_grad():
        expected, (h, c) = body.rnn(packed, state)
        single, _ = body.rnn(x[:, 0])
        converted(body)
        rnn = body.rnn
        found, (h2, c2) = rnn(packed, state)
        alone, _ = rnn(x[:, 0])
    assert isinstance(rnn, RecurrentModule) and isinstance(found, PackedSequence)
    assert torch.equal(found.batch_sizes, expected.batch_sizes)
    assert close(found.data, expected.data) and close(h2, h) and close(c2, c) and close(alone, single)
    assert (rnn.hidden_size, rnn.num_layers, rnn.bidirectional, rnn.batch_first) == (24, 2, True, False)
    assert rnn.weight_ih_l0.shape == (96, 16)


class Lookup(nn.Module):
    """Loudness of each frame, looked up."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table = table

    def forward(self, x: Tensor) -> Tensor:
        return self.table(self.indices(x))

    @staticmethod
    def indices(x: Tensor) -> Tensor:
        return (x.abs().mean(-1) * 50).long().clamp(0, 29)


@pytest.mark.parametrize("bits", [8, 4])
def test_an_embedding_has_the_recipe_s_integers(bits: int) -> None:
    torch.manual_seed(2)
    body = Lookup(nn.Embedding(30, 8)).eval()
    weight = body.table.weight.detach().clone()
    rule = {"match": "*", "mode": "weight_only", "weight": {"bits": bits}}
    x = torch.randn(2, 5, 16)
    converted(body, rule)
    limit = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(1, keepdim=True) / limit
    rows = torch.round(weight / scale) * scale
    assert torch.allclose(body(x), rows[body.indices(x)], atol=1e-6)


class Bags(nn.Module):
    """The frame's loudest and first band, added up or averaged."""

    def __init__(self, bag: nn.EmbeddingBag) -> None:
        super().__init__()
        self.bag = bag

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.stack([x.argmax(-1), (x[..., 0].abs() * 9).long().clamp(0, 15)], -1)
        return self.bag(pairs.reshape(-1, 2)).reshape(*x.shape[:2], -1)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_embedding_bags(mode: str) -> None:
    torch.manual_seed(3)
    body = Bags(nn.EmbeddingBag(16, 8, mode=mode)).eval()
    x = torch.randn(2, 5, 16)
    expected = body(x).detach()
    converted(body, {"match": "*", "mode": "weight_only"})
    assert isinstance(body.bag.weight, PackedWeight) and isinstance(body.bag.weight.kernel, PackedEmbedding)
    assert close(body(x), expected)


def test_what_stays_float_says_why() -> None:
    torch.manual_seed(4)

    class OwnForward(nn.LSTM):
        def forward(self, x: Tensor, hx: Any = None) -> Any:
            return super().forward(x, hx)

    for body, rule, said in (
        (First(OwnForward(16, 8)), DYNAMIC, "forward of its own"),
        (First(nn.LSTM(16, 8, proj_size=4)), DYNAMIC, "proj_size"),
        (Turned(nn.Conv1d(16, 8, 3, groups=2)), DYNAMIC, "conv1d in groups"),
        (Turned(nn.Conv1d(16, 8, 3, padding="same")), DYNAMIC, "padding by name"),
        (nn.Linear(16, 8), {"match": "*", "mode": "weight_only"}, "choose mode dynamic"),
        (nn.Sequential(nn.Linear(16, 8), First(nn.GRU(8, 8))), {"match": "*"}, "choose mode dynamic"),
    ):
        _, chosen = converted(body.eval(), rule)
        assert any(said in reason for reason in chosen.reasons.values()) and not chosen.plan.dynamic


@pytest.mark.parametrize("mode", ["dynamic", "float"])
@pytest.mark.parametrize(
    ("body", "width", "macs"),
    [
        # 7 frames of 16 values; an LSTM has four gates, a GRU three, each direction with 8 rows.
        (lambda: First(nn.LSTM(16, 8, bidirectional=True, batch_first=True)), 16, 7 * 2 * 4 * 8 * (16 + 8)),
        (lambda: First(nn.GRU(16, 8, num_layers=2, batch_first=True)), 8, 7 * 3 * 8 * ((16 + 8) + (8 + 8))),
        (lambda: Steps(nn.GRUCell(16, 8)), 8, 7 * 3 * 8 * (16 + 8)),
    ],
)
def test_a_recurrent_layer_counts_whole_wherever_it_runs(body: Any, width: int, macs: int, mode: str) -> None:
    module = nn.Sequential(body(), nn.Linear(width, 24)).eval()
    rules = [{"match": "*", "kind": "linear", "mode": "dynamic"}]
    if mode == "dynamic":
        rules.append(DYNAMIC)
    calibrated, _ = converted(module, *rules)
    model = asr_model(nn.Identity())
    model.module = model.graph = calibrated.module
    ops = NativeEngine(model, BACKENDS[0]).executed(frame_feed(np.zeros((1, 7 * 16), np.float32)))
    counted = {"int8": 0, "fp32": 0}
    for op in ops:
        counted[op.precision] += op.macs
    linear = 7 * width * 24
    assert counted == ({"int8": linear + macs, "fp32": 0} if mode == "dynamic" else {"int8": linear, "fp32": macs})
