"""What lies in the exported file: integers and nothing else of a quantized weight, and each quantizer once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_hf
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from tiny_nets import asr_model, exported, quantized, recipe, run_graph, simulate, waves
from torch import Tensor, nn

import quantasr.export.graph as export_graph
from quantasr import load_model
from quantasr.atomic import create
from quantasr.engines import ENGINES
from quantasr.export import export_float, export_quantized, save_graph
from quantasr.quantize import Prepared
from quantasr.recipes import builtin_recipe

X = np.stack(waves(2, 30, seed=9))


class Projections(nn.Module):
    """Three layers fed by one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.q(x) * self.k(x) + self.v(x)


def _prepared(body: nn.Module, channels_first: bool = False, **rule: object) -> Prepared:
    torch.manual_seed(0)
    return quantized(asr_model(body, channels_first), recipe({"match": "*", **rule}))


def _kinds(graph: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in graph.graph.node)


@pytest.mark.parametrize(("mode", "kind"), [("static", "QuantizeLinear"), ("dynamic", "DynamicQuantizeLinear")])
def test_layers_fed_by_one_tensor_share_its_quantizer(mode: str, kind: str) -> None:
    kinds = _kinds(export_quantized(_prepared(Projections(), mode=mode)))
    assert kinds[kind] == 1
    assert kinds["DequantizeLinear"] == 4  # one input, three weights


def test_only_standard_operators_are_left() -> None:
    graph = export_quantized(_prepared(Projections()))
    assert {node.domain for node in graph.graph.node} == {""}
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", 21)]
    onnx.checker.check_model(graph, full_check=True)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group"])
def test_the_reference_evaluator_agrees(bits: int, granularity: str) -> None:
    """ONNX's own evaluator, which has no kernels that could make up for a wrong graph."""
    group = {"group_size": 8} if granularity == "per_group" else {}
    prepared = _prepared(Projections(), weight={"bits": bits, "granularity": granularity, **group})
    (found,) = ReferenceEvaluator(export_quantized(prepared)).run(None, {"features": X})
    np.testing.assert_allclose(found, simulate(prepared, X), atol=1e-5)


@pytest.mark.parametrize(
    ("bits", "symmetric", "kind", "bytes_each"),
    [
        (2, True, TensorProto.INT4, 0.5),
        (4, True, TensorProto.INT4, 0.5),
        (4, False, TensorProto.UINT4, 0.5),
        (5, True, TensorProto.INT8, 1),
        (8, True, TensorProto.INT8, 1),
        (8, False, TensorProto.UINT8, 1),
        (16, True, TensorProto.INT16, 2),
    ],
)
@pytest.mark.parametrize("layer", ["linear", "conv"])
def test_weights_are_integers_and_no_float_copy_is_left(
    layer: str, bits: int, symmetric: bool, kind: int, bytes_each: float, tmp_path: Path
) -> None:
    body = nn.Linear(16, 4096, bias=False) if layer == "linear" else nn.Conv1d(16, 1024, 4, bias=False)
    prepared = _prepared(body, layer == "conv", weight={"bits": bits, "symmetric": symmetric}, mode="weight_only")
    graph = export_quantized(prepared)
    count = 16 * 4096
    (weight,) = [t for t in graph.graph.initializer if int(np.prod(t.dims)) == count]
    assert weight.data_type == kind
    assert len(weight.raw_data) == count * bytes_each
    stored = numpy_helper.to_array(weight).astype(np.int32)
    integers = prepared.weights["body"].integers.numpy()
    np.testing.assert_array_equal(stored, integers.T if layer == "linear" else integers)
    path = tmp_path / "graph.onnx"
    save_graph(graph, path)
    channels = integers.shape[0]
    assert path.stat().st_size < count * bytes_each + 10 * channels + 3000
    assert "Transpose" not in _kinds(graph) or layer == "conv"  # the net's own, around a convolution


def test_4_bit_integers_at_odd_counts_are_packed_as_onnx_reads_them(tmp_path: Path) -> None:
    body = nn.Sequential(nn.Linear(16, 3), nn.Linear(3, 5))
    prepared = _prepared(body, weight={"bits": 4}, mode="weight_only")
    path = exported(prepared, tmp_path)
    expected = simulate(prepared, X)
    (found,) = ReferenceEvaluator(onnx.load(path)).run(None, {"features": X})
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for engine in ENGINES:
        np.testing.assert_allclose(run_graph(path, engine, X), expected, atol=0.03)


@pytest.mark.parametrize(("group", "rows", "extra"), [(8, 16, None), (16, 16, None), (40, 16, None), (6, 18, "Slice")])
def test_blocks_are_filled_up_only_where_they_must(group: int, rows: int, extra: str | None) -> None:
    weight = {"bits": 4, "granularity": "per_group", "group_size": group}
    graph = export_quantized(_prepared(nn.Linear(16, 24, bias=False), weight=weight, mode="weight_only"))
    (stored,) = [t for t in graph.graph.initializer if t.name.endswith("_integers")]
    assert list(stored.dims) == [rows, 24]
    assert ("Slice" in _kinds(graph)) == (extra == "Slice")


def test_a_layer_that_is_called_twice_is_stored_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.linear(x))

    prepared = _prepared(Twice())
    graph = export_quantized(prepared)
    assert sum(int(np.prod(t.dims)) == 256 for t in graph.graph.initializer) == 1
    assert len({node.name for node in graph.graph.node}) == len(graph.graph.node)
    assert len({t.name for t in graph.graph.initializer}) == len(graph.graph.initializer)


def test_float16_storage(tmp_path: Path) -> None:
    body = nn.Sequential(nn.Linear(16, 512), nn.Linear(512, 16))
    torch.manual_seed(0)
    model = asr_model(body)
    rule = {"match": "*.0", "weight": {"bits": 8, "granularity": "per_group", "group_size": 2}}
    prepared = quantized(model, recipe(rule, float_storage="fp16"))
    graph = export_quantized(prepared)
    kinds = {t.name: t.data_type for t in graph.graph.initializer}
    sizes = {t.name: int(np.prod(t.dims)) for t in graph.graph.initializer}
    halves = [name for name, kind in kinds.items() if kind == TensorProto.FLOAT16]
    assert len(halves) == 1 and sizes[halves[0]] == 512 * 16
    # 4096 scales: as many as a weight that is stored in float16, but scales stay exact.
    (scale,) = [name for name in kinds if name.endswith("_scale") and sizes[name] == 512 * 8]
    assert kinds[scale] == TensorProto.FLOAT
    path = tmp_path / "graph.onnx"
    save_graph(graph, path)
    for engine in ENGINES:
        np.testing.assert_allclose(run_graph(path, engine, X), simulate(prepared, X), atol=2e-5)


def test_a_weight_beyond_float16_stays_float32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = asr_model(nn.Sequential(nn.Linear(16, 512), nn.Linear(512, 16)))
    with torch.no_grad():
        model.module.get_submodule("body.1").weight[0, 0] = 1e6  # type: ignore[index]
    prepared = quantized(model, recipe({"match": "*.0"}, float_storage="fp16"))
    graph = export_quantized(prepared)
    assert TensorProto.FLOAT16 not in {t.data_type for t in graph.graph.initializer}
    path = tmp_path / "graph.onnx"
    save_graph(graph, path)
    np.testing.assert_allclose(run_graph(path, "onnxruntime", X), simulate(prepared, X), rtol=1e-4, atol=1e-3)


def test_large_weights_lie_beside_the_graph(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(export_graph, "_EXTERNAL_ABOVE", 1000)
    prepared = _prepared(nn.Linear(16, 512))
    graph = export_quantized(prepared)
    expected = simulate(prepared, X)
    create(tmp_path / "artifact", lambda folder: save_graph(graph, folder / "graph.onnx"))
    folder = tmp_path / "artifact"
    assert sorted(p.name for p in folder.iterdir()) == ["graph.onnx", "graph.onnx.data"]
    assert (folder / "graph.onnx.data").stat().st_size >= 16 * 512 > (folder / "graph.onnx").stat().st_size / 2
    # Wherever the folder is moved, and whatever the process's own folder is.
    folder.rename(tmp_path / "moved")
    for engine in ENGINES:
        np.testing.assert_allclose(run_graph(tmp_path / "moved" / "graph.onnx", engine, X), expected, atol=1e-5)


def test_names_say_where_a_weight_comes_from(tiny_hf_folder: Callable[[str], Path]) -> None:
    model = load_model(tiny_hf_folder("wav2vec2-large"))
    prepared = quantized(model, builtin_recipe(model.family), tiny_hf.speech(0.5))
    names = " ".join(t.name for t in export_quantized(prepared).graph.initializer)
    for path in prepared.weights:
        assert f"{path}.weight" in names


def test_export_leaves_the_model_as_it_was() -> None:
    prepared = _prepared(Projections())
    with torch.no_grad():
        before = prepared.model.graph(torch.from_numpy(X))
    first = export_quantized(prepared).SerializeToString(deterministic=True)
    with torch.no_grad():
        assert torch.equal(prepared.model.graph(torch.from_numpy(X)), before)
    assert export_quantized(prepared).SerializeToString(deterministic=True) == first
    assert "DequantizeLinear" not in _kinds(export_float(prepared.model))
