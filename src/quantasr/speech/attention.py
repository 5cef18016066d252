"""A recogniser with an attention decoder: whole recordings in, text out, long ones cut where they are quietest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from quantasr.errors import AudioError, RecipeError
from quantasr.speech.frames import check_waves
from quantasr.speech.fronted import BLOCK_SECONDS
from quantasr.speech.pauses import PauseCutter
from quantasr.speech.transcript import Transcript, Waveform

CHUNK_SECONDS = 40.0
"""The longest piece that is heard at once, unless asked otherwise; LibriSpeech's longest recording has 35 s."""


class Recognise(Protocol):
    """One recording of any length to its text, in one search."""

    def __call__(self, wave: Waveform) -> str:
        """``[time]`` -> text."""
        ...


def transcribe_pieces(pieces: Iterable[Waveform], recognise: Recognise, sample_rate: int) -> Transcript:
    """The text of one recording that is heard piece by piece; raises AudioError where there is none."""
    size, texts = 0, []
    for piece in pieces:
        size += piece.size
        texts.append(recognise(piece))
    if size == 0:
        raise AudioError("recording has no samples")
    return Transcript(" ".join(text for text in texts if text), size / sample_rate)


class AttentionTranscriber:
    """A :class:`~quantasr.speech.transcript.Transcriber` around a model that searches its text token by token.

    Recordings are run one by one, whatever their number and ``batch_size``, because in a batch padding, norms over the
    batch and dynamic scales would change what each of them sounds like.

    Those longer than ``chunk_seconds`` are cut, where it is quietest in the second half of each piece, and the texts of
    the pieces are joined with spaces. Pieces cannot overlap as a CTC model's windows do: a decoder that attends does
    not tell when it heard a token. A word is lost or doubled where there is no pause to cut in. 0 never cuts; then
    models with positions in a table refuse what is longer than that, and time and memory may grow with the square.

    Recordings shorter than ``min_samples`` are filled up with zeros. Words have no times.
    """

    def __init__(
        self,
        recognise: Recognise,
        *,
        name: str,
        sample_rate: int,
        min_samples: int,
        chunk_seconds: float = CHUNK_SECONDS,
        batch_size: int = 1,
        decoder: Any = None,
        encode: Callable[[Waveform], object] | None = None,
    ) -> None:
        """``decoder`` is there to be refused: the search is part of the model. ``encode`` runs the encoder alone."""
        if decoder is not None:
            raise RecipeError(
                f"{name}: searches in its own way: --lm and --beam-width are for CTC models, leave them out"
            )
        if batch_size < 1:
            raise RecipeError(f"batch_size is {batch_size}; it must be at least 1")
        self._recognise, self._encode = recognise, encode
        self._name = name
        self._rate = sample_rate
        self.pieces = PauseCutter(chunk_seconds, sample_rate)
        self.min_samples = min_samples

    @property
    def name(self) -> str:
        """What reports call it."""
        return self._name

    @property
    def sample_rate(self) -> int:
        """Samples per second that the waves must have."""
        return self._rate

    def transcribe(self, waves: Sequence[Waveform]) -> list[Transcript]:
        """Transcribe each of some recordings alone.

        Raises AudioError, naming the wave by its index, when one is empty, not mono, or holds NaN.
        """
        check_waves(waves)
        return [self.transcribe_stream([wave]) for wave in waves]

    def transcribe_stream(self, blocks: Iterable[Waveform]) -> Transcript:
        """Transcribe one recording that comes in blocks of any size; one piece of it is held at a time."""
        return transcribe_pieces(self.pieces(blocks), self._recognise_filled, self._rate)

    def _recognise_filled(self, wave: Waveform) -> str:
        return self._recognise(np.pad(wave, (0, max(0, self.min_samples - wave.size))))

    def transcribe_file(self, path: str | Path, *, start: float = 0.0, duration: float | None = None) -> Transcript:
        """Transcribe an audio file of any length, rate and channel count, or a segment of it, block by block.

        Raises AudioError, naming the file, when it cannot be used.
        """
        # Here, so that importing this module loads no audio library.
        from quantasr.speech.audio import stream_audio

        return self.transcribe_stream(
            stream_audio(Path(path), self.sample_rate, BLOCK_SECONDS, start=start, duration=duration)
        )

    def encoder_call(self, wave: Waveform) -> Callable[[], object]:
        """A call that runs features and encoder alone on one wave, to be timed."""
        if self._encode is None:
            raise RecipeError(f"{self.name}: its encoder cannot be run alone")
        check_waves([wave])
        return partial(self._encode, np.pad(wave, (0, max(0, self.min_samples - wave.size))))
