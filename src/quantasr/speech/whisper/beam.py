"""Beam search, as transformers' ``generate`` does it: the same hypotheses, the same end."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantasr.speech.whisper.decoder import DecoderState, WhisperDecoder
from quantasr.speech.whisper.greedy import Hypothesis
from quantasr.speech.whisper.rules import Rules

_BLOCK = 64  # scores whose largest is looked at before they are


def beam_search(
    decoder: WhisperDecoder,
    state: DecoderState,
    first: NDArray[np.float32],
    rules: Rules,
    *,
    end: int,
    limit: int,
    width: int,
    length_penalty: float,
) -> Hypothesis:
    """The best of ``width`` hypotheses of up to ``limit`` tokens, ranked by log-probability / length ** penalty.

    In every step the best ``2 * width`` continuations are looked at; those among the first ``width`` that end are
    finished. It stops when no open hypothesis at its present length beats the worst of ``width`` finished ones.
    """
    beams: list[tuple[int, ...]] = [()]
    sums = np.zeros(1, np.float32)
    logits = first[None]
    done: list[tuple[float, Hypothesis]] = []
    while True:
        scores = _scores(logits, beams, rules) + sums[:, None]
        found = _best(scores, 2 * width)
        length = len(beams[0]) + 1
        source: list[int] = []
        opened: list[tuple[int, ...]] = []
        kept: list[float] = []
        for rank, (value, row, token) in enumerate(found):
            written = beams[row] if token == end else (*beams[row], token)
            if token == end or length >= limit:
                if rank < width:
                    ranked = float(np.float32(value) / np.float32(length**length_penalty))
                    done.append((ranked, Hypothesis(written, value, token == end)))
            elif len(opened) < width:
                source.append(row)
                opened.append(written)
                kept.append(value)
        # Sorting is stable: of equals the one found first stays.
        done = sorted(done, key=lambda entry: -entry[0])[:width]
        full = len(done) == width
        if not opened or (full and kept[0] / length**length_penalty <= done[-1][0]):
            break
        if source != list(range(len(beams))):
            state = state.take(source)
        beams, sums = opened, np.array(kept, np.float32)
        tokens = np.array([[written[-1]] for written in beams], np.int64)
        steps, state = decoder.step(state, tokens, (0,))
        logits = steps[:, 0]
    return done[0][1]


def _scores(logits: NDArray[np.float32], beams: list[tuple[int, ...]], rules: Rules) -> NDArray[np.float32]:
    """Log-probabilities of all tokens, those that cannot follow at -inf; what is left is not normalised again."""
    best = logits.max(axis=1, keepdims=True)
    logits -= best + np.log(np.exp(logits - best).sum(axis=1, keepdims=True))
    for row, written in zip(logits, beams, strict=True):
        rules.apply(row, written)
    return logits


def _best(scores: NDArray[np.float32], count: int) -> list[tuple[float, int, int]]:
    """The ``count`` largest as (score, row, column), the largest first.

    They lie in the ``count`` blocks whose largest is largest, which is found faster than they are among all.
    """
    rows, columns = scores.shape
    blocks = -(-columns // _BLOCK)
    padded = np.full((rows, blocks * _BLOCK), -np.inf, np.float32)
    padded[:, :columns] = scores
    flat = padded.reshape(-1, _BLOCK)
    peaks = flat.max(axis=1)
    chosen = np.argpartition(-peaks, min(count, len(peaks)) - 1)[:count]
    chosen.sort()
    values = flat[chosen].ravel()
    order = np.argsort(-values, kind="stable")[:count]
    found: list[tuple[float, int, int]] = []
    for i in order.tolist():
        if found and values[i] == -np.inf:
            break
        row, column = divmod(int(chosen[i // _BLOCK]) * _BLOCK + i % _BLOCK, blocks * _BLOCK)
        found.append((float(values[i]), row, column))
    return found
