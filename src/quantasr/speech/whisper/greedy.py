"""One token after another: the most probable, or drawn at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantasr.speech.whisper.decoder import DecoderState, WhisperDecoder
from quantasr.speech.whisper.rules import Rules


@dataclass(frozen=True)
class Hypothesis:
    """What was written in one window, without prompt and end.

    ``logprob`` is that of all tokens together and of the end, if it was written (``ended``).
    """

    tokens: tuple[int, ...]
    logprob: float
    ended: bool

    @property
    def average(self) -> float:
        """Log-probability per token, the end counted."""
        return self.logprob / max(1, len(self.tokens) + self.ended)


def greedy(
    decoder: WhisperDecoder,
    state: DecoderState,
    first: NDArray[np.float32],
    rules: Rules,
    *,
    end: int,
    limit: int,
    temperature: float = 0.0,
    random: np.random.Generator | None = None,
) -> Hypothesis:
    """Write up to ``limit`` tokens from ``state`` on, whose next logits are ``first`` ``[vocabulary]``.

    With a ``temperature`` tokens are drawn by ``random``.
    """
    written: list[int] = []
    total = 0.0
    logits = first
    while True:
        rules.apply(logits, written)
        best = float(logits.max())
        weights = np.exp(logits - best)
        normalizer = float(np.log(weights.sum()))
        if temperature and random is not None:
            token = _drawn(logits, best, temperature, random)
            total += float(logits[token]) - best - normalizer
        else:
            token = int(logits.argmax())
            total -= normalizer
        if token == end:
            return Hypothesis(tuple(written), total, True)
        written.append(token)
        if len(written) >= limit:
            return Hypothesis(tuple(written), total, False)
        steps, state = decoder.step(state, np.array([[token]], np.int64), (0,))
        logits = steps[0, 0]


def _drawn(logits: NDArray[np.float32], best: float, temperature: float, random: np.random.Generator) -> int:
    """A token drawn with the probabilities of ``logits / temperature``."""
    sums = np.cumsum(np.exp((logits - best) / np.float32(temperature)), dtype=np.float64)
    return int(np.searchsorted(sums, random.random() * sums[-1], side="right"))
