"""CTC's probability that a text begins with a prefix, token by token (Watanabe et al., 2017, algorithm 2).

SpeechBrain's ``CTCPrefixScore`` goes frame by frame with forward probabilities of every token in the vocabulary. Here a
prefix's probability is one matrix product, and forward probabilities are computed of the tokens that the search takes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NEVER = -1e20
"""The log of what does not happen: a number that sums stay finite with."""

_TINY = 1e-280  # sums of exponentials that are smaller have lost digits
_AT_ONCE = 4096

Floats = NDArray[np.float64]


class CtcPrefix:
    """Scores of the next tokens of some hypotheses of one recording."""

    def __init__(self, logprobs: NDArray[np.float32], blank: int, eos: int, rows: int, window: int = 0) -> None:
        """``logprobs`` ``[frames, vocabulary]``. With ``window``, only so many frames around the attention count."""
        self._x = logprobs.astype(np.float64)
        self._odds = np.exp(self._x)
        self._blank, self._eos, self._window = blank, eos, window
        frames = len(self._x)
        # Log-probs of all paths that end in this frame and spell the prefix, [frames, rows]: in a token, in a blank.
        self._token = np.full((frames, rows), NEVER)
        self._pause = np.repeat(np.cumsum(self._x[:, blank])[:, None], rows, 1)
        self._psi = np.zeros(rows)
        self._length = -1
        self._span = (1, frames)

    def score(
        self,
        last: NDArray[np.int64],
        attention: NDArray[np.float32] | None = None,
        candidates: NDArray[np.int64] | None = None,
    ) -> Floats:
        """Log-probs ``[rows, vocabulary]`` of every next token and of the end, given the prefixes that end in ``last``.

        Tokens that are not among ``candidates`` ``[rows, n]`` do not happen.
        """
        self._length += 1
        self._last, self._span = last, self._frames(attention)
        start, end = self._span
        self._any = np.logaddexp(self._token, self._pause)
        before, odds = self._any[start - 1 : end - 1], self._odds[start:end]
        rows = np.arange(len(last))
        psi = self._sum(before, odds)
        # A token that is like the one before needs a blank between them.
        psi[rows, last] = _logsumexp(self._pause[start - 1 : end - 1] + self._x[start:end, last])
        if self._first:
            psi = np.logaddexp(psi, self._x[0])
        if candidates is not None:
            allowed = np.zeros(psi.shape, bool)
            allowed[rows[:, None], candidates] = True
            psi[~allowed] = NEVER
        psi[:, self._eos] = self._any[-1]
        psi[:, self._blank] = NEVER
        self._prefix = psi
        found: Floats = psi - self._psi[:, None]
        return found

    def advance(self, rows: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        """Go on with the prefixes of ``rows``, each with one of ``tokens`` behind it, after :meth:`score`."""
        start, end = self._span
        same = tokens == self._last[rows]
        before = np.where(same, self._pause[:, rows], self._any[:, rows])[start - 1 : end - 1]
        first = self._x[0, tokens] if self._first else np.full(len(rows), NEVER)
        token = _forward(first, before, self._x[start:end, tokens])
        pause = _forward(np.full(len(rows), NEVER), token[:-1], self._x[start:end, self._blank][:, None])
        self._psi = self._prefix[rows, tokens]
        shape = (len(self._x), len(rows))
        self._token, self._pause = np.full(shape, NEVER), np.full(shape, NEVER)
        self._token[start - 1 : end], self._pause[start - 1 : end] = token, pause

    @property
    def _first(self) -> bool:
        """Whether the prefix may begin with the first frame's token."""
        return self._length == 0 and self._span[0] == 1

    def _frames(self, attention: NDArray[np.float32] | None) -> tuple[int, int]:
        """The first and the last frame, not included, in which the next token may come."""
        start, end = max(1, self._length), len(self._x)
        if self._window and attention is not None:
            peaks = attention.argmax(-1)
            start = max(start, int(peaks.min()) - self._window)
            end = min(end, int(peaks.max()) + self._window)
        return start, max(start, end)

    def _sum(self, before: Floats, odds: Floats) -> Floats:
        """``logsumexp(before[:, :, None] + log(odds)[:, None], axis=0)`` as a product of matrices."""
        if not len(before):
            return np.full((before.shape[1], odds.shape[1]), NEVER)
        highest = before.max(0)
        sums = np.exp(before - highest).T @ odds
        lost = sums < _TINY
        found: Floats = highest[:, None] + np.log(np.where(lost, 1, sums))
        rows, tokens = np.nonzero(lost)
        start, end = self._span
        for i in range(0, len(rows), _AT_ONCE):
            some = slice(i, i + _AT_ONCE)
            found[rows[some], tokens[some]] = _logsumexp(before[:, rows[some]] + self._x[start:end, tokens[some]])
        return found


def _forward(first: Floats, before: Floats, x: Floats) -> Floats:
    """``found[t] = logaddexp(found[t - 1], before[t - 1]) + x[t]``, from ``first`` on; ``[1 + frames, rows]``."""
    total = np.concatenate([np.zeros((1, len(first))), np.cumsum(np.broadcast_to(x, before.shape), 0)])
    terms = np.concatenate([first[None], before - total[:-1]])
    found: Floats = np.logaddexp.accumulate(terms, 0) + total
    return found


def _logsumexp(x: Floats) -> Floats:
    """Over the first axis; :data:`NEVER` of nothing."""
    if not len(x):
        return np.full(x.shape[1:], NEVER)
    highest = x.max(0)
    found: Floats = highest + np.log(np.exp(x - highest).sum(0))
    return found
