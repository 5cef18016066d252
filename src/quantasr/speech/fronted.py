"""What all recognisers share that have a frontend of their own: names, rates, and files read block by block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from quantasr.errors import RecipeError
from quantasr.speech.frontend import Frontend
from quantasr.speech.transcript import Transcript, Waveform

BLOCK_SECONDS = 10.0
"""How much of a file is read at once."""


class CountedBlocks:
    """The blocks of a recording, in turn; ``size`` is the number of samples so far."""

    def __init__(self, blocks: Iterable[Waveform]) -> None:
        self._blocks = blocks
        self.size = 0

    def __iter__(self) -> Iterator[Waveform]:
        for block in self._blocks:
            self.size += block.size
            yield block


class FrontedTranscriber(ABC):
    """A :class:`~quantasr.speech.transcript.Transcriber` but for what it makes of features.

    ``frame_seconds`` is the time from one frame of the model's output to the next. Recordings shorter than
    ``min_samples``, the model's receptive field, are filled up with zeros.
    """

    def __init__(
        self, frontend: Frontend, *, name: str, frame_seconds: float, min_samples: int, batch_size: int = 1
    ) -> None:
        """Raises RecipeError for a batch of nothing."""
        if batch_size < 1:
            raise RecipeError(f"batch_size is {batch_size}; it must be at least 1")
        self.frontend = frontend
        self.frame_seconds = frame_seconds
        self.min_samples = min_samples
        self.batch_size = batch_size
        self._name = name

    @property
    def name(self) -> str:
        """What reports call it."""
        return self._name

    @property
    def sample_rate(self) -> int:
        """Samples per second that the waves must have."""
        return self.frontend.sample_rate

    @abstractmethod
    def transcribe(self, waves: Sequence[Waveform]) -> list[Transcript]:
        """Transcribe a batch; the text of each is the same as when it is transcribed alone."""

    @abstractmethod
    def transcribe_stream(self, blocks: Iterable[Waveform]) -> Transcript:
        """Transcribe one recording that comes in blocks of any size."""

    def transcribe_file(self, path: str | Path, *, start: float = 0.0, duration: float | None = None) -> Transcript:
        """Transcribe an audio file of any length, rate and channel count, or a segment of it, block by block.

        Times are counted from ``start``. Raises AudioError, naming the file, when it cannot be used.
        """
        # Here, so that importing this module loads no audio library.
        from quantasr.speech.audio import stream_audio

        blocks = stream_audio(Path(path), self.sample_rate, BLOCK_SECONDS, start=start, duration=duration)
        return self.transcribe_stream(blocks)
