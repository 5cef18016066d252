"""Half precision: nothing quantized, half the bytes, the values that were simulated, on both engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import quantasr
from quantasr import sample
from quantasr.engines import ENGINES
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
