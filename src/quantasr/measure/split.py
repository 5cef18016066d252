"""Where the time of one transcription goes: frontend, each part, and the search itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, TypeVar

from numpy.typing import NDArray

from quantasr.engines.engine import Engine
from quantasr.speech.parts import Arrays, Part
from quantasr.speech.transcript import Transcriber, Waveform

FRONTEND, SEARCH = "frontend", "search"

T = TypeVar("T")


class Clock:
    """Sums up what is called through it, by name: seconds, and calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}

    def clear(self) -> None:
        """Begin again."""
        self.seconds.clear()
        self.calls.clear()

    def timed(self, name: str, call: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
        """What ``call`` returns."""
        begin = time.perf_counter()
        try:
            return call(*arguments, **keywords)
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
            self.calls[name] = self.calls.get(name, 0) + 1


class ClockedPart:
    """A part whose calls are timed."""

    def __init__(self, name: str, part: Part, clock: Clock) -> None:
        self._name, self._part, self._clock = name, part, clock

    def __call__(self, feed: Arrays) -> dict[str, NDArray[Any]]:
        return self._clock.timed(self._name, self._part, feed)


class ClockedEngine:
    """An engine whose runs are timed, and which is in all else what it was."""

    def __init__(self, part: str, engine: Engine, clock: Clock) -> None:
        self._part, self._engine, self._clock = part, engine, clock

    def run(self, feed: Arrays) -> dict[str, NDArray[Any]]:
        """See :class:`quantasr.engines.engine.Engine`."""
        return self._clock.timed(self._part, self._engine.run, feed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


class ClockedFrontend:
    """A frontend whose methods are timed, since some searches ask for features in pieces; in all else what it was."""

    def __init__(self, frontend: Any, clock: Clock) -> None:
        self._frontend, self._clock = frontend, clock

    def __call__(self, *arguments: Any, **keywords: Any) -> NDArray[Any]:
        found: NDArray[Any] = self._clock.timed(FRONTEND, self._frontend, *arguments, **keywords)
        return found

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._frontend, name)
        return partial(self._clock.timed, FRONTEND, found) if callable(found) else found


@dataclass(frozen=True)
class Share:
    """What one stage took of a transcription: the median of its seconds, and its calls."""

    stage: str
    seconds: float
    calls: int

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {"seconds": round(self.seconds, 6), "calls": self.calls}


class SplitRun:
    """Transcriptions of one wave by a recogniser whose parts and frontend are timed by ``clock``."""

    def __init__(self, system: Transcriber, clock: Clock, stages: Sequence[str]) -> None:
        self._system, self._clock, self._stages = system, clock, stages
        self._runs: list[tuple[Mapping[str, float], Mapping[str, int]]] = []

    def __call__(self, wave: Waveform) -> None:
        """Transcribe ``wave`` once more."""
        self._clock.clear()
        begin = time.perf_counter()
        self._system.transcribe([wave])
        whole = time.perf_counter() - begin
        inside = dict(self._clock.seconds)
        self._runs.append(({**inside, SEARCH: whole - sum(inside.values())}, dict(self._clock.calls)))

    def shares(self, rounds: int) -> tuple[Share, ...]:
        """Of the last ``rounds`` runs: the frontend, the parts in their order, and the rest, which is the search."""
        last = self._runs[-rounds:]
        return tuple(
            Share(stage, median(seconds.get(stage, 0.0) for seconds, _ in last), last[-1][1].get(stage, 0))
            for stage in (FRONTEND, *self._stages, SEARCH)
        )
