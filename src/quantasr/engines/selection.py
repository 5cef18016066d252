"""Choose the fastest engine by measuring all of them on this machine, and remember the choice."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from quantasr.artifact import WHOLE, Artifact
from quantasr.cpu import this_cpu
from quantasr.engines import ENGINES, load_engine
from quantasr.engines.cache import read_cache, remember
from quantasr.engines.engine import Engine, EngineOptions, frame_feed
from quantasr.engines.exactness import package_version
from quantasr.engines.feeds import TIME, for_part, part_feed
from quantasr.errors import EngineError
from quantasr.speech.frontend import noise
from quantasr.speech.parts import Arrays

_SECONDS = (1.7, 3.1, 6.3)
"""Lengths of the recordings of one round. Each is run twice: recordings come in ever new lengths, windows of long ones
in the same length, and an engine may be slow on the first run of a length."""

_STEP = 0.037
"""By how much they grow from one round to the next, so that every round has new lengths."""

_WINDOWS, _STEPS = 2, 8
"""How often what always has one length is run instead: a window, and a step of a decoder, which is short."""

_ROUNDS = 3
_ENOUGH = 5.0  # seconds, after which no further round begins

System = tuple[str, str]
"""An engine and a compute type."""


def fastest(artifact: Artifact, options: EngineOptions, part: str = WHOLE) -> Engine:
    """A graph of ``artifact`` on the engine, and with the compute type, that runs it fastest on this machine.

    Measured once for each graph, thread count, CPU and version of the engines; then remembered
    (:mod:`quantasr.engines.cache`). Parts that take turns in every step (:func:`taking_turns`) share the engine that
    runs them fastest together. Raises :class:`EngineError` when no engine can run it.
    """
    together = taking_turns(artifact, part)
    key = _key(artifact, options, together)
    if system := _remembered(read_cache().get(key), options):
        try:
            chosen = replace(for_part(options, artifact, part), compute=system[1])
            return load_engine(system[0], artifact.graphs[part], chosen)
        except EngineError:
            pass  # it could when it was measured: measure again
    engines = {one: _load_all(artifact.graphs[one], for_part(options, artifact, one)) for one in together}
    times: dict[System, float] = dict.fromkeys(set.intersection(*(set(found) for found in engines.values())), 0.0)
    if not times:
        raise EngineError(f"{artifact.folder}: no engine can run all of {', '.join(together)}")
    for one, found in engines.items():
        load = load_of(artifact, one)
        for system, seconds in measure(load, found).items():
            if system in times:
                times[system] += seconds * (load.rounds if len(together) > 1 else 1.0)
    best = min(times, key=lambda system: times[system])
    rows = {" ".join(system): round(seconds * 1e3, 2) for system, seconds in sorted(times.items())}
    remember(key, {"engine": best[0], "compute": best[1], "milliseconds": rows})
    return engines[part][best]


def taking_turns(artifact: Artifact, part: str) -> tuple[str, ...]:
    """The parts that are called in every step of a search together with ``part``; it alone if it is called once.

    One engine for all of them, so that the threads of two do not take turns every millisecond.
    """
    steps = tuple(name for name, row in artifact.parts.items() if row["calls"])
    return steps if part in steps else (part,)


def candidates(options: EngineOptions) -> list[tuple[str, EngineOptions]]:
    """Every engine with every compute type that ``options`` leaves open and this CPU has."""
    from quantasr.engines.openvino import compute_types

    found = []
    for name in ENGINES:
        kinds = [options.compute]
        if options.compute == "auto":
            kinds = list(compute_types()) if name == "openvino" else ["fp32"]
        found += [(name, replace(options, compute=kind)) for kind in kinds if name == "openvino" or kind == "fp32"]
    return found


@dataclass(frozen=True)
class Load:
    """What engines are timed with: ``warm`` before, then what ``turn`` gives for each round, each of it twice.

    An engine runs the calls of one of its lists in a row, then the next engine does. ``rounds`` is how many rounds the
    work of 10 s of speech is.
    """

    warm: Arrays
    turn: Callable[[int], Sequence[Sequence[Arrays]]]
    rounds: float


def load_of(artifact: Artifact, part: str = WHOLE) -> Load:
    """Recordings of different lengths for what reads features of any length; the same call again for all else."""
    row = artifact.parts.get(part, {"inputs": {"features": None}})
    if "features" in row["inputs"] and TIME not in row.get("typical", {}):
        return Load(
            _noise(artifact, 1.0),
            lambda turn: [[_noise(artifact, seconds + turn * _STEP)] for seconds in _SECONDS],
            10.0 / (2 * sum(_SECONDS)),
        )
    feed, times = part_feed(row), _STEPS if row["calls"] else _WINDOWS
    return Load(feed, lambda _: [[feed] * times], max(1.0, 10.0 * row["calls"]) / (2 * times))


def measure(load: Load, engines: Mapping[System, Engine]) -> dict[System, float]:
    """Seconds that each engine takes for a round of ``load``; interleaved, median of rounds."""
    times: dict[System, list[float]] = {system: [] for system in engines}
    for engine in engines.values():  # the first run of all takes memory and wakes threads
        _run(engine, load.warm)
    begin = time.perf_counter()
    for turn in range(_ROUNDS):
        spent = dict.fromkeys(engines, 0.0)
        for feeds in load.turn(turn):
            for system, engine in engines.items():
                spent[system] += sum(_run(engine, feed) + _run(engine, feed) for feed in feeds)
        for system, seconds in spent.items():
            times[system].append(seconds)
        if time.perf_counter() - begin > _ENOUGH:
            break
    return {system: median(values) for system, values in times.items()}


def _load_all(graph: Path, options: EngineOptions) -> dict[System, Engine]:
    """Every candidate that can load the graph; raises :class:`EngineError` when none can."""
    loaded: dict[System, Engine] = {}
    failures = []
    for name, chosen in candidates(options):
        try:
            loaded[name, chosen.compute] = load_engine(name, graph, chosen)
        except EngineError as error:
            failures.append(str(error))
    if not loaded:
        raise EngineError(f"no engine can run {graph}: {'; '.join(failures)}")
    return loaded


def _noise(artifact: Artifact, seconds: float) -> Arrays:
    """Features of noise, ``[1, time(, bins)]``, and their length."""
    front = artifact.frontend
    return frame_feed(front(noise(front, round(seconds * front.sample_rate)))[None])


def _run(engine: Engine, feed: Arrays) -> float:
    begin = time.perf_counter()
    engine.run(feed)
    return time.perf_counter() - begin


def _key(artifact: Artifact, options: EngineOptions, together: Sequence[str]) -> str:
    engines = [f"{name} {package_version(name)}" for name in ENGINES]
    named = [artifact.checksum[:16], *(part for part in together if part != WHOLE)]
    return " | ".join([*named, this_cpu().key, f"{options.thread_count} threads", options.compute, *engines])


def _remembered(row: Any, options: EngineOptions) -> System | None:
    """The choice in a row of the cache, unless something else has written it."""
    if not isinstance(row, dict) or row.get("engine") not in list(ENGINES):  # a list asks no hash of what is there
        return None
    allowed = ("fp32", "bf16", "fp16") if options.compute == "auto" else (options.compute,)
    return (row["engine"], row["compute"]) if row.get("compute") in allowed else None
