"""PyTorch's own int8 in place of layers: against integers worked out here, and against the framework's own float."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_nets import asr_model, recipe, waves
from torch import Tensor, nn

from quantasr.engines.engine import frame_feed
from quantasr.engines.torch_native import convert as native
from quantasr.engines.torch_native.backends import BACKENDS, adapt, find_backend, usable_backends
from quantasr.engines.torch_native.dynamic import DynamicLayer, DynamicLinear
from quantasr.engines.torch_native.engine import NativeEngine
from quantasr.engines.torch_native.kernels import Geometry, Layer, Output, StaticKernel, Weights
from quantasr.engines.torch_native.tensors import QParams, QTensor, quantize
from quantasr.engines.torch_native.trace import Trace, traced
from quantasr.engines.torch_native.trial import try_layer
from quantasr.errors import EngineError
from quantasr.quantize import prepare

USABLE = usable_backends()


def converted(
    body: nn.Module, channels_first: bool = True, backend: str = "onednn", timing: bool = False
) -> tuple[native.Calibrated, native.Chosen]:
    """``body`` calibrated and converted in place, every layer of it that has a kernel."""
    torch.manual_seed(0)
    prepared = prepare(asr_model(body.eval(), channels_first), recipe())
    calibrated = native.calibrate_native(prepared, waves(), [find_backend(backend)], seconds=0.5)
    chosen = native.choose(calibrated, find_backend(backend), timing=timing)
    calibrated.install(chosen.plan)
    return calibrated, chosen


def run(calibrated: native.Calibrated, seed: int = 9) -> tuple[Tensor, Trace]:
    features = torch.from_numpy(waves(1, seed=seed)[0])[None]
    with torch.no_grad(), traced() as trace:
        return calibrated.module(features), trace


def compare(calibrated: native.Calibrated, chosen: native.Chosen, tolerance: float = 0.15) -> Trace:
    """The converted model gives what its simulation gives, and about what the float model gives."""
    found, trace = run(calibrated)
    calibrated.install(chosen.plan, simulated=True)
    simulated, _ = run(calibrated)
    calibrated.uninstall()
    real, untraced = run(calibrated)
    calibrated.install(chosen.plan)
    again, _ = run(calibrated)
    assert type(found) is Tensor and torch.equal(found, again)
    assert not untraced.events
    scale = float(real.abs().mean())
    # A value between two integers may be rounded either way, which is one step of the formats behind it.
    assert float((found - simulated).abs().mean()) < 0.02 * scale
    assert 0 < float((found - real).abs().mean()) < tolerance * scale
    return trace


class Chain(nn.Sequential):
    """Convolutions with batch norms and ReLUs, as QuartzNet has them."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [nn.Conv1d(16, 16, 5, padding=2, groups=16), nn.Conv1d(16, 16, 1), nn.BatchNorm1d(16)]
            layers += [nn.ReLU(inplace=True), nn.Dropout(0.1)]
        super().__init__(*layers, nn.Conv1d(16, 24, 1))


class Residual(nn.Module):
    """Two blocks with a shared ReLU behind the sum, and a mask of frames, as Jasper's blocks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(16, 16, 3, padding=1) for _ in range(4))
        self.sides = nn.ModuleList(nn.Conv1d(16, 16, 1) for _ in range(2))
        self.head = nn.Conv1d(16, 24, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.arange(x.shape[-1]) >= x.shape[-1] - 7
        for i, side in enumerate(self.sides):
            x = x.masked_fill(mask, 0.0)
            inner = self.relu(self.convs[2 * i](x)).masked_fill(mask, 0.0)
            x = self.relu(self.convs[2 * i + 1](inner) + side(x))
        return self.head(x * (~mask).float())


@pytest.mark.parametrize("backend", USABLE)
def test_a_chain_is_entered_and_left_once(backend: str) -> None:
    calibrated, chosen = converted(Chain(), backend=backend)
    trace = compare(calibrated, chosen, 0.3)
    assert not chosen.reasons and len(chosen.plan.layers) == 7
    assert (trace.count("entry"), trace.count("exit"), trace.count("kernel")) == (1, 1, 7)
    fused = [layer.output.relu for layer in chosen.plan.layers.values()]
    assert fused == [False, True, False, True, False, True, False]


@pytest.mark.parametrize("backend", USABLE)
def test_residual_sums_and_masks_stay_in_int8(backend: str) -> None:
    calibrated, chosen = converted(Residual(), backend=backend)
    trace = compare(calibrated, chosen, 0.3)
    assert len(chosen.plan.sums) == 2 and all(total.relu for total in chosen.plan.sums.values())
    assert (trace.count("entry"), trace.count("exit")) == (2, 1)  # the input goes to two layers


class FloatBetween(nn.Module):
    """Layers with code between them that knows nothing of int8: each is entered and left on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 24)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.one(x)).view(1, -1, 4, 8).flatten(2)
        z = self.two(y)
        z += 1.0
        z[:, :3] = 0.5
        return self.three(z.softmax(-1) + y)


@pytest.mark.parametrize("backend", USABLE)
def test_other_code_gets_floats(backend: str) -> None:
    calibrated, chosen = converted(FloatBetween(), channels_first=False, backend=backend)
    trace = compare(calibrated, chosen, 0.3)
    assert trace.count("entry") == trace.count("exit") == 3


class Causal(nn.Conv1d):
    """A framework's own convolution: it pads on the left alone."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv1d(F.pad(input, (self.kernel_size[0] - 1, 0)), self.weight, self.bias)


class Flat(nn.Conv1d):
    """A 1-d convolution that is computed in 2-d."""

    def forward(self, input: Tensor) -> Tensor:
        out = F.conv2d(input.unsqueeze(2), self.weight.unsqueeze(2), self.bias, padding=(0, 1))
        return out.squeeze(2)


def test_subclasses_keep_their_own_forward() -> None:
    body = nn.Sequential(nn.Conv1d(16, 16, 1), Causal(16, 16, 4), nn.ReLU(), Flat(16, 16, 3), nn.Conv1d(16, 24, 1))
    calibrated, chosen = converted(body)
    trace = compare(calibrated, chosen)
    assert len(chosen.plan.layers) == 4
    assert (trace.count("entry"), trace.count("exit")) == (1, 1)
    assert isinstance(body[1], Causal) and body[1].kernel_size == (4,)
    assert body[1].weight.shape == (16, 16, 4) and body[1].weight.dtype == torch.float32
    assert "1.weight" not in body.state_dict()


def test_an_operation_in_place_on_int8_that_calibration_did_not_see() -> None:
    x = torch.randn(1, 4, 6)
    value = QTensor(quantize(x, QParams(0.05, 128)))
    rounded = value.value.dequantize()
    with torch.no_grad():
        assert torch.equal(value.exp(), rounded.exp())
        value += 1.0
        value[:, 0] = 3.0
        expected = rounded + 1.0
        expected[:, 0] = 3.0
        assert torch.equal(value + 0, expected)
    assert value.shape == (1, 4, 6) and value.dtype == torch.float32


@pytest.mark.parametrize("backend", USABLE)
@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize(("groups", "kernel", "stride"), [(1, 1, 1), (1, 5, 2), (8, 7, 1)])
def test_a_convolution_s_integers_worked_out_by_hand(
    groups: int, kernel: int, stride: int, quantized: bool, backend: str
) -> None:
    rng = np.random.default_rng(4)
    # 7 bits, so that no kernel saturates, whatever the CPU.
    x = rng.integers(0, 128, (2, 8, 30))
    w = rng.integers(-127, 128, (8, 8 // groups, kernel))
    scale, bias = rng.uniform(0.001, 0.003, 8).astype(np.float32), rng.normal(0, 1, 8).astype(np.float32)
    entry, out = QParams(0.03, 60), QParams(0.05, 100)
    sums = np.zeros((2, 8, (30 - kernel) // stride + 1), np.int64)
    for channel in range(8):
        first = channel // (8 // groups) * (8 // groups)
        for i in range(sums.shape[2]):
            window = x[:, first : first + 8 // groups, i * stride : i * stride + kernel] - entry.zero_point
            sums[:, channel, i] = (window * w[channel]).sum((1, 2))
    real = sums * (entry.scale * scale[:, None].astype(np.float64)) + bias[:, None]
    integers = np.clip(np.round(real / out.scale) + out.zero_point, 0, 255)

    output = Output(quantized, out if quantized or not BACKENDS[backend].float_output else None)
    layer = Layer("layer", Geometry("conv1d", (stride,), (0,), (1,), groups), entry, output)
    weights = Weights(torch.from_numpy(w).to(torch.int8), torch.from_numpy(scale), torch.from_numpy(bias))
    given = torch._make_per_tensor_quantized_tensor(torch.from_numpy(x).to(torch.uint8), entry.scale, entry.zero_point)
    found = StaticKernel(layer, weights, backend).run(QTensor(given))
    if quantized:
        assert isinstance(found, QTensor)
        steps = np.abs(found.value.int_repr().numpy().astype(int) - integers)
        assert steps.max() <= 1 and (steps > 0).mean() < 0.05  # ties, in a float32 multiplier
    elif output.params is None:
        np.testing.assert_allclose(found.numpy(), real, atol=2e-4)
    else:
        np.testing.assert_allclose(found.numpy(), (integers - out.zero_point) * out.scale, atol=out.scale * 1.01)


def test_a_kernel_that_loses_stays_float_and_says_by_how_much() -> None:
    """FBGEMM has no fast kernel for depthwise convolutions in 1-d; it took ten times as long as float."""
    layer = Layer("dw", Geometry("conv1d", (1,), (16,), (1,), 256), QParams(0.02, 64), Output(True, QParams(0.02, 64)))
    weights = Weights(torch.randint(-127, 128, (256, 1, 33), dtype=torch.int8), torch.full((256,), 1e-3), None)
    trial = try_layer(layer, (1, 256, 300), weights, "fbgemm", enters=False)
    assert trial.reason(timing=True).endswith("in fp32") and "ms in int8" in trial.reason(timing=True)
    assert trial.reason(timing=False) == ""


def test_a_kernel_that_does_not_exist_stays_float_and_says_so() -> None:
    body = nn.Sequential(nn.Conv1d(16, 16, 3), nn.ReLU(), nn.ConvTranspose1d(16, 24, 3))
    _, chosen = converted(body, backend="fbgemm")
    assert list(chosen.plan.layers) == ["body.0"]
    assert "fbgemm has no kernel for it" in chosen.reasons["body.2"]


def test_every_multiply_accumulate_is_counted_where_it_ran() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.mix = nn.Conv1d(16, 32, 3), nn.Linear(32, 24)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x).transpose(1, 2)
            return self.mix((y @ y.transpose(1, 2)).softmax(-1) @ y).transpose(1, 2)

    calibrated, chosen = converted(Half())
    assert list(chosen.plan.layers) == ["body.conv", "body.mix"]
    model = asr_model(nn.Identity())
    model.module = model.graph = calibrated.module
    ops = NativeEngine(model, "onednn").executed(frame_feed(waves(1, frames=40)[0][None], np.array([640])))
    counted: dict[str, int] = {}
    for op in ops:
        counted[op.precision] = counted.get(op.precision, 0) + op.macs
    assert counted == {"int8": 38 * 32 * 16 * 3 + 38 * 32 * 24, "fp32": 2 * 38 * 38 * 32}
    assert {op.name for op in ops if op.precision == "fp32"} == {"body"}


def test_recipes_are_fitted_to_a_backend_and_the_changes_told() -> None:
    asked = recipe(
        {"match": "*", "weight": {"bits": 8, "symmetric": False, "granularity": "per_group", "group_size": 8}},
        reduce_range=False,
    )
    fitted, notes = adapt(asked, [BACKENDS["onednn"]])
    qconfig = fitted.qconfig("layer", "linear")
    assert (qconfig.input.bits, qconfig.weight.bits) == (8, 7)
    assert (qconfig.weight.symmetric, qconfig.weight.granularity) == (True, "per_channel")
    assert any("7 bits instead of 8" in note for note in notes) and any("symmetric" in note for note in notes)
    assert adapt(asked, [BACKENDS["qnnpack"]])[0].qconfig("layer", "linear").weight.bits == 8
    assert adapt(recipe(), [BACKENDS["qnnpack"]])[1] == []


def test_weights_of_8_bits_that_a_backend_would_multiply_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    """As folders of older versions have them, on a CPU without VNNI: the same result, in float or with 7-bit inputs."""
    torch.manual_seed(0)
    x = torch.randn(5, 16)
    layer = Layer("layer", Geometry("linear"), QParams(0.02, 128), Output(False))
    wide = Weights(torch.randint(-127, 128, (24, 16), dtype=torch.int8), torch.full((24,), 0.01), None)
    narrow = replace(wide, integers=wide.integers // 2)
    for exact in (True, False):
        monkeypatch.setattr("quantasr.engines.torch_native.kernels.is_exact", lambda _, exact=exact: exact)
        for weights, in_float in ((wide, not exact), (narrow, False)):
            kernel = StaticKernel(layer, weights, "onednn")
            assert kernel.simulated is in_float
            expected = StaticKernel(layer, weights, "onednn", simulated=True).run(x)
            with traced() as trace:
                found = kernel.run(x)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
            assert trace.events[1].precision == ("fp32" if in_float else "int8")
            dynamic = DynamicLinear(DynamicLayer("layer", "linear", 8), weights, "onednn")
            assert dynamic._reduce_range is in_float
            error = (dynamic.product(x) - x @ weights.real().T).abs().mean() / (x @ weights.real().T).abs().mean()
            assert 0 < float(error) < (0.05 if in_float else 0.02)


def test_an_unknown_backend() -> None:
    with pytest.raises(EngineError, match=r"'neon' is unknown: choose one of onednn, x86"):
        find_backend("neon")


def test_layers_of_the_table_are_those_of_the_option() -> None:
    from quantasr.engines import TORCH_BACKENDS

    assert tuple(BACKENDS) == TORCH_BACKENDS


def test_a_layer_called_otherwise_than_in_calibration_runs_in_float() -> None:
    body: Any = nn.Sequential(nn.Conv1d(16, 24, 3))
    calibrated, _ = converted(body)
    layer = body[0]
    x = torch.randn(1, 16, 20)
    with torch.no_grad(), traced() as trace:
        found = F.conv1d(x, layer.weight, layer.bias, stride=2)
    assert trace.events == []
    calibrated.uninstall()
    expected = F.conv1d(x, layer.weight, layer.bias, stride=2)
    assert float((found - expected).abs().max()) < 0.02
