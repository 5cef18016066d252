"""Choosing the engine: by measuring, once, and never by what a broken memory says."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from quantasr.artifact import Artifact
from quantasr.engines import ENGINES, EngineOptions, openvino, selection
from quantasr.engines.cache import cache_file
from quantasr.engines.engine import Engine
from quantasr.engines.selection import candidates, fastest
from quantasr.errors import EngineError
from quantasr.speech.parts import Arrays

AUTO = EngineOptions(1)


class Clock:
    """Time that passes only while an engine runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class FakeEngine:
    """An engine that takes ``seconds`` a run, and ``first`` more for every new length."""

    def __init__(self, name: str, compute: str, clock: Clock, seconds: float, first: float) -> None:
        self.name, self.compute = name, compute
        self._clock, self._seconds, self._first = clock, seconds, first
        self.lengths: list[int] = []

    def run(self, feed: Arrays) -> dict[str, NDArray[Any]]:
        features = feed["features"]
        assert features.shape == (1, feed["lengths"][0])
        self._clock.now += self._seconds + (0 if features.shape[1] in self.lengths else self._first)
        self.lengths.append(features.shape[1])
        return {}


class World:
    """Engines of known speed in the place of the real ones; counts how often each is loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        self.clock = Clock()
        self.speed = {"onnxruntime fp32": (1.0, 0.0), "openvino fp32": (0.5, 0.0), "openvino bf16": (0.8, 0.0)}
        self.broken: set[str] = set()
        self.loaded: list[str] = []
        monkeypatch.setenv("QUANTASR_CACHE", str(cache))
        monkeypatch.setattr(openvino, "compute_types", lambda: ("fp32", "bf16"))
        monkeypatch.setattr(selection, "load_engine", self._load)
        monkeypatch.setattr(selection, "time", self.clock)

    def _load(self, name: str, graph: Path, options: EngineOptions) -> Engine:
        label = f"{name} {options.compute}"
        self.loaded.append(label)
        if label in self.broken:
            raise EngineError(f"{label} is broken")
        return FakeEngine(name, options.compute, self.clock, *self.speed[label])  # type: ignore[return-value]

    def choose(self, artifact: Artifact, options: EngineOptions = AUTO) -> str:
        self.loaded.clear()
        engine = fastest(artifact, options)
        return f"{engine.name} {engine.compute}"


@pytest.fixture
def artifact(sample_artifact: Callable[[str], Path]) -> Artifact:
    return Artifact.load(sample_artifact("default"))


@pytest.fixture
def world(artifact: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    """With a clock of its own; the artifact is made before, because making it is timed too."""
    return World(monkeypatch, tmp_path / "cache")


def test_the_fastest_wins_and_is_remembered(world: World, artifact: Artifact) -> None:
    assert world.choose(artifact) == "openvino fp32"
    assert world.loaded == ["onnxruntime fp32", "openvino fp32", "openvino bf16"]
    assert world.choose(artifact) == "openvino fp32"
    assert world.loaded == ["openvino fp32"]  # not measured again
    (row,) = json.loads(cache_file().read_text()).values()
    # Three lengths in a round, each run twice.
    assert row["milliseconds"] == {"onnxruntime fp32": 6000.0, "openvino fp32": 3000.0, "openvino bf16": 4800.0}


def test_an_engine_that_is_slow_on_new_lengths_loses_where_lengths_are_new(world: World, artifact: Artifact) -> None:
    """Measured on one repeated length, the second would win: it takes half the time once it has its kernels."""
    world.speed["openvino fp32"] = (0.5, 2.0)
    assert world.choose(artifact) == "openvino bf16"
    world.speed |= {"openvino fp32": (0.5, 2.0), "openvino bf16": (0.8, 2.0)}
    assert world.choose(replace(artifact, files=other_graph(artifact))) == "onnxruntime fp32"


def test_every_round_brings_new_lengths(world: World, artifact: Artifact) -> None:
    world.speed = dict.fromkeys(world.speed, (0.01, 0.0))
    engine = fastest(artifact, AUTO)
    lengths = engine.lengths  # type: ignore[attr-defined]
    rounds = [sorted(set(lengths[1 + 6 * i : 7 + 6 * i])) for i in range(3)]
    assert all(len(some) == 3 for some in rounds)
    assert len({length for some in rounds for length in some}) == 9
    # Where an engine may round lengths up to half a second, those of later rounds are no longer new to it.
    assert {tuple(-(-length // artifact.round_up) for length in some) for some in rounds} == {(4, 7, 13)}


def test_a_slow_machine_is_not_kept_busy(world: World, artifact: Artifact) -> None:
    world.speed = dict.fromkeys(world.speed, (3.0, 0.0))
    engine = fastest(artifact, AUTO)
    assert len(engine.lengths) == 1 + 6  # type: ignore[attr-defined]


def other_graph(artifact: Artifact) -> dict[str, dict[str, Any]]:
    return {**artifact.files, "graph.onnx": {"sha256": "0" * 64, "bytes": 1}}


def test_another_graph_or_thread_count_is_measured_anew(world: World, artifact: Artifact) -> None:
    world.choose(artifact)
    for changed, options in (
        (replace(artifact, files=other_graph(artifact)), AUTO),
        (artifact, EngineOptions(2)),
        (artifact, EngineOptions(1, "fp32")),
    ):
        world.choose(changed, options)
        assert len(world.loaded) > 1
    assert len(json.loads(cache_file().read_text())) == 4


def test_compute_narrows_the_choice(world: World, artifact: Artifact) -> None:
    world.speed["onnxruntime fp32"] = (0.1, 0.0)
    assert world.choose(artifact, EngineOptions(1, "bf16")) == "openvino bf16"
    assert world.choose(artifact, EngineOptions(1, "fp32")) == "onnxruntime fp32"
    assert world.loaded == ["onnxruntime fp32", "openvino fp32"]


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"KEY": null}', b'{"KEY": []}', b'{"KEY": {}}'),
        *(b'{"KEY": {"engine": "tensorrt", "compute": "fp32"}}', b'{"KEY": {"engine": ["openvino"]}}'),
        *(b'{"KEY": {"engine": "openvino"}}', b'{"KEY": {"engine": "openvino", "compute": "int1"}}'),
        b'{"KEY": {"engine": "onnxruntime", "compute": {"a": 1}}}',
    ],
)
def test_a_broken_memory_is_replaced(world: World, artifact: Artifact, content: bytes) -> None:
    world.choose(artifact)
    (key,) = json.loads(cache_file().read_text())
    cache_file().write_bytes(content.replace(b"KEY", key.encode()))
    assert world.choose(artifact) == "openvino fp32"
    assert len(world.loaded) == 3
    assert json.loads(cache_file().read_text())[key]["engine"] == "openvino"


def test_nothing_needs_to_be_written(world: World, artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    # A file where the folder should be refuses even the superuser, like a read-only home refuses others.
    blocked = cache_file().parent
    blocked.write_text("")
    assert world.choose(artifact) == "openvino fp32"
    monkeypatch.setenv("QUANTASR_CACHE", "/proc/self/no/such/folder")
    assert world.choose(artifact) == "openvino fp32"


def test_an_engine_that_no_longer_loads_is_not_clung_to(world: World, artifact: Artifact) -> None:
    assert world.choose(artifact) == "openvino fp32"
    world.broken.add("openvino fp32")
    assert world.choose(artifact) == "openvino bf16"
    world.broken |= set(world.speed)
    with pytest.raises(EngineError, match=r"no engine can run .*graph\.onnx: onnxruntime fp32 is broken; openvino"):
        fastest(replace(artifact, files=other_graph(artifact)), AUTO)


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTASR_CACHE", "/a")
    assert cache_file() == Path("/a/engines.json")
    monkeypatch.delenv("QUANTASR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_file() == Path("/b/quantasr/engines.json")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/c")
    assert cache_file() == Path("/c/.cache/quantasr/engines.json")


def test_candidates_are_what_this_machine_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "compute_types", lambda: ("fp32",))
    assert [(name, options.compute) for name, options in candidates(EngineOptions())] == [
        ("onnxruntime", "fp32"),
        ("openvino", "fp32"),
    ]


def test_the_real_engines_are_measured_in_seconds(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QUANTASR_CACHE", str(tmp_path))
    begin = time.process_time()
    engine = fastest(artifact, AUTO)
    assert time.process_time() - begin < 10  # 1 to 2 s in fact; of this process, so that a busy machine passes too
    assert engine.name in ENGINES
    (row,) = json.loads(cache_file().read_text()).values()
    best = min(row["milliseconds"], key=row["milliseconds"].get)
    assert best == f"{row['engine']} {row['compute']}" == f"{engine.name} {engine.compute}"


def test_parts_of_one_step_share_an_engine(
    world: World, artifact: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The decoder alone would be on one, the joiner on the other; what counts is both together, by their calls."""
    row: dict[str, Any] = {"inputs": {"x": {"type": "float32", "shape": [1]}}, "typical": {}}
    parts = {"encoder": {**row, "calls": 0.0}, "decoder": {**row, "calls": 4.0}, "joiner": {**row, "calls": 12.0}}
    split = replace(artifact, parts=parts, files={f"{name}.onnx": {"sha256": "1" * 64} for name in parts})
    speed = {
        "encoder": {"onnxruntime fp32": 2.0, "openvino fp32": 1.0},
        "decoder": {"onnxruntime fp32": 2.0, "openvino fp32": 1.0},
        "joiner": {"onnxruntime fp32": 1.0, "openvino fp32": 2.0},
    }

    class Part:
        def __init__(self, name: str, options: EngineOptions, seconds: float) -> None:
            self.name, self.compute, self._seconds = name, options.compute, seconds

        def run(self, _: Arrays) -> dict[str, NDArray[Any]]:
            world.clock.now += self._seconds
            return {}

    def load(name: str, graph: Path, options: EngineOptions) -> Engine:
        return Part(name, options, speed[graph.stem][f"{name} {options.compute}"])  # type: ignore[return-value]

    monkeypatch.setattr(selection, "load_engine", load)
    options = EngineOptions(1, "fp32")
    assert fastest(split, options, "encoder").name == "openvino"
    # 4 · 2 + 12 · 1 calls on ONNX Runtime, 4 · 1 + 12 · 2 on OpenVINO.
    assert [fastest(split, options, part).name for part in ("decoder", "joiner")] == ["onnxruntime"] * 2
    keys = [key.split(" | ")[1:-4] for key in json.loads(cache_file().read_text())]
    assert [key[: len(key) - 1] for key in keys] == [["encoder"], ["decoder", "joiner"]]
