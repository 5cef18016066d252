"""A CTC recogniser: samples in, text out, around whatever computes the log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import AudioError, ModelLoadError, RecipeError
from quantasr.speech.decoding import CtcDecoder, Decoded, GreedyDecoder, decode
from quantasr.speech.frontend import Frontend, collate
from quantasr.speech.long_form import Windows, join
from quantasr.speech.tokenizer import CtcTokenizer
from quantasr.speech.transcript import Transcript, Waveform, Word

GREEDY = GreedyDecoder()

BLOCK_SECONDS = 10.0
"""How much of a file is read at once."""


class AcousticModel(Protocol):
    """Features in, log-probabilities out: the float original, its simulation, or a graph on an engine."""

    @property
    def padded_batches(self) -> bool:
        """False for a model trained without an attention mask: padding would change what it hears, so only
        recordings of equal length may share a batch."""
        ...

    def __call__(
        self, features: NDArray[np.float32], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """``[batch, time(, bins)]``, ``[batch]`` -> logprobs ``[batch, frames, vocab]``, frame counts ``[batch]``."""
        ...


class CtcTranscriber:
    """A :class:`~quantasr.speech.transcript.Transcriber` around an acoustic model.

    ``frame_seconds`` is the time from one output frame to the next. Recordings longer than ``chunk_seconds`` are cut
    in windows that share ``overlap_seconds`` (see :mod:`quantasr.speech.long_form`); 0 never cuts. Recordings shorter
    than ``min_samples``, the model's receptive field, are filled up with zeros.
    """

    def __init__(
        self,
        acoustic: AcousticModel,
        frontend: Frontend,
        tokenizer: CtcTokenizer,
        *,
        name: str,
        frame_seconds: float,
        min_samples: int,
        decoder: CtcDecoder = GREEDY,
        chunk_seconds: float = 30.0,
        overlap_seconds: float = 5.0,
        batch_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise RecipeError(f"batch_size is {batch_size}; it must be at least 1")
        self.acoustic = acoustic
        self.frontend = frontend
        self.tokenizer = tokenizer
        self.decoder = decoder
        self.frame_seconds = frame_seconds
        self.min_samples = min_samples
        self.batch_size = batch_size
        self._name = name
        self._windows: Windows | None = None
        if chunk_seconds:
            self._windows = Windows.of_seconds(chunk_seconds, overlap_seconds, frame_seconds, frontend.sample_rate)

    @property
    def name(self) -> str:
        """What reports call it."""
        return self._name

    @property
    def sample_rate(self) -> int:
        """Samples per second that the waves must have."""
        return self.frontend.sample_rate

    def transcribe(self, waves: Sequence[Waveform]) -> list[Transcript]:
        """Transcribe a batch; the text of each is the same as when it is transcribed alone.

        Raises AudioError, naming the wave by its index, when one is empty, not mono, or holds NaN.
        """
        check_waves(waves)
        results: dict[int, Decoded] = {}
        for i, logprobs in self._short(waves):
            results[i] = decode(self.decoder, self.tokenizer, logprobs)
        for i, wave in enumerate(waves):
            if i not in results:
                results[i] = self._decode_long([wave])
        return [self._transcript(results[i], wave.size) for i, wave in enumerate(waves)]

    def transcribe_stream(self, blocks: Iterable[Waveform]) -> Transcript:
        """Transcribe one recording that comes in blocks of any size; memory does not grow with its length."""
        size = 0

        def counted() -> Iterator[Waveform]:
            nonlocal size
            for block in blocks:
                size += block.size
                yield block

        decoded = self._decode_long(counted())
        return self._transcript(decoded, size)

    def transcribe_file(self, path: str | Path, *, start: float = 0.0, duration: float | None = None) -> Transcript:
        """Transcribe an audio file of any length, rate and channel count, or a segment of it, block by block.

        Times are counted from ``start``. Raises AudioError, naming the file, when it cannot be used.
        """
        # Here, so that importing this module loads no audio library.
        from quantasr.speech.audio import stream_audio

        blocks = stream_audio(Path(path), self.sample_rate, BLOCK_SECONDS, start=start, duration=duration)
        return self.transcribe_stream(blocks)

    def logprobs(self, waves: Sequence[Waveform]) -> list[NDArray[np.float32]]:
        """What the acoustic model says of each wave, ``[frames, vocab]``; windows of long ones are joined."""
        check_waves(waves)
        found = dict(self._short(waves))
        return [found[i] if i in found else np.concatenate(list(self._long([w]))) for i, w in enumerate(waves)]

    def encoder_call(self, wave: Waveform) -> Callable[[], object]:
        """A call that runs the acoustic model alone on the features of one wave, to be timed."""
        check_waves([wave])
        features = collate([self.frontend(self._filled(wave))], self.frontend.padding_value)
        return lambda: self.acoustic(*features)

    def _decode_long(self, blocks: Iterable[Waveform]) -> Decoded:
        stream = self.decoder.stream(self.tokenizer)
        for logprobs in self._long(blocks):
            stream.accept(logprobs)
        return stream.finish()

    def _short(self, waves: Sequence[Waveform]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(index, logprobs) of the waves that fit in one window, batched, in the order of the batches."""
        limit = self._windows.length if self._windows else np.inf
        sizes = sorted((wave.size, i) for i, wave in enumerate(waves) if wave.size <= limit)
        for batch in self._batches([i for _, i in sizes], waves):
            yield from zip(batch, self._run([waves[i] for i in batch]), strict=True)

    def _long(self, blocks: Iterable[Waveform]) -> Iterator[NDArray[np.float32]]:
        """Log-probabilities of one recording of any length, in pieces."""
        if self._windows is None:
            yield from self._run([np.concatenate([np.zeros(0, np.float32), *blocks])])
            return
        yield from join(self._run_windows(self._windows, blocks), self.tokenizer)

    def _run_windows(self, windows: Windows, blocks: Iterable[Waveform]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        cut = windows.cut(blocks)
        while some := list(islice(cut, self.batch_size)):
            waves = [window.wave for window in some]
            for batch in self._batches(list(range(len(some))), waves):
                for i, logprobs in zip(batch, self._run([waves[i] for i in batch]), strict=True):
                    yield some[i].start // windows.hop, logprobs

    def _batches(self, order: list[int], waves: Sequence[Waveform]) -> Iterator[list[int]]:
        """``order`` cut in batches; of equal lengths only, where padding would change the result."""
        alike = [order]
        if not self.acoustic.padded_batches:
            alike = [list(group) for _, group in groupby(order, key=lambda i: max(waves[i].size, self.min_samples))]
        for group in alike:
            for start in range(0, len(group), self.batch_size):
                yield group[start : start + self.batch_size]

    def _run(self, waves: Sequence[Waveform]) -> list[NDArray[np.float32]]:
        """Log-probabilities of one batch."""
        features = [self.frontend(self._filled(wave)) for wave in waves]
        logprobs, frames = self.acoustic(*collate(features, self.frontend.padding_value))
        found = [row[:count] for row, count in zip(logprobs, frames.tolist(), strict=True)]
        if any(np.isnan(row).any() for row in found):
            raise ModelLoadError(f"model '{self.name}' gives NaN log-probabilities; its weights or scales are damaged")
        return found

    def _filled(self, wave: Waveform) -> Waveform:
        if wave.size == 0:
            raise AudioError("recording has no samples")
        return np.pad(wave, (0, max(0, self.min_samples - wave.size)))

    def _transcript(self, decoded: Decoded, samples: int) -> Transcript:
        duration = samples / self.sample_rate
        # Zeros that filled up a short recording are no part of it.
        words = (
            Word(w.text, min(w.start * self.frame_seconds, duration), min(w.end * self.frame_seconds, duration))
            for w in decoded.words
        )
        return Transcript(decoded.text, duration, tuple(words), decoded.score)


def check_waves(waves: Sequence[Waveform]) -> None:
    """Raise AudioError, naming the wave by its index, unless all are mono, finite, and have samples."""
    for i, wave in enumerate(waves):
        if wave.ndim != 1 or wave.size == 0:
            raise AudioError(f"wave {i}: shape {list(wave.shape)}; one channel with at least one sample is needed")
        if not np.isfinite(wave).all():
            raise AudioError(f"wave {i}: holds NaN or infinite samples; the recording is damaged")
