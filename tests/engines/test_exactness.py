"""No product of integers may saturate, on whatever CPU the tests run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from probe_graph import probe_graph
from tiny_nets import asr_model, exported, quantized, recipe, simulate, waves
from torch import Tensor, nn

from quantasr.cpu import this_cpu
from quantasr.engines import ENGINES, EngineOptions, exactness, load_engine, onnxruntime, openvino
from quantasr.engines.cache import cache_file
from quantasr.engines.engine import frame_feed
from quantasr.engines.exactness import KINDS, PROBE, inexact
from quantasr.engines.float_products import integers_of
from quantasr.errors import EngineError

SATURATING = frozenset(KINDS)


class Attention(nn.Module):
    """Both products of attention, of projections that are large."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 64) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(1, 2)
        return torch.softmax(scores / 100, -1) @ self.v(x)


LAYERS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "linear": (lambda: nn.Linear(16, 24), False),
    "conv": (lambda: nn.Conv1d(16, 24, 3, padding=1), True),
    "pointwise": (lambda: nn.Conv1d(16, 24, 1), True),
    "strided": (lambda: nn.Conv1d(16, 24, 4, stride=2), True),
    "grouped": (lambda: nn.Conv1d(16, 32, 3, groups=4), True),
    "depthwise": (lambda: nn.Conv1d(16, 16, 5, groups=16), True),
    "transposed": (lambda: nn.ConvTranspose1d(16, 24, 4, stride=2), True),
    "convolutions in a row": (lambda: nn.Sequential(nn.Conv1d(16, 24, 3), nn.ReLU(), nn.Conv1d(24, 32, 3)), True),
    "attention": (Attention, False),
}


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing is remembered, in the process or on the disk."""
    monkeypatch.setenv("QUANTASR_CACHE", str(tmp_path / "cache"))
    inexact.cache_clear()
    yield
    inexact.cache_clear()


def _loud(module: nn.Module) -> nn.Module:
    """Weights that are all nearly as large as the largest: every pair of products is as large as it can be."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        noise = torch.rand(parameter.shape, generator=generator)
        with torch.no_grad():
            parameter.copy_(0.5 - 0.02 * noise)
    return module


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("reduce_range", [True, False])
@pytest.mark.parametrize("mode", ["static", "dynamic"])
@pytest.mark.parametrize("layer", LAYERS)
def test_the_largest_products_are_right(layer: str, mode: str, reduce_range: bool, engine: str, tmp_path: Path) -> None:
    make, channels_first = LAYERS[layer]
    attention = layer == "attention"
    rules = recipe({"match": "*", "mode": mode}, reduce_range=reduce_range, attention_products=attention)
    x = np.abs(np.stack(waves(2, 40, seed=5)))
    x = (4 - 0.1 * x / x.max()).astype(np.float32)  # all large and positive
    prepared = quantized(asr_model(_loud(make()), channels_first), rules, list(x))
    path = exported(prepared, tmp_path)
    expected = simulate(prepared, x)
    try:
        loaded = load_engine(engine, path, EngineOptions(threads=1, compute="fp32"))
    except EngineError as error:
        # Attention products of 8 bits have no exact kernel in ONNX Runtime on some CPUs: refused, never wrong.
        assert attention and not reduce_range and engine == "onnxruntime" and "computes wrongly" in str(error)
        return
    found = loaded.run(frame_feed(x))["logprobs"]
    difference = np.abs(found - expected) / np.abs(expected).mean()
    # A value on the edge between two integers may fall to either side: one step of one of many. In attention it moves
    # a whole row of probabilities.
    most = float(np.quantile(difference, 0.99))
    assert most < (2e-3 if attention else 1e-4), f"{engine}: off by {most:.2g} of the mean magnitude"
    assert difference.max() < 0.03


def test_the_probe_is_what_its_script_makes() -> None:
    assert PROBE.read_bytes() == probe_graph().SerializeToString(deterministic=True)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.usefixtures("forgetful")
def test_what_the_engines_get_wrong_is_what_their_instructions_say(engine: str) -> None:
    found = inexact(engine)
    if this_cpu().saturates and "avx2" in this_cpu().features:
        assert {"linear", "convolution"} <= found
        assert not inexact(engine, exact_products=True) & {"linear", "dynamic", "convolution", "pointwise", "depthwise"}
    elif not this_cpu().saturates:
        assert not found


@pytest.mark.usefixtures("forgetful")
def test_it_is_found_out_once_for_each_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def probe(engine: str, exact_products: bool) -> frozenset[str]:
        asked.append(engine)
        return frozenset({"linear"})

    monkeypatch.setattr(exactness, "_probe", probe)
    assert inexact("openvino") == inexact("openvino") == {"linear"}
    inexact.cache_clear()  # as in another process
    assert inexact("openvino") == {"linear"} and asked == ["openvino"]
    rows = json.loads(cache_file().read_text("utf-8"))
    assert len(rows) == 1 and this_cpu().key in next(iter(rows))
    for broken in ({"inexact": 5}, {"inexact": ["everything"]}, 7):
        cache_file().write_text(json.dumps(dict.fromkeys(rows, broken)))
        inexact.cache_clear()
        assert inexact("openvino") == {"linear"}
    assert asked == ["openvino"] * 4
    # A row of another CPU says nothing here.
    cache_file().write_text(json.dumps({f"{key} of another": {"inexact": []} for key in rows}))
    inexact.cache_clear()
    assert inexact("openvino") == {"linear"} and len(asked) == 5


@pytest.mark.parametrize("reduce_range", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_openvino_multiplies_floats_where_integers_would_saturate(
    layer: str, reduce_range: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a CPU where nothing is exact: what has 7 bits stays int8, all else runs in float, with the same result."""
    monkeypatch.setattr(openvino, "inexact", lambda *_: SATURATING)
    monkeypatch.setattr(openvino, "needs_care", lambda *_: True)
    make, channels_first = LAYERS[layer]
    torch.manual_seed(0)
    x = np.stack(waves(2, 40, seed=5))
    rules = recipe(reduce_range=reduce_range, attention_products=layer == "attention")
    prepared = quantized(asr_model(make(), channels_first), rules)
    path = exported(prepared, tmp_path)
    engine = load_engine("openvino", path, EngineOptions(threads=1, compute="fp32"))
    found, expected = engine.run(frame_feed(x))["logprobs"], simulate(prepared, x)
    beyond = np.abs(found - expected) > 1e-5 * np.abs(expected).max()
    assert beyond.mean() < 0.05 and np.abs(found - expected).max() < 0.1
    types = {op.precision for op in engine.executed(frame_feed(x)) if op.macs}
    # Of transposed convolutions OpenVINO has no int8 kernel that is faster.
    assert types == ({"int8"} if reduce_range and layer != "transposed" else {"fp32"})


def test_products_of_activations_that_no_kernel_computes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "needs_care", lambda *_: True)
    monkeypatch.setattr(onnxruntime, "inexact", lambda *_, **__: frozenset({"scores", "context"}))
    for reduce_range in (True, False):
        rules = recipe(reduce_range=reduce_range, attention_products=True)
        path = exported(quantized(asr_model(Attention()), rules), tmp_path)
        if reduce_range:
            load_engine("onnxruntime", path, EngineOptions(threads=1))
        else:
            with pytest.raises(EngineError, match=r"MatMul.* computes wrongly on this CPU: use engine openvino, or qu"):
                load_engine("onnxruntime", path, EngineOptions(threads=1))


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
@pytest.mark.parametrize("reduce_range", [True, False])
def test_an_artifact_says_what_its_integers_need(reduce_range: bool, mode: str, tmp_path: Path) -> None:
    rules = recipe({"match": "*", "mode": mode}, reduce_range=reduce_range)
    found = integers_of([exported(quantized(asr_model(Attention()), rules), tmp_path)])
    assert found["portable"] is (reduce_range or mode == "weight_only")
    assert found["portable"] or sorted(found["wide"]) == ["/body/k/MatMul", "/body/q/MatMul", "/body/v/MatMul"]


@pytest.mark.parametrize("layer", [name for name in LAYERS if name != "attention"])
def test_no_kind_of_layer_is_overlooked(layer: str, tmp_path: Path) -> None:
    make, channels_first = LAYERS[layer]
    for mode in ("static", "dynamic"):
        for reduce_range in (True, False):
            rules = recipe({"match": "*", "mode": mode}, reduce_range=reduce_range)
            prepared = quantized(asr_model(make(), channels_first), rules)
            assert integers_of([exported(prepared, tmp_path)])["portable"] is reduce_range, mode
