"""Greedy search of transducers: many recordings advance together, each as it would alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantasr.speech.transducer.hypothesis import Hypothesis
from quantasr.speech.transducer.network import Floats, Network
from quantasr.speech.transducer.options import TransducerOptions

BLOCK = 8
"""Frames that the joiner looks at in one call: so that a stretch of blanks costs one call, not one for each frame."""


class GreedySearch:
    """Takes the best token at each place, and of a TDT model the best duration (arXiv 2406.06220, section 3).

    A recording may come in pieces; ``rows`` recordings are searched at once.
    """

    def __init__(self, network: Network, options: TransducerOptions, rows: int) -> None:
        self._network = network
        self._max_symbols = options.max_symbols
        self._penalty = options.blank_penalty + options.length_bonus
        self._prediction, self._state = network.start(rows)
        self._time = np.zeros(rows, np.int64)  # the next frame of each, in this piece
        self._here = [0] * rows  # tokens that this frame already has
        self.found = [Hypothesis() for _ in range(rows)]

    def accept(self, encoded: Floats, counts: NDArray[np.int64]) -> None:
        """Take the next frames, ``[rows, frames, H]``, of which ``counts`` ``[rows]`` are speech."""
        time, network = self._time, self._network
        ahead = np.arange(BLOCK)
        while (rows := np.flatnonzero(time < counts)).size:
            at = np.minimum(time[rows, None] + ahead, counts[rows, None] - 1)
            scores = network.join(encoded[rows[:, None], at], self._prediction[rows])
            spoken = self._walk(rows, scores, counts)
            if spoken:
                some = np.array(list(spoken))
                state = {name: values[some] for name, values in self._state.items()}
                prediction, state = network.step(np.array(list(spoken.values())), state)
                self._prediction[some] = prediction
                for name, values in state.items():
                    self._state[name][some] = values
        time -= counts
        for row, count in enumerate(counts.tolist()):
            self.found[row].heard += count

    def finish(self) -> list[Hypothesis]:
        """What was found; nothing can be accepted afterwards."""
        return self.found

    def _walk(self, rows: NDArray[np.int64], scores: Floats, counts: NDArray[np.int64]) -> dict[int, int]:
        """Go on in each row to its next token, or through the block; row -> token where there is one."""
        network = self._network
        blank, timed = network.blank, len(network.durations) > 1
        if self._penalty:
            scores[..., blank] -= self._penalty
        best, logprobs = _best(scores[..., : blank + 1])
        network.check(logprobs)
        lasting, total = (best == blank).astype(np.int64), logprobs
        if timed:
            choice, sure = _best(scores[..., blank + 1 :])
            lasting, total = network.durations[choice], logprobs + sure
        spoken = {}
        for i, row in enumerate(rows.tolist()):
            found, place, end = self.found[row], 0, min(BLOCK, int(counts[row] - self._time[row]))
            decisions = list(zip(best[i].tolist(), lasting[i].tolist(), logprobs[i].tolist(), strict=True))
            while place < end:
                token, frames, logprob = decisions[place]
                found.score += float(total[i, place])
                if token == blank:
                    frames = max(1, frames)
                    found.path.append((blank, frames))
                    place += frames
                    self._here[row] = 0
                    continue
                spoken[row] = token
                found.tokens.append(token)
                found.frames.append(found.heard + int(self._time[row]) + place)
                found.durations.append(frames if timed else 1)
                found.logprobs.append(logprob)
                self._here[row] = 0 if frames else self._here[row] + 1
                if self._here[row] >= self._max_symbols:
                    frames, self._here[row] = 1, 0
                found.path.append((token, frames))
                place += frames
                break
            self._time[row] += place
        return spoken


def _best(scores: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Where the last axis is largest, and the log-softmax there."""
    largest = scores.max(-1)
    logprobs: Floats = -np.log(np.exp(scores - largest[..., None]).sum(-1))
    return scores.argmax(-1), logprobs
