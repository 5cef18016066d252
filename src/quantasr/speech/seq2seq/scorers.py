"""What a beam search asks beside the decoder, as SpeechBrain's ``ScorerBuilder`` puts it together."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from quantasr.speech.seq2seq.ctc_prefix import NEVER, CtcPrefix
from quantasr.speech.seq2seq.options import SearchOptions
from quantasr.speech.seq2seq.states import Stepper

Floats = NDArray[np.float32]
Scores: TypeAlias = NDArray[np.float32] | NDArray[np.float64]
Ids = NDArray[np.int64]


class Scorer(Protocol):
    """Adds to the scores of all next tokens of all hypotheses of one recording."""

    def score(self, last: Ids, attention: Floats | None, candidates: Ids | None) -> Scores:
        """``[rows, vocabulary]``, or what is broadcast to it, for hypotheses that end in ``last`` ``[rows]``."""
        ...

    def advance(self, rows: Ids, tokens: Ids) -> None:
        """Go on with these rows, each with one more token."""
        ...


class _Ctc:
    def __init__(self, prefix: CtcPrefix) -> None:
        self._prefix = prefix

    def score(self, last: Ids, attention: Floats | None, candidates: Ids | None) -> Scores:
        return self._prefix.score(last, attention, candidates)

    def advance(self, rows: Ids, tokens: Ids) -> None:
        self._prefix.advance(rows, tokens)


class _LanguageModel:
    def __init__(self, lm: Stepper, temperature: float) -> None:
        self._lm, self._temperature = lm, temperature

    def score(self, last: Ids, attention: Floats | None, candidates: Ids | None) -> Scores:
        return at_temperature(self._lm(last)["logprobs"], self._temperature)

    def advance(self, rows: Ids, tokens: Ids) -> None:
        self._lm.reorder(rows)


class _Coverage:
    """How much more than ``threshold`` each frame has been attended to, as a penalty; over the number of steps."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._total: NDArray[Any] = np.zeros(1)
        self._steps = 0

    def score(self, last: Ids, attention: Floats | None, candidates: Ids | None) -> Scores:
        assert attention is not None
        self._total = self._total + attention
        self._steps += 1
        penalty = np.maximum(self._total - self._threshold, 0).sum(-1)
        found: Scores = -penalty[:, None] / self._steps
        return found

    def advance(self, rows: Ids, tokens: Ids) -> None:
        self._total = self._total[rows]


class _Length:
    def score(self, last: Ids, attention: Floats | None, candidates: Ids | None) -> Scores:
        return np.ones((1, 1))

    def advance(self, rows: Ids, tokens: Ids) -> None:
        pass


class Scorers:
    """All scorers of a search with their weights."""

    def __init__(self, options: SearchOptions, ctc: Floats | None, lm: Stepper | None) -> None:
        """``ctc`` are the log-probs of each frame, ``[frames, vocabulary]``, where there is such a scorer."""
        self._options = options
        found: list[tuple[str, float, Scorer]] = []
        if lm is not None and options.lm_weight:
            found.append(("lm", options.lm_weight, _LanguageModel(lm, options.lm_temperature)))
        if options.coverage_weight:
            found.append(("coverage", options.coverage_weight, _Coverage(options.coverage_threshold)))
        if options.length_weight:
            found.append(("length", options.length_weight, _Length()))
        if ctc is not None and options.ctc_weight:
            assert options.blank is not None
            prefix = CtcPrefix(ctc, options.blank, options.eos, options.beam_width, options.ctc_window)
            found.append(("ctc", options.ctc_weight, _Ctc(prefix)))
        self._full = [one for one in found if one[0] not in options.partial]
        self._partial = [one for one in found if one[0] in options.partial]

    def add(self, scores: Floats, last: Ids, attention: Floats | None) -> Floats:
        """``scores`` ``[rows, vocabulary]`` of the decoder, with those of the scorers; in place."""
        for name, weight, scorer in self._full:
            if name == "ctc":
                scores[:, self._options.blank] = NEVER
            scores += weight * scorer.score(last, attention, None).astype(np.float32, copy=False)
        if self._partial:
            count = int(self._options.beam_width * self._options.candidate_scale)
            count = max(1, min(count, scores.shape[1]))
            candidates = np.argpartition(-scores, count - 1, axis=1)[:, :count]
            for _, weight, scorer in self._partial:
                scores += weight * scorer.score(last, attention, candidates).astype(np.float32, copy=False)
        return scores

    def advance(self, rows: Ids, tokens: Ids) -> None:
        """Go on with these rows, each with one more token."""
        for _, _, scorer in self._full + self._partial:
            scorer.advance(rows, tokens)


def at_temperature(logprobs: Floats, temperature: float) -> Floats:
    """Log-probs ``[rows, vocabulary]`` softened (above 1) or sharpened."""
    if temperature == 1:
        return logprobs
    scaled = logprobs / np.float32(temperature)
    highest = scaled.max(-1, keepdims=True)
    found: Floats = scaled - highest - np.log(np.exp(scaled - highest).sum(-1, keepdims=True))
    return found
