"""Every format on both engines against the simulation: single layers, where nothing can hide."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from tiny_nets import asr_model, exported, quantized, recipe, run_graph, simulate, waves
from torch import Tensor, nn

from quantasr.engines import ENGINES
from quantasr.errors import EngineError
from quantasr.numerics.qtypes import GRANULARITIES

X = np.stack(waves(2, 30, seed=9))


class Flat(nn.Module):
    """A linear layer on a matrix, which is exported as Gemm and not as MatMul."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.reshape(-1, 16)).reshape(x.shape[0], -1, 24)


class Shared(nn.Module):
    """A layer that is called twice, on different inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.linear(x.abs())


class Height(nn.Module):
    """A 1-d convolution's weight used in two dimensions, as feature encoders are exported."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(16, 24, 3)
        self.conv._conv_forward = self._flat  # type: ignore[method-assign, assignment]

    def _flat(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return nn.functional.conv2d(x, weight.unsqueeze(2), bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x[:, :, None]).squeeze(2)


LAYERS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "linear": (lambda: nn.Linear(16, 24), False),
    "gemm": (Flat, False),
    "shared": (Shared, False),
    "conv": (lambda: nn.Conv1d(16, 24, 3, stride=2, padding=1), True),
    "conv2d": (Height, True),
    "grouped": (lambda: nn.Conv1d(16, 32, 3, groups=4), True),
    "depthwise": (lambda: nn.Conv1d(16, 16, 5, groups=16), True),
    "transposed": (lambda: nn.ConvTranspose1d(16, 24, 4, stride=2), True),
    "transposed grouped": (lambda: nn.ConvTranspose1d(16, 24, 4, stride=2, groups=2), True),
}


def _check(layer: str, folder: Path, tolerance: float = 1e-5, **rule: Any) -> None:
    make, channels_first = LAYERS[layer]
    torch.manual_seed(0)
    chosen = recipe({"match": "*", **rule}, reduce_range=False)  # 7 bits are a format of their own here
    prepared = quantized(asr_model(make(), channels_first), chosen)
    path = exported(prepared, folder)
    expected = simulate(prepared, X)
    assert expected.std() > 0.1
    for engine in ENGINES:
        if engine == "onnxruntime" and rule.get("mode") == "weight_only":
            # Its kernel for such weights rounds the other side too, unless it is asked not to.
            found = _onnxruntime_exactly(path)
        else:
            try:
                found = run_graph(path, engine, X)
            except EngineError as error:
                # On a CPU without VNNI, ONNX Runtime cannot make 8-bit weights exact that two products share.
                assert layer == "shared" and "cannot make its 8-bit weights exact on this CPU" in str(error)
                continue
        assert found.shape == expected.shape
        # A value on a rounding border may land on the other side: rare, and one step wide.
        beyond = np.abs(found - expected) > tolerance
        assert beyond.mean() < 2e-3, (
            f"{engine}: {beyond.mean():.2%} beyond, at most {np.abs(found - expected).max():.2g}"
        )
        assert np.abs(found - expected).max() < 0.05


def _onnxruntime_exactly(path: Path) -> np.ndarray:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    (found,) = ort.InferenceSession(str(path), settings).run(None, {"features": X})
    return np.asarray(found)


_BITS = (2, 3, 4, 5, 6, 7, 8, 9, 12, 16)
_MODES = ("static", "dynamic", "weight_only")
_WEIGHTS = [
    *product(["static"], ["per_channel"], _BITS, [True, False]),
    *(
        (m, g, b, s)
        for m, g, b, s in product(_MODES, GRANULARITIES, (4, 8, 16), (True, False))
        if (m, g) != ("static", "per_channel")
    ),
]


@pytest.mark.parametrize(("mode", "granularity", "bits", "symmetric"), _WEIGHTS)
def test_every_weight_format(mode: str, granularity: str, bits: int, symmetric: bool, tmp_path: Path) -> None:
    group = {"group_size": 8} if granularity == "per_group" else {}
    weight = {"bits": bits, "symmetric": symmetric, "granularity": granularity, **group}
    _check("linear", tmp_path, mode=mode, weight=weight)


@pytest.mark.parametrize("group", [5, 16, 40])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("layer", ["linear", "gemm"])
def test_groups_that_do_not_divide_the_inputs_or_hold_them_all(
    layer: str, mode: str, bits: int, group: int, tmp_path: Path
) -> None:
    weight = {"bits": bits, "granularity": "per_group", "group_size": group}
    _check(layer, tmp_path, mode=mode, weight=weight)


@pytest.mark.parametrize(("bits", "layer"), [*product(_BITS, ["linear"]), (8, "conv"), (16, "conv")])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
@pytest.mark.parametrize("observer", ["min_max", "percentile(95)"])
def test_every_input_format(layer: str, observer: str, symmetric: bool, bits: int, tmp_path: Path) -> None:
    """Also values beyond the range that was calibrated, which must be clipped where the simulation clips them."""
    # OpenVINO does not round to 16 bits: half a step of 1 / 65535 of the range, for each input of an output.
    tolerance = 3e-4 if bits == 16 else 1e-5
    _check(layer, tmp_path, tolerance, input={"bits": bits, "symmetric": symmetric, "observer": observer})


@pytest.mark.parametrize(("bits", "granularity"), [(4, "per_channel"), (8, "per_channel"), (8, "per_tensor")])
@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("layer", [name for name in LAYERS if name != "linear"])
def test_every_layer(layer: str, mode: str, bits: int, granularity: str, tmp_path: Path) -> None:
    _check(layer, tmp_path, mode=mode, weight={"bits": bits, "granularity": granularity})


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_onnxruntime_multiplies_integers(mode: str, symmetric: bool, tmp_path: Path) -> None:
    """Read from the graph as it was optimised: the quantizers were fused into kernels for integers."""
    torch.manual_seed(0)
    rule = {"match": "*", "mode": mode, "weight": {"symmetric": symmetric}}
    path = exported(quantized(asr_model(nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16))), recipe(rule)), tmp_path)
    settings = ort.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    settings.log_severity_level = 3
    ort.InferenceSession(str(path), settings)
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert sum(kind in ("MatMulIntegerToFloat", "DynamicQuantizeMatMul") for kind in kinds) == 2
    assert not {"MatMul", "Gemm", "DequantizeLinear"} & set(kinds)


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group"])
@pytest.mark.parametrize("bits", [3, 8])
def test_an_embedding(granularity: str, bits: int, tmp_path: Path) -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 16)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table((x[:, :, 0].abs() * 3).long().clamp(max=9))

    group = {"group_size": 5} if granularity == "per_group" else {}
    weight = {"bits": bits, "granularity": granularity, **group}
    prepared = quantized(asr_model(Lookup()), recipe({"match": "*", "kind": "embedding", "weight": weight}))
    path = exported(prepared, tmp_path)
    for engine in ENGINES:
        np.testing.assert_allclose(run_graph(path, engine, X), simulate(prepared, X), atol=1e-6)


class Attention(nn.Module):
    """Self-attention with all that a recipe can quantize."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.reshape(*y.shape[:2], 4, 4).transpose(1, 2)

        scores = torch.matmul(split(self.q(x)), split(self.k(x)).transpose(2, 3)) / 2
        context = torch.matmul(torch.softmax(scores, -1), split(self.v(x)))
        return self.out(context.transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("products", [True, False])
@pytest.mark.parametrize("storage", ["fp32", "fp16"])
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_attention(mode: str, storage: str, products: bool, engine: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    chosen = recipe({"match": "*", "mode": mode}, attention_products=products, float_storage=storage)
    prepared = quantized(asr_model(Attention()), chosen)
    expected, found = simulate(prepared, X), run_graph(exported(prepared, tmp_path), engine, X)
    # One rounding border crossed early on moves many outputs a little.
    assert np.abs(found - expected).mean() < 2e-4
    assert np.abs(found - expected).max() < 0.1 * expected.std()


class Deep(nn.Module):
    """Ten layers, to be trained a moment to say which feature of a frame is the largest, so that margins are real."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [16, *[48] * 9, 16]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            new = torch.nn.functional.gelu(layer(x))
            x = new + x if new.shape == x.shape else new
        return torch.log_softmax(self.layers[-1](x), -1)


def test_a_deep_net_with_decent_margins_chooses_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    body = Deep()
    optimizer = torch.optim.Adam(body.parameters(), 3e-3)
    for _ in range(150):
        frames = torch.randn(128, 16)
        loss = torch.nn.functional.nll_loss(body(frames), frames.argmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    speech = [torch.randn(200 * 16).numpy() for _ in range(4)]
    prepared = quantized(asr_model(body), recipe(), speech[:3])
    x = speech[3][None]
    expected = simulate(prepared, x).argmax(-1)
    with torch.no_grad():
        assert (prepared.model.graph(torch.from_numpy(x)).numpy().argmax(-1) == expected).mean() > 0.95
    path = exported(prepared, tmp_path)
    for engine in ENGINES:
        assert (run_graph(path, engine, x).argmax(-1) == expected).mean() >= 0.99
