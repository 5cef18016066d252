"""What Whisper gives besides a text: the language it heard, and segments with times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quantasr.speech.transcript import Transcript, Word


@dataclass(frozen=True)
class WhisperTranscript(Transcript):
    """A :class:`Transcript`; ``segments`` are what lies between two time stamps, where the model wrote them.

    ``score`` is the mean log-probability per token.
    """

    language: str | None = None
    segments: tuple[Word, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; times rounded to the millisecond."""
        row = super().to_dict()
        row["segments"] = [segment.to_dict() for segment in self.segments]
        return row
