"""Long recordings: cut in overlapping windows, and the windows' log-probabilities joined without a seam.

A window's edges lack context and cannot be trusted, so neighbours share an overlap, and the joined sequence changes
from one to the other at a frame well inside it, where both heard the same before and after.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import AudioError, RecipeError
from quantasr.speech.decoding import collapse
from quantasr.speech.tokenizer import Tokenizer

EDGE_SHARE = 0.25
"""How much of an overlap, at each of its ends, is never used for the seam."""

PAUSE_FRAMES = 15
"""A pause this long on both sides of a seam is as good as any longer one."""


EDIT = 50
"""What a token more, less or other costs; two equal tokens so many frames apart cost as much."""


class Window(NamedTuple):
    """A part of a recording; ``start`` is its first sample's place in the whole."""

    start: int
    wave: NDArray[np.float32]


@dataclass(frozen=True)
class Windows:
    """How to cut: ``length`` and ``overlap`` in samples, both multiples of ``hop``, the samples of one frame.

    So every window starts on a frame, and the frames of two windows coincide.
    """

    length: int
    overlap: int
    hop: int

    def __post_init__(self) -> None:
        if self.hop < 1 or self.length % self.hop or self.overlap % self.hop:
            raise RecipeError(f"window {self.length} and overlap {self.overlap} must be multiples of hop {self.hop}")
        # No more than a third: then the seams of even the two shortest windows lie apart.
        if not 8 * self.hop <= self.overlap <= self.length // 3:
            raise RecipeError(
                f"overlap of {self.overlap} samples: it must be at least 8 frames ({8 * self.hop} samples) "
                f"and at most a third of the window ({self.length // 3})"
            )

    @classmethod
    def of_seconds(cls, length: float, overlap: float, frame_seconds: float, sample_rate: int) -> Windows:
        """Seconds rounded down to whole frames; raises RecipeError when a frame is not a whole number of samples."""
        hop = round(frame_seconds * sample_rate)
        if hop < 1 or abs(hop - frame_seconds * sample_rate) > 1e-6 * hop:
            raise RecipeError(
                f"a frame of {frame_seconds} s is not a whole number of samples at {sample_rate} Hz; "
                "windows cannot be aligned: set chunk_seconds=0"
            )
        frames = sample_rate / hop
        return cls(int(length * frames + 1e-6) * hop, int(overlap * frames + 1e-6) * hop, hop)

    def cut(self, blocks: Iterable[NDArray[np.float32]]) -> Iterator[Window]:
        """Windows of a recording that comes in blocks of any size; at most two windows are held in memory.

        What is left at the end is shared equally by the last two, so that every window of a long recording is at
        least ``(length + overlap) / 2`` long. A recording no longer than ``length`` is one window.
        """
        step = self.length - self.overlap
        held: list[NDArray[np.float32]] = []
        size, start = 0, 0
        for block in blocks:
            held.append(_checked(block, start + size))
            size += block.size
            if size >= self.length + step:
                buffer, at = np.concatenate(held), 0
                while size - at >= self.length + step:
                    # A copy: a view would keep the whole buffer alive.
                    yield Window(start + at, buffer[at : at + self.length].copy())
                    at += step
                held, size, start = [buffer[at:].copy()], size - at, start + at
        rest = np.concatenate([np.zeros(0, np.float32), *held])
        if size <= self.length:
            yield Window(start, rest)
            return
        half = -(-(size + self.overlap) // (2 * self.hop)) * self.hop
        yield Window(start, rest[:half])
        yield Window(start + half - self.overlap, rest[half - self.overlap :])


def join(windows: Iterable[tuple[int, NDArray[np.float32]]], tokenizer: Tokenizer) -> Iterator[NDArray[np.float32]]:
    """(first frame, logprobs ``[frames, vocab]``) of the windows in order -> the frames of the whole, in pieces.

    At most two windows are held.
    """
    held: NDArray[np.float32] | None = None
    held_start = 0
    last: int | None = None  # the last token so far
    for start, logprobs in windows:
        if held is None:
            held, held_start = logprobs, start
            continue
        shared = held_start + len(held) - start
        if shared < 1:
            raise ValueError(f"windows do not overlap: one ends at frame {start + shared}, the next is at {start}")
        seam = find_seam(held[-shared:], logprobs[:shared], tokenizer)
        cut = len(held) - shared + seam
        before = _tokens(held[:cut].argmax(axis=1), tokenizer.blank_id)
        last = int(before[-1, 0]) if len(before) else last
        silence = cut - int(before[-1, 2]) if len(before) else cut
        yield held[:cut]
        held, held_start = mend(held[cut:], logprobs[seam:], last, silence, tokenizer), start + seam
    if held is not None:
        yield held


def mend(
    left: NDArray[np.float32], right: NDArray[np.float32], last: int | None, silence: int, tokenizer: Tokenizer
) -> NDArray[np.float32]:
    """The frames after a seam, ``right``, changed so that just one delimiter parts the words on both sides of it.

    Where in a pause the delimiter stands is left to chance: a window may put it where the other has cut. ``left`` is
    what the left window had for these frames, ``last`` the last token before the seam, ``silence`` the frames since.
    A delimiter is put in where ``left`` had one, or where the pause is too long to be within a word, and a second
    one is taken out. Where the windows agree nothing is changed.
    """
    blank, delimiters = tokenizer.blank_id, tokenizer.delimiter_ids
    none = (-1, len(right), len(right))
    expected, expected_at, _ = next(iter(_tokens(left.argmax(axis=1), blank).tolist()), none)
    first, begin, end = next(iter(_tokens(right.argmax(axis=1), blank).tolist()), none)
    if not delimiters or last is None or (first == expected and abs(begin - expected_at) <= PAUSE_FRAMES):
        return right
    if last in delimiters:
        return _swapped(right, slice(begin, end), first, blank) if first in delimiters else right
    if first in delimiters | tokenizer.word_start_ids or begin == 0:
        return right
    if expected in delimiters:
        return _swapped(right, slice(0, 1), expected, blank)
    if min(silence, begin) >= PAUSE_FRAMES and tokenizer.kind == "characters":
        return _swapped(right, slice(0, 1), min(delimiters), blank)
    return right


def _swapped(logprobs: NDArray[np.float32], rows: slice, a: int, b: int) -> NDArray[np.float32]:
    """A copy in which tokens a and b change places in some rows, so that each stays a distribution."""
    copy = logprobs.copy()
    copy[rows, [a, b]] = logprobs[rows, [b, a]]
    return copy


def find_seam(left: NDArray[np.float32], right: NDArray[np.float32], tokenizer: Tokenizer) -> int:
    """The frame of an overlap from which ``right`` replaces ``left``; both ``[frames, vocab]``, of the same frames.

    A seam is consistent when cutting both hypotheses there costs no edit more than their distance as a whole: then
    no token is lost or doubled, however the two are shifted against each other. Among the consistent frames, away
    from the ends, it takes the longest pause that both agree on, at its most confident, nearest the middle.
    """
    frames = len(left)
    left_ids, right_ids = left.argmax(axis=1), right.argmax(axis=1)
    blank = tokenizer.blank_id
    cost = _split_cost(_tokens(left_ids, blank), _tokens(right_ids, blank), frames)
    # The right window may not go on with a token that began before the seam, unless the left one ends with it.
    going_on = (right_ids[1:] == right_ids[:-1]) & (right_ids[1:] != blank) & (left_ids[:-1] != right_ids[1:])
    cost[1:] += going_on * frames

    silent = np.array(sorted({blank} | tokenizer.delimiter_ids))
    pause = np.minimum(_pause(np.isin(left_ids, silent)), _pause(np.isin(right_ids, silent)))
    doubt = -(_log_sum(left[:, silent]) + _log_sum(right[:, silent]))
    from_middle = np.abs(np.arange(frames) - frames / 2) / frames
    edge = max(1, int(frames * EDGE_SHARE))
    inner = slice(edge, max(frames - edge, edge + 1))
    rank = np.lexsort(((doubt + from_middle)[inner], -np.minimum(pause, PAUSE_FRAMES)[inner], cost[inner]))
    return edge + int(rank[0]) if len(rank) else 0


def _tokens(ids: NDArray[np.int64], blank: int) -> NDArray[np.int64]:
    """Rows of (id, first frame, end) of the tokens; blanks are left out."""
    runs = collapse(ids)
    tokens: NDArray[np.int64] = runs[runs[:, 0] != blank]
    return tokens


def _split_cost(left: NDArray[np.int64], right: NDArray[np.int64], frames: int) -> NDArray[np.int64]:
    """For each frame, the distance of what is before it in both, plus that of what is from it on in both."""
    before, after = _distances(left, right), _distances(left[::-1], right[::-1])[::-1, ::-1]
    at = np.arange(frames)
    i, j = np.searchsorted(left[:, 1], at), np.searchsorted(right[:, 1], at)
    cost: NDArray[np.int64] = before[i, j] + after[i, j]
    return cost


def _distances(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """``[i, j]`` is the edit distance of the first i tokens of ``a`` and the first j of ``b``, times ``EDIT``.

    Tokens are rows of (id, first frame, ...). Two that stand for each other cost their distance in frames on top, so
    that of a word said three times each is matched with itself (Wagner and Fischer, 1974, with such costs).
    """
    apart = np.minimum(np.abs(a[:, 1, None] - b[:, 1]), EDIT) + EDIT * (a[:, 0, None] != b[:, 0])
    added = EDIT * np.arange(len(b) + 1)
    table = np.empty((len(a) + 1, len(b) + 1), np.int64)
    table[0] = added
    for i, row in enumerate(apart):
        best = table[i] + EDIT
        best[1:] = np.minimum(best[1:], table[i, :-1] + row)
        # Each entry may also come from any entry before it, with tokens of b added.
        table[i + 1] = np.minimum.accumulate(best - added) + added
    return table


def _pause(silent: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For a seam before each frame, how many frames are silent on its shorter side."""
    at = np.arange(len(silent))
    spoken_before = np.maximum.accumulate(np.where(silent, -1, at))
    before = at - np.concatenate([[-1], spoken_before[:-1]]) - 1
    spoken_from = np.minimum.accumulate(np.where(silent, len(silent), at)[::-1])[::-1]
    pause: NDArray[np.int64] = np.minimum(before, spoken_from - at)
    return pause


def _log_sum(logprobs: NDArray[np.float32]) -> NDArray[np.float32]:
    total: NDArray[np.float32] = np.logaddexp.reduce(logprobs, axis=1)
    return total


def _checked(block: NDArray[np.float32], at: int) -> NDArray[np.float32]:
    if block.ndim != 1:
        raise AudioError(f"block at sample {at}: shape {list(block.shape)}; one channel is needed")
    if not np.isfinite(block).all():
        raise AudioError(f"block at sample {at}: holds NaN or infinite samples; the recording is damaged")
    return block
