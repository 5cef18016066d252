"""Beam search of transducers, synchronous in the number of decisions, for many recordings at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import RecipeError
from quantasr.speech.transducer.hypothesis import Hypothesis
from quantasr.speech.transducer.network import Floats, Network, log_softmax
from quantasr.speech.transducer.options import TransducerOptions

_MOST_BYTES = 1 << 30
"""Of one step's scores."""

_PRIME = np.uint64(1099511628211)


class _Step(NamedTuple):
    """One step of all hypotheses, each array ``[rows, beam]``: whom it went on from, what it decided, where it was."""

    parents: NDArray[np.int64]
    tokens: NDArray[np.int64]  # -1: nothing, it was through
    lasting: NDArray[np.int64]
    frames: NDArray[np.int64]
    logprobs: NDArray[np.float64]


class BeamSearch:
    """Alignment-length synchronous search (Saon et al., ICASSP 2020), where each step keeps the best of all.

    Every hypothesis takes one decision a step, a token or a blank, and of a TDT model its duration with it; those with
    the same tokens at the same place become one, whose probability is their sum. So does NeMo's ``malsd_batch``.
    """

    def __init__(self, network: Network, options: TransducerOptions, rows: int) -> None:
        self._network, self._options = network, options
        beam = options.beam_width
        self._prediction, self._state = network.start(rows * beam)
        self._scores = np.full((rows, beam), -np.inf)
        self._scores[:, 0] = 0.0
        self._time = np.zeros((rows, beam), np.int64)  # the next frame, in this piece
        self._here = np.zeros((rows, beam), np.int64)  # tokens that this frame already has
        self._length = np.zeros((rows, beam), np.int64)
        self._hash = np.zeros((rows, beam), np.uint64)
        self._heard = np.zeros(rows, np.int64)
        self._steps: list[_Step] = []

    @staticmethod
    def check(network: Network, options: TransducerOptions) -> None:
        """Raise RecipeError for a beam whose scores would not fit into memory."""
        each = (network.blank + 1) * len(network.durations) * 8 * 3
        widest = min(_MOST_BYTES // each, int((_MOST_BYTES // 64) ** 0.5))
        if options.beam_width > widest:
            raise RecipeError(
                f"beam_width is {options.beam_width}: too wide for memory; with {network.blank} tokens, "
                f"{widest} is the widest, and 2 to 8 are usual"
            )

    def accept(self, encoded: Floats, counts: NDArray[np.int64]) -> None:
        """Take the next frames, ``[rows, frames, H]``, of which ``counts`` ``[rows]`` are speech."""
        while True:
            active = (self._time < counts[:, None]) & np.isfinite(self._scores)
            if not active.any():
                break
            self._step(encoded, active)
        self._time -= counts[:, None]
        np.maximum(self._time, 0, out=self._time)
        self._heard += counts

    def finish(self) -> list[Hypothesis]:
        """The best of each recording; nothing can be accepted afterwards."""
        ranked = self._scores / (self._length + 1) if self._options.score_norm else self._scores
        return [self._trace(row, int(best)) for row, best in enumerate(ranked.argmax(-1))]

    def _step(self, encoded: Floats, active: NDArray[np.bool_]) -> None:
        """One decision of every hypothesis that is not through."""
        rows, beam = active.shape
        tokens, frames, scores, candidates = self._candidates(encoded, active)
        # What is through stays as it is.
        through = ~active
        candidates[through] = -np.inf
        candidates[..., 0] = np.where(through, self._scores, candidates[..., 0])
        tokens[through], frames[through], scores[through] = -1, 0, 0.0

        flat = candidates.reshape(rows, -1)
        chosen = np.argsort(-flat, axis=1, kind="stable")[:, :beam]
        parents = chosen // beam

        def picked(values: NDArray[np.generic]) -> NDArray[np.generic]:
            return np.take_along_axis(values.reshape(rows, -1), chosen, 1)

        step = _Step(
            parents,
            np.asarray(picked(tokens), np.int64),
            np.asarray(picked(frames), np.int64),
            np.take_along_axis(self._time, parents, 1) + self._heard[:, None],
            np.asarray(picked(scores), np.float64),
        )
        self._steps.append(step)
        self._scores = np.take_along_axis(flat, chosen, 1)
        for name in ("_time", "_here", "_length", "_hash"):
            setattr(self, name, np.take_along_axis(getattr(self, name), parents, 1))
        spoken = (step.tokens >= 0) & (step.tokens != self._network.blank)
        self._time += step.lasting
        decided = step.tokens >= 0
        self._here = np.where(decided & (step.lasting > 0), 0, self._here + spoken)
        self._length += spoken
        self._hash = np.where(spoken, self._hash * _PRIME + (step.tokens + 1).astype(np.uint64), self._hash)
        self._recombine()
        self._predict(step, spoken)

    def _candidates(
        self, encoded: Floats, active: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """What each hypothesis would best do next, ``[rows, beam, beam]``: tokens, frames, their log-probs, scores."""
        rows, beam = active.shape
        network, options = self._network, self._options
        blank, durations = network.blank, network.durations
        r, w = np.nonzero(active)
        joined = network.join(encoded[r, self._time[r, w]][:, None], self._prediction[r * beam + w])[:, 0]
        network.check(joined)
        logprobs = log_softmax(joined[:, : blank + 1]).astype(np.float64)
        logprobs[:, blank] -= options.blank_penalty
        logprobs[:, :blank] += options.length_bonus
        kinds = len(durations)
        lasting = log_softmax(joined[:, blank + 1 :]).astype(np.float64) if kinds > 1 else np.zeros((len(r), 1))
        total = (logprobs[:, :, None] + lasting[:, None]).reshape(len(r), -1)
        width = min(beam, total.shape[1])
        best = np.argpartition(-total, width - 1, axis=1)[:, :width]
        best = np.take_along_axis(best, np.argsort(-np.take_along_axis(total, best, 1), axis=1, kind="stable"), 1)

        tokens = np.full((rows, beam, beam), -1, np.int64)
        frames = np.zeros((rows, beam, beam), np.int64)
        scores = np.full((rows, beam, beam), -np.inf)
        some = best // kinds
        tokens[r, w, :width] = some
        went = durations[best % kinds] if kinds > 1 else np.zeros_like(some)
        frames[r, w, :width] = np.where(some == blank, np.maximum(went, 1), went)
        scores[r, w, :width] = np.take_along_axis(total, best, 1)
        # A frame that has all the tokens it may have is left by a blank.
        full = self._here[r, w] >= options.max_symbols
        if full.any():
            fr, fw = r[full], w[full]
            tokens[fr, fw] = blank
            scores[fr, fw] = -np.inf
            scores[fr, fw, 0] = (logprobs[:, blank] + lasting.max(1))[full]
            frames[fr, fw] = np.maximum(durations[lasting.argmax(1)], 1)[full, None] if kinds > 1 else 1
        return tokens, frames, scores, self._scores[..., None] + scores

    def _recombine(self) -> None:
        """Give the best of equal hypotheses the probability of all of them, and take the others out."""
        alike = (self._hash[:, :, None] == self._hash[:, None]) & (self._length[:, :, None] == self._length[:, None])
        alike &= self._time[:, :, None] == self._time[:, None]
        scores = np.where(alike, self._scores[:, None], -np.inf)
        first = scores.argmax(-1) == np.arange(scores.shape[1])
        most = scores.max(-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            total = most + np.log(np.exp(scores - most[..., None]).sum(-1))
        self._scores = np.where(first & np.isfinite(most), total, -np.inf)

    def _predict(self, step: _Step, spoken: NDArray[np.bool_]) -> None:
        """Predictions and states of the hypotheses, those that have a new token from the decoder."""
        rows, beam = spoken.shape
        whence = (step.parents + np.arange(rows)[:, None] * beam).ravel()
        self._prediction = self._prediction[whence]
        self._state = {name: values[whence] for name, values in self._state.items()}
        some = np.flatnonzero(spoken.ravel() & np.isfinite(self._scores.ravel()))
        if some.size:
            state = {name: values[some] for name, values in self._state.items()}
            prediction, state = self._network.step(step.tokens.ravel()[some], state)
            self._prediction[some] = prediction
            for name, values in state.items():
                self._state[name][some] = values

    def _trace(self, row: int, place: int) -> Hypothesis:
        """The decisions of one hypothesis, from its end to its begin."""
        found = Hypothesis(score=float(self._scores[row, place]), heard=int(self._heard[row]))
        timed = len(self._network.durations) > 1
        for step in reversed(self._steps):
            token, lasting = int(step.tokens[row, place]), int(step.lasting[row, place])
            if token >= 0:
                found.path.append((token, lasting))
                if token != self._network.blank:
                    found.tokens.append(token)
                    found.frames.append(int(step.frames[row, place]))
                    found.durations.append(lasting if timed else 1)
                    found.logprobs.append(min(0.0, float(step.logprobs[row, place])))
            place = int(step.parents[row, place])
        for values in (found.path, found.tokens, found.frames, found.durations, found.logprobs):
            values.reverse()
        return found
