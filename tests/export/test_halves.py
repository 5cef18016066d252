"""Half precision: nothing quantized, half the bytes, the values that were simulated, on both engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import quantasr
from quantasr import sample
from quantasr.engines import ENGINES, EngineOptions, load_engine
from quantasr.export.tidy import store_halves
from quantasr.measure.audit import audit
from quantasr.pipeline import quantize
from quantasr.speech.manifest import read_manifest

TYPES = {"fp16": (TensorProto.FLOAT16, 0.01), "bf16": (TensorProto.BFLOAT16, 0.1)}


@pytest.mark.parametrize("storage", TYPES)
def test_weights_take_half_the_space(storage: str, tmp_path: Path) -> None:
    kind, tolerance = TYPES[storage]
    model = quantasr.load_model(sample.model())
    wave = read_manifest(sample.evaluation())[0].load(model.sample_rate)
    original = model.transcriber().logprobs([wave])[0]
    artifact = quantize(model, tmp_path / "out", calibration=sample.calibration(), limit=2, recipe=storage)

    graph = onnx.load(artifact.graph).graph
    stored = sum(int(np.prod(t.dims)) for t in graph.initializer if t.data_type == kind)
    left = sum(int(np.prod(t.dims)) for t in graph.initializer if t.data_type == TensorProto.FLOAT)
    assert stored > 20 * left > 0
    assert not any(node.op_type == "QuantizeLinear" for node in graph.node)
    assert 0.49 < artifact.measured["ratio"] < 0.6
    for engine in ENGINES:
        recogniser = quantasr.load(artifact, engine=engine, compute="fp32", threads=1)
        # Something was rounded, and no more than these types round.
        assert 0 < np.abs(recogniser.logprobs([wave])[0] - original).mean() < tolerance
        assert artifact.parity[f"quantized_{engine}"]["largest_difference"] < 1e-3
        assert audit(artifact, recogniser.engines).int8_share == 0


@pytest.mark.parametrize("storage", TYPES)
def test_rows_of_a_table_are_looked_up_in_16_bits(storage: str, tmp_path: Path) -> None:
    """A Cast of the whole table, before the look-up, would be folded to float32 when the graph is loaded."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((128, 64), np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["rows"], "look_up"),
        helper.make_node("MatMul", ["rows", "table_transposed"], ["scores"], "scores"),
    ]
    tensors = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(table.T.copy(), "table_transposed")]
    inputs = [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["n"])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", None]) for name in ("rows", "scores")]
    model = helper.make_model(
        helper.make_graph(nodes, "table", inputs, outputs, tensors),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    store_halves(model, storage)
    onnx.checker.check_model(model)
    graph = model.graph
    assert [node.op_type for node in graph.node] == ["Cast", "Gather", "Cast", "MatMul"]
    assert graph.node[1].input[0] in {t.name for t in graph.initializer if t.data_type == TYPES[storage][0]}
    onnx.save(model, tmp_path / "graph.onnx")
    tokens = np.array([5, 0, 127])
    rounded = numpy_helper.to_array(graph.initializer[0]).astype(np.float32)[tokens]
    for engine in ENGINES:
        loaded = load_engine(engine, tmp_path / "graph.onnx", EngineOptions(compute="fp32", threads=1))
        found = loaded.run({"tokens": tokens})
        np.testing.assert_array_equal(found["rows"], rounded)
        np.testing.assert_allclose(found["scores"], table[tokens] @ table.T, atol=0.3)
