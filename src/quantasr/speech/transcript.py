"""What every recogniser gives back, and the protocol that makes it one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Waveform: TypeAlias = NDArray[np.float32]
"""Mono samples in [-1, 1], shape ``[time]``, at the recogniser's own ``sample_rate``."""


@dataclass(frozen=True)
class Word:
    """One word with its place in the recording, in seconds from its start.

    ``confidence``: how probable it is there, 0 to 1, where the decoder tells.
    """

    text: str
    start: float
    end: float
    confidence: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; times rounded to the millisecond."""
        row: dict[str, Any] = {"text": self.text, "start": round(self.start, 3), "end": round(self.end, 3)}
        return row if self.confidence is None else {**row, "confidence": round(self.confidence, 4)}


@dataclass(frozen=True)
class Transcript:
    """The text of one recording.

    ``duration`` is the recording's length in seconds; ``words`` is empty where the decoder gives no times;
    ``score`` is the mean log-probability per frame of the decoded path, in nats.
    """

    text: str
    duration: float
    words: tuple[Word, ...] = ()
    score: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; times rounded to the millisecond."""
        row = asdict(self)
        row["duration"] = round(self.duration, 3)
        row["words"] = [word.to_dict() for word in self.words]
        row["score"] = None if self.score is None else round(self.score, 4)
        return row


class Transcriber(Protocol):
    """Anything that turns speech into text: the float original, the simulation, an artifact on an engine."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    @property
    def sample_rate(self) -> int:
        """Samples per second that :meth:`transcribe` expects."""
        ...

    def transcribe(self, waves: Sequence[Waveform]) -> list[Transcript]:
        """Transcribe a batch; the text of each is the same as when it is transcribed alone."""
        ...

    def transcribe_stream(self, blocks: Iterable[Waveform]) -> Transcript:
        """Transcribe one recording that comes in blocks of any size."""
        ...

    def transcribe_file(self, path: str | Path, *, start: float = 0.0, duration: float | None = None) -> Transcript:
        """Transcribe an audio file of any rate and channel count, or a segment of it; times count from ``start``."""
        ...

    def encoder_call(self, wave: Waveform) -> Callable[[], object]:
        """A call that runs the encoder alone on the features of one wave, to be timed."""
        ...
