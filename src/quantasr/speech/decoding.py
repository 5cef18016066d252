"""From the log-probabilities of a CTC model to text: what a decoder is, and the greedy one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quantasr.speech.tokenizer import Tokenizer, WordSpan


@dataclass(frozen=True)
class Decoded:
    """Text of one recording, its words with their frames, and the mean log-probability per frame (nats)."""

    text: str
    words: tuple[WordSpan, ...]
    score: float | None
    frames: int


class DecodeStream(Protocol):
    """One recording being decoded, piece by piece, in memory that its log-probabilities do not fill."""

    def accept(self, logprobs: NDArray[np.float32]) -> None:
        """Take the next frames, ``[frames, vocab]``."""
        ...

    def finish(self) -> Decoded:
        """The result; nothing can be accepted afterwards."""
        ...


class CtcDecoder(Protocol):
    """A way from log-probabilities to text."""

    def stream(self, tokenizer: Tokenizer) -> DecodeStream:
        """Begin a recording."""
        ...


def decode(decoder: CtcDecoder, tokenizer: Tokenizer, logprobs: NDArray[np.float32]) -> Decoded:
    """Decode a whole recording, ``[frames, vocab]``."""
    stream = decoder.stream(tokenizer)
    stream.accept(logprobs)
    return stream.finish()


@dataclass(frozen=True)
class GreedyDecoder:
    """The best token of each frame; repeats merged, then blanks taken out (Graves et al., 2006, section 3.2)."""

    def stream(self, tokenizer: Tokenizer) -> GreedyStream:
        """Begin a recording."""
        return GreedyStream(tokenizer)


class GreedyStream:
    """Keeps a few integers per token; see :class:`DecodeStream`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._runs: list[NDArray[np.int64]] = []  # closed runs of non-blank tokens: rows of (id, start, end)
        self._open: NDArray[np.int64] = np.zeros((0, 3), np.int64)  # the last run: the next frames may prolong it
        self._frames = 0
        self._logprob = 0.0

    def accept(self, logprobs: NDArray[np.float32]) -> None:
        """Take the next frames, ``[frames, vocab]``."""
        if len(logprobs) == 0:
            return
        ids = logprobs.argmax(axis=1)
        self._logprob += float(np.take_along_axis(logprobs, ids[:, None], axis=1).sum(dtype=np.float64))
        runs = collapse(ids, self._frames)
        if len(self._open) and self._open[0, 0] == runs[0, 0]:
            runs[0, 1] = self._open[0, 1]
        else:
            self._close(self._open)
        self._close(runs[:-1])
        self._open = runs[-1:]
        self._frames += len(ids)

    def finish(self) -> Decoded:
        """The result; see :class:`Decoded`."""
        self._close(self._open)
        self._open = self._open[:0]
        ids, starts, ends = np.concatenate([*self._runs, self._open]).T.tolist()
        return Decoded(
            text=self._tokenizer.decode(ids),
            words=self._tokenizer.words(ids, starts, ends),
            score=self._logprob / self._frames if self._frames else None,
            frames=self._frames,
        )

    def _close(self, runs: NDArray[np.int64]) -> None:
        kept = runs[runs[:, 0] != self._tokenizer.blank_id]
        if len(kept):
            self._runs.append(kept)


def collapse(ids: NDArray[np.int64], offset: int = 0) -> NDArray[np.int64]:
    """Runs of equal ids, as rows of (id, first frame, frame after the last); frames are counted from ``offset``."""
    changes = np.flatnonzero(ids[1:] != ids[:-1]) + 1
    edges = np.concatenate([[0], changes, [len(ids)]])
    runs: NDArray[np.int64] = np.stack([ids[edges[:-1]], edges[:-1] + offset, edges[1:] + offset], axis=1)
    return runs.astype(np.int64, copy=False)
