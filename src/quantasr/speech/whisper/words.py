"""When each word was said: cross attention, aligned with the audio by dynamic time warping."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quantasr.speech.parts import Arrays
from quantasr.speech.transcript import Word
from quantasr.speech.whisper.segments import TIME_STEP
from quantasr.speech.whisper.tokenizer import WhisperTokenizer
from quantasr.speech.whisper.window import WindowSearch


def word_times(
    window: WindowSearch,
    tokenizer: WhisperTokenizer,
    cross: Arrays,
    text: Sequence[int],
    language: str | None,
    *,
    steps: int,
    offset: float,
) -> list[Word]:
    """Words of the ``text`` tokens of a window that began at ``offset`` seconds and holds ``steps`` encoder frames.

    As OpenAI's ``whisper/timing.py``: the text is read once more, and the heads that align are normalised over the
    tokens, smoothed over time and averaged. A word's confidence is the mean probability of its tokens.
    """
    facts = window.facts
    prompt = window.prompt(language, timestamps=False)
    if not text:
        return []
    # The end is read too, unless the text has come as far as it may: it takes part in the heads' means alone.
    read = np.array([[*prompt, *text, facts.end][: facts.max_length]], np.int64)
    rows = range(len(prompt) - 1, len(prompt) - 1 + len(text))
    found = window.decoder.call(window.decoder.begin(cross), read, rows)
    attention = smoothed(found["alignment"][0, :, :, : max(1, steps)], facts.median_filter_width)
    starts = token_steps(attention[len(prompt) - 1 : len(prompt) + len(text)]) * TIME_STEP
    scores = found["logits"][0, :, : facts.end].astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    probabilities = np.exp(scores[np.arange(len(text)), text]) / np.exp(scores).sum(axis=1)
    return [
        Word(
            word.text.strip(),
            offset + float(starts[word.start]),
            offset + float(starts[word.end]),
            float(probabilities[word.start : word.end].mean()),
        )
        for word in tokenizer.words(text, language)
        if word.text.strip()
    ]


def smoothed(weights: NDArray[np.float32], width: int) -> NDArray[np.float64]:
    """Attention ``[heads, tokens, frames]`` -> how strongly each token is at each frame, ``[tokens, frames]``."""
    heard = weights.astype(np.float64)
    heard /= heard.sum(axis=2, keepdims=True)
    deviation = heard.std(axis=1, keepdims=True)
    heard = (heard - heard.mean(axis=1, keepdims=True)) / np.where(deviation > 0, deviation, 1.0)
    reach = width // 2
    if heard.shape[2] > reach:
        padded = np.pad(heard, ((0, 0), (0, 0), (reach, reach)), mode="reflect")
        heard = np.median(np.lib.stride_tricks.sliding_window_view(padded, width, axis=2), axis=3)
    found: NDArray[np.float64] = heard.mean(axis=0)
    return found


def token_steps(attention: NDArray[np.float64]) -> NDArray[np.int64]:
    """The frame at which each row of ``attention`` ``[tokens, frames]`` is entered on the best monotonic path."""
    path = best_path(-attention)
    entered = np.flatnonzero(np.diff(path[0], prepend=-1))
    steps: NDArray[np.int64] = path[1][entered]
    return steps


def best_path(costs: NDArray[np.float64]) -> NDArray[np.int64]:
    """The cheapest path from the first to the last cell of ``[rows, columns]``, as ``[2, cells]``.

    Dynamic time warping: it goes on by a row, a column, or both. Computed along the diagonals, whose cells do not
    depend on each other.
    """
    rows, columns = costs.shape
    # diagonal[d, i] is the cell (i, d - i).
    diagonals = np.zeros((rows + columns - 1, rows))
    for i in range(rows):
        diagonals[i : i + columns, i] = costs[i]
    moves = np.full((rows + columns - 1, rows), 2, np.int8)
    before, last = np.full(rows + 1, np.inf, np.float32), np.full(rows + 1, np.inf, np.float32)
    before[0] = 0.0  # entry 0 stands for the row above the first
    for d in range(rows + columns - 1):
        both, row, column = before[:-1], last[:-1], last[1:]
        moves[d] = np.where((both < row) & (both < column), 0, np.where((row < both) & (row < column), 1, 2))
        cheapest = np.choose(moves[d], (both, row, column))
        inside = slice(max(0, d - columns + 1), min(rows, d + 1))
        entered = np.full(rows + 1, np.inf, np.float32)
        entered[1:][inside] = diagonals[d, inside] + cheapest[inside]
        before, last = last, entered
    path = []
    i, j = rows - 1, columns - 1
    while i >= 0 and j >= 0:
        path.append((i, j))
        move = 2 if i == 0 else 1 if j == 0 else moves[i + j, i]
        i, j = i - (move in (0, 1)), j - (move in (0, 2))
    return np.array(path[::-1], np.int64).T
