"""One token after another: the most probable, or drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantasr.speech.whisper.decoder import DecoderState, WhisperDecoder
from quantasr.speech.whisper.rules import Rules

_LOOK = 16  # tokens between two looks for a loop
_LOOP_TOKENS = 60
_LOOP_ROUNDS = 4


@dataclass(frozen=True)
class Hypothesis:
    """What was written in one window, without prompt and end.

    ``logprob`` is that of all tokens together and of the end, if it was written (``ended``). ``loops``: it was given up
    because it went round in circles.
    """

    tokens: tuple[int, ...]
    logprob: float
    ended: bool
    loops: bool = False

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
    loop_before: int | None = None,
) -> Hypothesis:
    """Write up to ``limit`` tokens from ``state`` on, whose next logits are ``first`` ``[vocabulary]``.

    With a ``temperature`` tokens are drawn by ``random``. It gives up a text that repeats itself in its tokens before
    ``loop_before``, if that is given.
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
        if loop_before is not None and len(written) % _LOOK == 0 and loop_period(written, loop_before):
            return Hypothesis(tuple(written), total, False, True)
        steps, state = decoder.step(state, np.array([[token]], np.int64), (0,))
        logits = steps[0, 0]


def _drawn(logits: NDArray[np.float32], best: float, temperature: float, random: np.random.Generator) -> int:
    """A token drawn with the probabilities of ``logits / temperature``."""
    sums = np.cumsum(np.exp((logits - best) / np.float32(temperature)), dtype=np.float64)
    return int(np.searchsorted(sums, random.random() * sums[-1], side="right"))


def loop_period(written: Sequence[int], before: int) -> int:
    """How many tokens the end of ``written`` repeats, 4 times or more over 60 tokens; 0 if it does not.

    Only tokens less than ``before`` count: time stamps go on while the text stands still.
    """
    tail = [token for token in written[-2 * _LOOP_TOKENS :] if token < before][-_LOOP_TOKENS:]
    if len(tail) < _LOOP_TOKENS:
        return 0
    periods = range(1, _LOOP_TOKENS // _LOOP_ROUNDS + 1)
    return next((period for period in periods if tail[period:] == tail[:-period]), 0)


def without_loop(written: Sequence[int], before: int) -> tuple[int, ...]:
    """``written`` up to where its loop has gone round once."""
    period = loop_period(written, before)
    if not period:
        return tuple(written)
    places = [i for i, token in enumerate(written) if token < before]
    last = len(places)
    while last >= 2 * period and all(
        written[places[last - 1 - i]] == written[places[last - 1 - i - period]] for i in range(period)
    ):
        last -= period
    return tuple(written[: places[last - 1] + 1])
