"""Synthetic speech, one tone a token, and an acoustic model that hears it, badly near the edges of what it is given."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

from quantasr.speech.tokenizer import Tokenizer

RATE = 8000
HOP = 160
FRAME_SECONDS = HOP / RATE
LETTERS = "abcdefgh"
TOKENIZER = Tokenizer(("<pad>", "|", *LETTERS), blank_id=0, special_ids=frozenset({0}))
EDGE_FRAMES = 25  # half a second

_PHASES = 2 * np.pi * np.arange(HOP)[:, None] / HOP * (np.arange(1, len(TOKENIZER)) * 4)
TONES = np.concatenate([np.zeros((HOP, 1)), np.sin(_PHASES)], axis=1).astype(np.float32)  # [HOP, vocab]
# This stands at the true beginning and the true end, where a real model hears no cut either.
BORDER = np.full(2 * HOP, 0.01, np.float32)


def random_words(rng: np.random.Generator, count: int) -> list[str]:
    """Words of 1 to 7 letters, with doubled letters and the same word several times in a row."""
    words: list[str] = []
    while len(words) < count:
        word = "".join(rng.choice(list(LETTERS), size=rng.integers(1, 8)))
        words += [word] * (rng.integers(2, 6) if rng.random() < 0.1 else 1)
    return words[:count]


def frames_of(word: str, rng: np.random.Generator, pause: int) -> list[int]:
    """Token of each frame: letters of one or two frames, up to two blanks between them, the delimiter, a pause."""
    frames: list[int] = []
    for letter in word:
        frames += [2 + LETTERS.index(letter)] * rng.integers(1, 3) + [0] * rng.integers(1, 3)
    return frames + [1] + [0] * rng.integers(1, pause + 1)


def speak(words: list[str], rng: np.random.Generator, pause: int = 30, block: int = 7777) -> Iterator[np.ndarray]:
    """The recording of the words, in blocks, never as a whole."""
    held = BORDER
    for word in words:
        long_pause = 500 if rng.random() < 0.005 else pause
        held = np.concatenate([held, TONES.T[frames_of(word, rng, long_pause)].ravel()])
        while len(held) > block:
            yield held[:block]
            held = held[block:]
    yield np.concatenate([held, BORDER])


class FakeAcoustic:
    """Hears each tone as its token, a frame early or late; within half a second of a cut edge it hears anything.

    Where a token falls depends on the window, as it does with a real model. ``calls`` are the batches it was given.
    """

    def __init__(self, padded_batches: bool = True, edges: bool = True) -> None:
        self.padded_batches = padded_batches
        self.edges = edges
        self.calls: list[tuple[int, ...]] = []

    def __call__(self, features: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.calls.append(tuple(lengths.tolist()))
        if not self.padded_batches:
            assert len(set(lengths.tolist())) == 1, "padded, though padding changes the result"
        rows = [self._hear(row[:n]) for row, n in zip(features, lengths, strict=True)]
        batch = np.full((len(rows), max(map(len, rows)), len(TOKENIZER)), 7.0, np.float32)
        for out, row in zip(batch, rows, strict=True):
            out[: len(row)] = row
        return batch, np.array([len(row) for row in rows], np.int64)

    def _hear(self, wave: np.ndarray) -> np.ndarray:
        # As a stack of convolutions does, it gives one frame less than there is time for.
        count = len(wave) // HOP - 1
        rng = np.random.default_rng(zlib.crc32(wave[: 20 * HOP].tobytes()))
        heard = np.abs(wave[: count * HOP].reshape(count, HOP) @ TONES)
        ids = np.where(heard.max(axis=1) > HOP / 4, heard.argmax(axis=1), 0)
        if self.edges:
            ids = self._shift(ids, rng)
            garbage = rng.integers(0, len(TOKENIZER), size=(2, EDGE_FRAMES))
            if not np.array_equal(wave[:HOP], BORDER[:HOP]):
                ids[:EDGE_FRAMES] = garbage[0, : len(ids)]
            if not np.array_equal(wave[-HOP:], BORDER[:HOP]):
                ids[-EDGE_FRAMES:] = garbage[1, : len(ids)]
        # Sure of what it hears, a little less so of silence close to a sound.
        logits = rng.normal(size=(count, len(TOKENIZER))).astype(np.float32) * 0.3
        logits[np.arange(count), ids] += 6
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    @staticmethod
    def _shift(ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Every token up to a frame early or late, a delimiter up to the whole pause late; order and gaps stay."""
        starts = np.flatnonzero((ids != 0) & (np.diff(ids, prepend=0) != 0))
        shifted = np.zeros_like(ids)
        moves = rng.integers(-1, 2, size=len(starts))
        free = 0
        for k, start in enumerate(starts):
            next_start = starts[k + 1] if k + 1 < len(starts) else len(ids)
            if ids[start] == 1:
                moves[k] = rng.integers(0, max(1, next_start - start - 1))
            at = max(free, start + moves[k])
            if at < len(ids):
                shifted[at] = ids[start]
            free = at + 2 if k + 1 < len(starts) and ids[next_start] == ids[start] else at + 1
        return shifted
