"""The features of a long recording, a window at a time, as it streams in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from quantasr.speech.frontend.whisper_mel import SILENCE, WhisperMelFrontend
from quantasr.speech.transcript import Waveform


class LevelStream:
    """log10 powers of a recording longer than a window: those of the whole, with no more than two windows held.

    Windows are normalised by the ``loudest`` value of the recording where it is known, else of what was heard so far.
    """

    def __init__(self, frontend: WhisperMelFrontend, blocks: Iterable[Waveform], loudest: float | None = None) -> None:
        self._frontend = frontend
        self._blocks: Iterator[Waveform] = iter(blocks)
        self._half = frontend.fft_length // 2
        self._padded = np.zeros(0, np.float32)  # samples that the next rows need, reflected at the recording's ends
        self._rows = np.zeros((0, frontend.num_mel_bins), np.float32)
        self._first = 0  # which row of the recording is the first that is held
        self._ended = False
        self._loudest = loudest
        self._so_far = SILENCE
        self.samples = 0

    def window(self, start: int, frames: int) -> NDArray[np.float32]:
        """Rows from ``start`` on, at most ``frames``, fewer at the end; earlier ones are then forgotten."""
        while not self._ended and self._first + len(self._rows) < start + frames:
            self._read()
        forgotten = min(start - self._first, len(self._rows))
        self._rows, self._first = self._rows[forgotten:], self._first + forgotten
        return self._rows[:frames]

    def features(self, levels: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the model hears of rows of this recording."""
        return self._frontend.normalized(levels, self._so_far if self._loudest is None else self._loudest)

    def _read(self) -> None:
        """Take the next block, or the end."""
        block = next(self._blocks, None)
        if block is None:
            self._ended = True
            tail = self._padded[-self._half - 1 : -1]
            self._padded = np.concatenate([self._padded, tail[::-1]])
        else:
            self.samples += block.size
            self._padded = np.concatenate([self._padded, block])
            if self.samples - block.size <= self._half < self.samples:
                self._padded = np.concatenate([self._padded[self._half : 0 : -1], self._padded])
        self._transform()

    def _transform(self) -> None:
        """Make rows of the samples that suffice for some."""
        hop, made = self._frontend.hop_length, self._first + len(self._rows)
        if self.samples <= self._half:
            return
        count = (len(self._padded) - self._frontend.fft_length) // hop + 1
        if self._ended:
            count = min(count, self.samples // hop - made)
        if count < 1:
            return
        rows = np.empty((count, self._rows.shape[1]), np.float32)
        self._frontend.transform(self._padded, rows)
        self._padded = self._padded[count * hop :]
        self._so_far = max(self._so_far, float(rows.max()))
        self._rows = np.concatenate([self._rows, rows])


def loudest_of(frontend: WhisperMelFrontend, wave: Waveform, block: int) -> float:
    """The largest log10 power of a long recording, which is read in blocks."""
    stream = LevelStream(frontend, (wave[i : i + block] for i in range(0, wave.size, block)))
    start, frames = 0, frontend.window_frames
    while len(stream.window(start, frames)):
        start += frames
    return stream._so_far
