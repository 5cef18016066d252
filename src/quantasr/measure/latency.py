"""Times of several systems, interleaved in one run, as ratios with their spread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from quantasr.progress import track
from quantasr.speech.transcript import Transcriber, Waveform

PAUSE_SECONDS = 0.02
"""Between two calls: the threads of the one before may spin for some milliseconds, in the way of the next. Without,
an engine that takes 6.5 ms took 8.8 behind PyTorch."""


@dataclass(frozen=True)
class Timing:
    """Seconds that one system took for the same recording, turn by turn."""

    system: str
    audio_seconds: float
    seconds: tuple[float, ...]

    @property
    def p50(self) -> float:
        """Median time, in seconds."""
        return float(np.percentile(self.seconds, 50))

    @property
    def p95(self) -> float:
        """95th percentile of the times, in seconds."""
        return float(np.percentile(self.seconds, 95))

    @property
    def rtf(self) -> float:
        """Median real-time factor: processing time ÷ audio time."""
        return self.p50 / self.audio_seconds

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "system": self.system,
            "audio_seconds": self.audio_seconds,
            "rounds": len(self.seconds),
            "p50_seconds": round(self.p50, 5),
            "p95_seconds": round(self.p95, 5),
            "rtf": round(self.rtf, 5),
        }


@dataclass(frozen=True)
class Ratio:
    """Time of one system ÷ time of another: the median over turns, and the middle half of the turns' ratios."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {"median": round(self.median, 4), "quartiles": [round(self.low, 4), round(self.high, 4)]}


def ratio(numerator: Timing, denominator: Timing) -> Ratio:
    """The ratio of two systems that were timed in the same run: turn by turn, so that drift cancels."""
    ratios = np.array(numerator.seconds) / np.array(denominator.seconds)
    low, median, high = np.percentile(ratios, [25, 50, 75])
    return Ratio(float(median), float(low), float(high))


def time_interleaved(
    systems: Sequence[Transcriber], wave: Waveform, *, rounds: int = 15, warm_up: int = 2, progress: bool = False
) -> list[Timing]:
    """Time every system on ``wave``, in turns: A B C, B C A, C A B, ... after ``warm_up`` turns that do not count."""
    duration = len(wave) / systems[0].sample_rate
    runs = {str(i): partial(system.transcribe, [wave]) for i, system in enumerate(systems)}
    found = time_calls(runs, duration, rounds=rounds, warm_up=warm_up, progress=progress)
    return [replace(timing, system=system.name) for system, timing in zip(systems, found.values(), strict=True)]


def time_calls(
    calls: Mapping[str, Callable[[], object]],
    audio_seconds: float,
    *,
    rounds: int = 15,
    warm_up: int = 2,
    progress: bool = False,
) -> dict[str, Timing]:
    """Time every call, in turns, as :func:`time_interleaved` does; each processes ``audio_seconds`` of audio."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for turn in track(range(warm_up + rounds), "timing", total=warm_up + rounds, show=progress):
        first = turn % len(order)
        for name in order[first:] + order[:first]:
            time.sleep(PAUSE_SECONDS)
            begin = time.perf_counter()
            calls[name]()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - begin)
    return {name: Timing(name, audio_seconds, tuple(found)) for name, found in seconds.items()}
