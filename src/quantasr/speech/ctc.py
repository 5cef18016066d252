"""A CTC recogniser: samples in, text out, around whatever computes the log-probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from quantasr.speech.decoding import CtcDecoder, Decoded, GreedyDecoder, decode
from quantasr.speech.frames import AcousticModel, FrameTranscriber, check_waves
from quantasr.speech.fronted import CountedBlocks
from quantasr.speech.frontend import Frontend
from quantasr.speech.long_form import Windows, join
from quantasr.speech.tokenizer import Tokenizer
from quantasr.speech.transcript import Transcript, Waveform, Word

GREEDY = GreedyDecoder()


class CtcTranscriber(FrameTranscriber):
    """A :class:`~quantasr.speech.transcript.Transcriber` around an acoustic model.

    ``frame_seconds`` is the time from one output frame to the next. Recordings longer than ``chunk_seconds`` are cut
    in windows that share ``overlap_seconds`` (see :mod:`quantasr.speech.long_form`); 0 never cuts. Recordings shorter
    than ``min_samples``, the model's receptive field, are filled up with zeros.
    """

    def __init__(
        self,
        acoustic: AcousticModel,
        frontend: Frontend,
        tokenizer: Tokenizer,
        *,
        name: str,
        frame_seconds: float,
        min_samples: int,
        decoder: CtcDecoder = GREEDY,
        chunk_seconds: float = 30.0,
        overlap_seconds: float = 5.0,
        batch_size: int = 1,
    ) -> None:
        super().__init__(
            acoustic,
            frontend,
            name=name,
            frame_seconds=frame_seconds,
            min_samples=min_samples,
            batch_size=batch_size,
        )
        self.tokenizer = tokenizer
        self.decoder = decoder
        self._windows: Windows | None = None
        if chunk_seconds:
            self._windows = Windows.of_seconds(chunk_seconds, overlap_seconds, frame_seconds, frontend.sample_rate)

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
        counted = CountedBlocks(blocks)
        decoded = self._decode_long(counted)
        return self._transcript(decoded, counted.size)

    def logprobs(self, waves: Sequence[Waveform]) -> list[NDArray[np.float32]]:
        """What the acoustic model says of each wave, ``[frames, vocab]``; windows of long ones are joined."""
        check_waves(waves)
        found = dict(self._short(waves))
        return [found[i] if i in found else np.concatenate(list(self._long([w]))) for i, w in enumerate(waves)]

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

    def _transcript(self, decoded: Decoded, samples: int) -> Transcript:
        duration = samples / self.sample_rate
        # Zeros that filled up a short recording are no part of it.
        words = (
            Word(w.text, min(w.start * self.frame_seconds, duration), min(w.end * self.frame_seconds, duration))
            for w in decoded.words
        )
        return Transcript(decoded.text, duration, tuple(words), decoded.score)
