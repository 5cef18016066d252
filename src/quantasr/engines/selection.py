"""Choose the fastest engine by measuring all of them on this machine, and remember the choice."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np

from quantasr.artifact import Artifact, write_atomically
from quantasr.engines import ENGINES, load_engine
from quantasr.engines.engine import Engine, EngineOptions
from quantasr.errors import EngineError

_SECONDS = 5.0  # of audio that the engines are measured on
_ROUNDS = 5


def cache_file() -> Path:
    """Where choices are remembered: ``$QUANTASR_CACHE`` or the user's cache folder."""
    folder = (
        os.environ.get("QUANTASR_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantasr"
    )
    return Path(folder) / "engines.json"


def fastest(artifact: Artifact, options: EngineOptions) -> tuple[str, EngineOptions]:
    """The engine, and the compute type with it, that runs ``artifact`` fastest on this machine.

    Measured once for each graph, thread count, CPU and version of the engines; then read from :func:`cache_file`.
    """
    key = _key(artifact, options)
    known = _read(cache_file())
    if key in known and known[key]["engine"] in ENGINES:
        return known[key]["engine"], replace(options, compute=known[key]["compute"])
    times = measure(artifact, candidates(options))
    (name, compute), seconds = min(times.items(), key=lambda row: row[1])
    rows = {f"{engine} {kind}": round(value * 1e3, 2) for (engine, kind), value in times.items()}
    known[key] = {"engine": name, "compute": compute, "milliseconds": rows, "best": round(seconds * 1e3, 2)}
    _remember(known)
    return name, replace(options, compute=compute)


def candidates(options: EngineOptions) -> list[tuple[str, EngineOptions]]:
    """Every engine with every compute type that ``options`` leaves open and this CPU has."""
    from quantasr.engines.openvino import has_bf16

    found = []
    for name in ENGINES:
        kinds: Sequence[str] = [options.compute]
        if options.compute == "auto":
            kinds = ["fp32", "bf16"] if name == "openvino" and has_bf16() else ["fp32"]
        found += [(name, replace(options, compute=kind)) for kind in kinds if name != "onnxruntime" or kind != "bf16"]
    return found


def measure(artifact: Artifact, systems: Sequence[tuple[str, EngineOptions]]) -> dict[tuple[str, str], float]:
    """Median seconds per run of each system, interleaved, on a few seconds of noise; ``{(engine, compute): seconds}``.

    An engine that cannot load the graph is left out; raises :class:`EngineError` when none can.
    """
    noise = np.random.default_rng(0).normal(0, 0.1, round(_SECONDS * artifact.frontend.sample_rate)).astype(np.float32)
    features = artifact.frontend(noise)[None]
    lengths = np.array([features.shape[1]])
    loaded: dict[tuple[str, str], Engine] = {}
    failures = []
    for name, options in systems:
        try:
            loaded[name, options.compute] = load_engine(name, artifact.graph, options)
        except EngineError as error:
            failures.append(str(error))
    if not loaded:
        raise EngineError(f"no engine can run {artifact.graph}: {'; '.join(failures)}")
    times: dict[tuple[str, str], list[float]] = {key: [] for key in loaded}
    for turn in range(_ROUNDS + 1):
        for key, engine in loaded.items():
            begin = time.perf_counter()
            engine.run(features, lengths)
            if turn:  # the first run warms up
                times[key].append(time.perf_counter() - begin)
    return {key: median(values) for key, values in times.items()}


def _key(artifact: Artifact, options: EngineOptions) -> str:
    engines = [f"{name} {version(name)}" for name in ENGINES]
    return " | ".join([artifact.checksum[:16], _cpu(), f"{options.thread_count} threads", options.compute, *engines])


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text("utf-8", errors="replace").splitlines():
            if line.lower().startswith(("model name", "cpu part")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(path: Path) -> dict[str, dict[str, str]]:
    try:
        rows = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}  # no memory, or a broken one: measure again
    return rows if isinstance(rows, dict) else {}


def _remember(rows: dict[str, dict[str, str]]) -> None:
    path = cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(rows, indent=1) + "\n")
    except OSError:
        return  # a read-only home: the choice holds for this process
