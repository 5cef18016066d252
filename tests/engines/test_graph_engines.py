"""The engines run the same graph: same text, whatever the batch, the threads and the padding."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hand_graphs import node, save, weight

import quantasr
from quantasr import cpu, sample
from quantasr.artifact import Artifact
from quantasr.engines import ENGINES, EngineOptions, load_engine, openvino
from quantasr.engines.engine import frame_feed
from quantasr.errors import EngineError
from quantasr.speech.manifest import read_manifest
from quantasr.speech.transcript import Waveform

THREADS = Path("/proc/self/task")


@pytest.fixture(scope="module")
def waves() -> list[Waveform]:
    """Ten strings of digits, all of different lengths."""
    found = [u.load(8000) for u in read_manifest(sample.evaluation())[:10]]
    assert len({len(wave) for wave in found}) == len(found)
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_outputs_keep_their_names_where_another_node_does_the_same(engine: str, tmp_path: Path) -> None:
    nodes = [
        node("Sigmoid", "features", "/sigmoid"),
        node("Transpose", "/sigmoid", "/first", perm=[0, 2, 1]),
        node("Relu", "/first", "/relu"),
        node("MatMul", "/relu matrix", "/product"),
        node("Transpose", "/sigmoid", "logprobs", perm=[0, 2, 1]),  # OpenVINO makes one of both, with both names
    ]
    path = save(tmp_path / "graph.onnx", nodes, ["batch", 3, 4], {"matrix": weight(3, 2)})
    model = onnx.load(str(path))
    model.graph.output.append(onnx.helper.make_tensor_value_info("/product", onnx.TensorProto.FLOAT, ["batch", 4, 2]))
    onnx.save(model, str(path))
    found = load_engine(engine, path, EngineOptions(1)).run({"features": weight(1, 3, 4)})
    assert list(found) == ["logprobs", "/product"] and found["logprobs"].shape == (1, 4, 3)


@pytest.fixture
def artifact(sample_artifact: Callable[[str], Path]) -> Artifact:
    return Artifact.load(sample_artifact("fast"))


def texts(artifact: Artifact, waves: list[Waveform], **options: object) -> list[str]:
    recogniser = quantasr.load(artifact, threads=1, **options)  # type: ignore[arg-type]
    return [transcript.text for transcript in recogniser.transcribe(waves)]


def test_engines_agree_with_the_speakers(artifact: Artifact, waves: list[Waveform]) -> None:
    references = [u.text for u in read_manifest(sample.evaluation())[:10]]
    systems = [("onnxruntime", "fp32"), ("openvino", "fp32")]
    systems += [("openvino", compute) for compute in openvino.compute_types()[1:]]
    for engine, compute in systems:
        found = texts(artifact, waves, engine=engine, compute=compute)
        assert sum(a == b for a, b in zip(found, references, strict=True)) >= 9, (engine, compute)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_batch_of_different_lengths_says_what_each_says_alone(
    engine: str, artifact: Artifact, waves: list[Waveform]
) -> None:
    alone = texts(artifact, waves, engine=engine, compute="fp32")
    assert texts(artifact, waves, engine=engine, compute="fp32", batch_size=4) == alone
    assert texts(artifact, waves[::-1], engine=engine, compute="fp32", batch_size=10) == alone[::-1]


def test_rounding_lengths_up_changes_nothing_that_is_said(artifact: Artifact, waves: list[Waveform]) -> None:
    exact = load_engine("openvino", artifact.graph, EngineOptions(1, "fp32"))
    rounded = load_engine("openvino", artifact.graph, EngineOptions(1, "fp32", artifact.round_up))
    for wave in waves:
        features = artifact.frontend(wave)[None]
        lengths = np.array([len(wave)])
        left, right = exact.run(frame_feed(features, lengths)), rounded.run(frame_feed(features, lengths))
        short, long = left["logprobs"], right["logprobs"]
        count = int(left["frame_counts"][0])
        assert right["frame_counts"].tolist() == [count]
        assert long.shape[1] >= short.shape[1] == count
        assert (short.argmax(-1) == long[:, :count].argmax(-1)).mean() >= 0.99
        assert np.abs(short - long[:, :count]).mean() < 0.05


def test_a_usual_shape_changes_nothing_that_is_said(artifact: Artifact, waves: list[Waveform]) -> None:
    features = [artifact.frontend(wave)[None] for wave in waves[:3]]
    usual = {"features": (-1, features[0].shape[1])}
    free = load_engine("openvino", artifact.graph, EngineOptions(1, "fp32"))
    fixed = load_engine("openvino", artifact.graph, EngineOptions(1, "fp32", shapes=usual))
    for row in features:
        left, right = (engine.run(frame_feed(row))["logprobs"] for engine in (free, fixed))
        assert left.shape == right.shape
        assert (left.argmax(-1) == right.argmax(-1)).mean() >= 0.99
        assert np.abs(left - right).mean() < 0.05


def test_filling_up_is_to_the_next_multiple_and_in_time_alone() -> None:
    assert openvino._filled_up(np.ones((2, 7), np.float32), 4).tolist() == [[1] * 7 + [0]] * 2
    assert openvino._filled_up(np.ones((2, 8), np.float32), 4).shape == (2, 8)
    assert openvino._filled_up(np.ones((2, 7, 3), np.float32), 25).shape == (2, 25, 3)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_run_gave_stays_as_it_was(engine: str, artifact: Artifact, waves: list[Waveform]) -> None:
    loaded = load_engine(engine, artifact.graph, EngineOptions(1, "fp32"))
    first = loaded.run(frame_feed(artifact.frontend(waves[0])[None]))["logprobs"]
    copy = first.copy()
    loaded.run(frame_feed(artifact.frontend(waves[0] * 0.1)[None] * 0.5))
    assert (first == copy).all()


@pytest.mark.skipif(not THREADS.is_dir(), reason="needs Linux's /proc")
def test_onnxruntime_starts_as_many_threads_as_it_is_told(artifact: Artifact) -> None:
    def started(threads: int) -> int:
        before = len(list(THREADS.iterdir()))
        engine = load_engine("onnxruntime", artifact.graph, EngineOptions(threads, "fp32"))
        found = len(list(THREADS.iterdir())) - before
        del engine
        return found

    assert [started(threads) for threads in (1, 2, 4)] == [0, 1, 3]  # the caller works too


def test_openvino_runs_as_many_threads_as_it_is_told(artifact: Artifact) -> None:
    for threads in (1, 2):
        engine = load_engine("openvino", artifact.graph, EngineOptions(threads, "fp32"))
        compiled = engine._any.get_compiled_model()  # type: ignore[attr-defined]
        assert compiled.get_property("INFERENCE_NUM_THREADS") == threads


def test_options_are_checked() -> None:
    assert EngineOptions(0).thread_count == cpu.threads() >= 1
    assert EngineOptions(3).thread_count == 3
    for options, complaint in (
        ({"threads": -1}, "threads = -1"),
        ({"compute": "int3"}, "choose one of auto, fp32, bf16"),
        ({"round_up": 0}, "round_up = 0"),
    ):
        with pytest.raises(EngineError, match=complaint):
            EngineOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("compute", ["bf16", "fp16"])
def test_half_precision_is_refused_where_it_cannot_be(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, compute: str
) -> None:
    with pytest.raises(EngineError, match=f"'{compute}': ONNX Runtime's CPU kernels have none; use engine openvino"):
        load_engine("onnxruntime", artifact.graph, EngineOptions(1, compute))
    monkeypatch.setattr(openvino, "compute_types", lambda: ("fp32",))
    with pytest.raises(EngineError, match=f"this CPU has no {compute} instructions; use fp32 or auto"):
        load_engine("openvino", artifact.graph, EngineOptions(1, compute))
    assert load_engine("openvino", artifact.graph, EngineOptions(1, "auto")).compute == "fp32"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_graph_that_cannot_be_loaded_is_one_line(engine: str, tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"\x08\x07 not a graph at all")
    for graph in (tmp_path / "junk.onnx", tmp_path / "missing.onnx"):
        with pytest.raises(EngineError, match=f"{graph.name}: .* cannot load it: ") as caught:
            load_engine(engine, graph, EngineOptions(1))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("engine", ENGINES)
def test_features_that_do_not_fit_are_one_line(engine: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    graph = save(tmp_path / "g.onnx", [node("MatMul", "features w", "logprobs")], ["b", "t", 4], {"w": weight(4, 9)})
    loaded = load_engine(engine, graph, EngineOptions(1, "fp32"))
    assert loaded.run({"features": np.zeros((1, 3, 4), np.float32)})["logprobs"].shape == (1, 3, 9)
    with pytest.raises(EngineError, match=r"g\.onnx: .* cannot run it on features \[1, 3, 5\]: ") as caught:
        loaded.run({"features": np.zeros((1, 3, 5), np.float32)})
    assert "\n" not in str(caught.value)
    with pytest.raises(EngineError, match=r"g\.onnx: .* cannot run it on no features: "):
        loaded.run({})
    assert capfd.readouterr().err == ""


def test_an_unknown_engine_is_refused_with_the_choices(artifact: Artifact) -> None:
    with pytest.raises(EngineError, match="engine 'tensorrt' is unknown: choose one of auto, onnxruntime, openvino"):
        load_engine("tensorrt", artifact.graph, EngineOptions())


def test_engines_are_told_not_to_report_home() -> None:
    """Before they are imported, for both would otherwise send their news from then on."""
    code = (
        "import os, sys, quantasr.engines; assert not {'onnxruntime', 'openvino'} & set(sys.modules);"
        "import onnxruntime, openvino;"
        "assert os.environ['ORT_DISABLE_TELEMETRY'] == '1' and sys.modules['openvino_telemetry'] is None;"
        "assert 'telemetry_stub' in str([m for m in sys.modules if 'telemetry' in m])"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(cpu.threads() < 2, reason="one core has no other to spin on")
def test_nobody_spins_when_a_run_is_over(artifact: Artifact) -> None:
    """ONNX Runtime's threads would go on for some 20 ms of CPU time after every run."""
    for name in ENGINES:
        engine = load_engine(name, artifact.graph, EngineOptions(2, "fp32"))
        feed = frame_feed(artifact.frontend(np.ones(8000, np.float32))[None])
        for _ in range(3):
            engine.run(feed)
        spent = 0.0
        for _ in range(5):
            engine.run(feed)
            begin = time.process_time()
            time.sleep(0.05)
            spent += time.process_time() - begin
        assert spent / 5 < 0.008
