"""Graphs of single layers in int8, all made from one trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from quantasr import load_model, sample
from quantasr.engines import EngineOptions, load_engine
from quantasr.engines.engine import frame_feed
from quantasr.export import export_float, export_quantized, save_graph
from quantasr.export.alone import alone
from quantasr.export.graph import trace_quantized
from quantasr.measure.agreement import Agreement, agreement
from quantasr.numerics.quantizers import Phase
from quantasr.quantize import Prepared, calibrate, convert, prepare
from quantasr.recipes import Recipe, Rule
from quantasr.sources import CtcModel
from quantasr.speech.manifest import read_manifest
from quantasr.speech.transcript import Waveform

Run = Callable[[onnx.ModelProto], list[np.ndarray]]
LAYER = "wav2vec2.encoder.layers.0.attention"


@pytest.fixture(scope="module")
def waves() -> list[Waveform]:
    return [utterance.load(8000) for utterance in read_manifest(sample.calibration())[:3]]


@pytest.fixture(scope="module")
def float_graph() -> onnx.ModelProto:
    return export_float(load_model(sample.model()))


@pytest.fixture(scope="module")
def prepared(waves: list[Waveform]) -> Prepared:
    """Every layer and attention product of the sample in int8."""
    found = prepare(load_model(sample.model()), Recipe("all", (Rule("*"),), attention_products=True))
    calibrate(found, waves)
    convert(found)
    return found


@pytest.fixture(scope="module")
def traced(prepared: Prepared) -> onnx.ModelProto:
    return trace_quantized(prepared)


@pytest.fixture
def outputs(prepared: Prepared, waves: list[Waveform], tmp_path: Path) -> Run:
    """What a graph gives for each wave."""

    def run(graph: onnx.ModelProto) -> list[np.ndarray]:
        path = tmp_path / "graph.onnx"
        save_graph(graph, path)
        engine = load_engine("onnxruntime", path, EngineOptions(threads=1, compute="fp32"))
        features = [prepared.model.frontend(wave)[None] for wave in waves]
        return [engine.run(frame_feed(x))["logprobs"][0] for x in features]

    return run


def compared(prepared: Prepared, paths: list[str], waves: list[Waveform], found: list[np.ndarray]) -> Agreement:
    """A graph's output against the simulation of the layers at ``paths``."""
    assert isinstance(prepared.model, CtcModel)
    with prepared.active(Phase.SIMULATE, paths):
        return agreement(prepared.model.logprobs(waves), found)


def test_all_layers_make_the_quantized_graph(prepared: Prepared, traced: onnx.ModelProto, outputs: Run) -> None:
    expected = outputs(export_quantized(prepared))
    assert agreement(expected, outputs(alone(traced, prepared, prepared.paths()))).largest_difference < 1e-5


def test_no_layer_makes_the_float_graph(
    prepared: Prepared, traced: onnx.ModelProto, outputs: Run, float_graph: onnx.ModelProto
) -> None:
    graph = alone(traced, prepared, ())
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in graph.graph.node}
    # Log-probs reach -40, where float32 has steps of 4e-6.
    assert agreement(outputs(float_graph), outputs(graph)).largest_difference < 4e-5


@pytest.mark.parametrize(
    "paths",
    [
        [f"{LAYER}.q_proj"],  # k and v read the same tensor, and q's quantizer with it in the whole graph
        [f"{LAYER}.MatMul", f"{LAYER}.MatMul_1"],
        ["lm_head"],
        ["wav2vec2.feature_extractor.conv_layers.0.conv"],
    ],
)
def test_some_layers_make_what_their_simulation_gives(
    paths: list[str], prepared: Prepared, traced: onnx.ModelProto, outputs: Run, waves: list[Waveform]
) -> None:
    graph = alone(traced, prepared, paths)
    weights = [name for name in (t.name for t in graph.graph.initializer) if "integers" in name]
    assert len(weights) == sum("MatMul" not in path for path in paths)
    found = outputs(graph)
    same = compared(prepared, paths, waves, found)
    other = compared(prepared, [], waves, found)
    assert same.mean_difference < 0.2 * other.mean_difference
    assert same.same_argmax > 0.99


def test_the_trace_is_left_as_it_is(prepared: Prepared, traced: onnx.ModelProto) -> None:
    before = traced.SerializeToString(deterministic=True)
    alone(traced, prepared, ["lm_head"])
    assert traced.SerializeToString(deterministic=True) == before
