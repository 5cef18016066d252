"""Long recordings cut where they are quietest, for searches that take a whole recording at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import RecipeError
from quantasr.speech.transcript import Waveform

_PAUSE_SECONDS = 0.2
_REST_SECONDS = 1.0  # a decoder makes things up for a rest shorter than a word


class PauseCutter:
    """Cuts what is longer than ``chunk_seconds`` in the second half of each piece; 0 never cuts."""

    def __init__(self, chunk_seconds: float, sample_rate: int) -> None:
        """Raises RecipeError for pieces too short to hold a pause."""
        if chunk_seconds and chunk_seconds < 4 * _REST_SECONDS:
            raise RecipeError(f"chunk_seconds is {chunk_seconds}; give {4 * _REST_SECONDS:.0f} or more, or 0")
        self._rate = sample_rate
        self._limit = round(chunk_seconds * sample_rate)

    def __call__(self, blocks: Iterable[Waveform]) -> Iterator[Waveform]:
        """The recording in pieces, which together are the recording; one of them is held at a time."""
        rest = np.zeros(0, np.float32)
        margin = round(_REST_SECONDS * self._rate)
        for block in blocks:
            rest = np.concatenate([rest, block])
            while self._limit and rest.size >= self._limit + margin:
                cut = self._quietest(rest, self._limit)
                yield rest[:cut]
                rest = rest[cut:]
        if self._limit and rest.size > self._limit:
            cut = self._quietest(rest, rest.size - margin)
            yield rest[:cut]
            rest = rest[cut:]
        if rest.size:
            yield rest

    def _quietest(self, wave: Waveform, end: int) -> int:
        """Where to cut: the middle of the quietest fifth of a second between half of the limit and ``end``."""
        begin, width = self._limit // 2, round(_PAUSE_SECONDS * self._rate)
        total: NDArray[np.float64] = np.cumsum(np.square(wave[begin:end], dtype=np.float64))
        return begin + int(np.argmin(total[width:] - total[:-width])) + width // 2
