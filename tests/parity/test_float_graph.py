"""The float graph of every family of every source, on both engines, at lengths that it was not traced at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import tiny_hf
import tiny_nemo
import tiny_speechbrain
from numpy.typing import NDArray

from quantasr import load_model
from quantasr.engines import ENGINES, EngineOptions, load_engine
from quantasr.export import export_float, save_graph
from quantasr.runtime import EngineAcousticModel
from quantasr.sources import CtcModel
from quantasr.speech.ctc import CtcTranscriber

SPEECH = tiny_hf.speech(2.3, 0.8, 0.31, 0.31)
SLOW = {"NonZero", "ScatterND", "ScatterElements", "Loop", "If", "Einsum", "CumSum"}


class Exported(NamedTuple):
    model: CtcModel
    graph: onnx.ModelProto
    path: Path
    waves: list[NDArray[np.float32]]
    original: list[NDArray[np.float32]]


SPEECHBRAIN = [name for name in tiny_speechbrain.VARIANTS if name not in tiny_speechbrain.NOT_EXPORTED]


@pytest.fixture(
    scope="module", params=[*tiny_hf.VARIANTS, *tiny_nemo.VARIANTS, *tiny_nemo.NOT_RUN_BY_NEMO, *SPEECHBRAIN]
)
def exported(
    request: pytest.FixtureRequest, tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    model = load_model(tiny_model(request.param), trust=request.param in SPEECHBRAIN)
    # At the length of the trace itself, so that anything that is cached by length would be frozen into the graph.
    model.transcriber().logprobs(tiny_hf.speech(1.5))
    waves = [*SPEECH, SPEECH[0][: model.min_samples]]
    original = model.transcriber(chunk_seconds=0, batch_size=1).logprobs(waves)  # before anything is rewritten
    graph = export_float(model)
    path = tmp_path_factory.mktemp(request.param) / "graph.onnx"
    save_graph(graph, path)
    return Exported(model, graph, path, waves, original)


def _on(engine: str, exported: Exported, batch_size: int) -> CtcTranscriber:
    model = exported.model
    acoustic = EngineAcousticModel(
        load_engine(engine, exported.path, EngineOptions(threads=1, compute="fp32")), model.padded_batches
    )
    return model.transcriber(acoustic, batch_size=batch_size, chunk_seconds=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_any_length_and_any_batch_give_what_the_original_gives(exported: Exported, engine: str) -> None:
    for batch_size in (1, 4):
        logprobs = _on(engine, exported, batch_size).logprobs(exported.waves)
        for expected, found in zip(exported.original, logprobs, strict=True):
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_graph_has_no_slow_leftovers(exported: Exported) -> None:
    kinds = {node.op_type for node in exported.graph.graph.node}
    assert not kinds & SLOW
    assert {node.domain for node in exported.graph.graph.node} == {""}
    outputs = {output.name for output in exported.graph.graph.output}
    assert not any(n.op_type == "Identity" for n in exported.graph.graph.node if n.output[0] not in outputs)


def test_time_and_batch_are_free(exported: Exported) -> None:
    graph = exported.graph.graph
    for value in [*graph.input, *graph.output]:
        assert all(d.dim_param for d in value.type.tensor_type.shape.dim[:2])
    assert [value.name for value in graph.input] == ["features", "lengths"][: len(graph.input)]
    assert [value.name for value in graph.output] == ["logprobs", "frame_counts"][: len(graph.output)]
    assert len(graph.input) == (2 if exported.model.padded_batches else 1)


def test_the_graph_holds_the_weights_once(exported: Exported) -> None:
    parameters = sum(p.numel() for p in exported.model.module.parameters())
    stored = sum(int(np.prod(t.dims)) for t in exported.graph.graph.initializer)
    stored += sum(int(np.prod(n.attribute[0].t.dims)) for n in exported.graph.graph.node if n.op_type == "Constant")
    assert stored <= parameters * 1.03 + 1000, "tables computed while tracing do not belong into the file"


@pytest.mark.parametrize("name", ["sb-wav2vec2", "sb-crdnn"])
def test_nodes_carry_the_paths_of_speechbrains_layers(name: str, tiny_model: Callable[[str], Path]) -> None:
    """An audit joins kernels with layers by them."""
    graph = export_float(load_model(tiny_model(name), trust=True)).graph
    products = [node.name for node in graph.node if node.op_type in ("Conv", "MatMul", "Gemm", "LSTM")]
    assert products and all(name.startswith("/encoder/") for name in products), products
