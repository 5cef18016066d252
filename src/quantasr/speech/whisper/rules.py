"""Which tokens Whisper may write next: what is suppressed, and the grammar of its time stamps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quantasr.speech.whisper.options import WhisperFacts, WhisperOptions


class Rules:
    """The rules of Radford et al. (2022), section 2.3 and 3.8, as transformers' logits processors apply them.

    ``timestamps``: whether the model writes times. They then open and close each segment, never go back, and are taken
    whenever all of them together are more probable than the best text.
    """

    def __init__(self, facts: WhisperFacts, options: WhisperOptions, *, timestamps: bool) -> None:
        never = set(options.suppress_tokens) | ({facts.no_timestamps} if timestamps else set())
        self._never = np.array(sorted(never), np.intp)
        self._first = np.array(sorted(options.begin_suppress_tokens), np.intp)
        self._timestamps = timestamps
        self._begin = facts.timestamp_begin
        self._end = facts.end
        latest = options.max_initial_timestamp_index
        self._latest_first = None if latest is None else self._begin + latest + 1

    def apply(self, scores: NDArray[np.float32], written: Sequence[int]) -> None:
        """Set those of ``scores`` ``[vocabulary]`` to -inf that cannot follow what is ``written`` after the prompt."""
        scores[self._never] = -np.inf
        if not written:
            scores[self._first] = -np.inf
        if self._timestamps:
            self._apply_timestamps(scores, written)

    def _apply_timestamps(self, scores: NDArray[np.float32], written: Sequence[int]) -> None:
        begin = self._begin
        if not written:
            scores[:begin] = -np.inf
            if self._latest_first is not None:
                scores[self._latest_first :] = -np.inf
        else:
            last_is_time = written[-1] >= begin
            before_is_time = len(written) < 2 or written[-2] >= begin
            if last_is_time and before_is_time:
                scores[begin:] = -np.inf
            elif last_is_time:
                scores[: self._end] = -np.inf
            latest = next((token for token in reversed(written) if token >= begin), None)
            if latest is not None:
                # The end of a segment may be the start of the next; nothing else repeats a time.
                lowest = latest if last_is_time and not before_is_time else latest + 1
                scores[begin:lowest] = -np.inf
        self._prefer_times(scores)

    def _prefer_times(self, scores: NDArray[np.float32]) -> None:
        times, text = scores[self._begin :], scores[: self._begin]
        best = float(times.max(initial=-np.inf))
        if best == -np.inf:
            return
        together = best + float(np.log(np.exp(times - best).sum()))
        if together > float(text.max()):
            text[:] = -np.inf
