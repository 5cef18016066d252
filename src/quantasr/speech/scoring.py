"""Error rates with their counts and intervals, and two systems compared on the same utterances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import kaldialign
import numpy as np
from numpy.typing import NDArray

from quantasr.speech.alignment import align_sequences, count_errors
from quantasr.speech.text import ScoringError

Unit = Literal["word", "character"]

RESAMPLES = 10_000
_CELLS = 4_000_000  # draws held at a time, so that memory does not grow with the corpus


@dataclass(frozen=True)
class ErrorCounts:
    """Errors of one utterance or of many, against ``reference_length`` words or characters."""

    substitutions: int
    deletions: int
    insertions: int
    reference_length: int

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def correct(self) -> int:
        """Words or characters of the reference that were recognised."""
        return self.reference_length - self.substitutions - self.deletions

    @property
    def rate(self) -> float:
        """Errors as a fraction of the reference (0.05 is 5 %; it can pass 1); infinite against an empty one."""
        if self.reference_length:
            return self.errors / self.reference_length
        return float("inf") if self.errors else 0.0

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.reference_length + other.reference_length,
        )

    def __str__(self) -> str:
        return (
            f"{100 * self.rate:.2f} % (S {self.substitutions} + D {self.deletions} + I {self.insertions}"
            f" of {self.reference_length})"
        )


@dataclass(frozen=True)
class Score:
    """A corpus-level error rate: all errors over the whole length of the references.

    ``utterances`` has each utterance's counts, in order; ``interval`` is the 95 % interval of the rate, a
    fraction too, from resampling utterances (M. Bisani and H. Ney, "Bootstrap estimates for confidence intervals
    in ASR performance evaluation", ICASSP 2004; percentiles).

    Raises:
        ScoringError: no utterances, or no reference words in any of them.
    """

    unit: Unit
    utterances: tuple[ErrorCounts, ...]
    resamples: int = RESAMPLES
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.utterances:
            raise ScoringError("there are no utterances to score: name a manifest that has some")
        if self.counts.reference_length == 0:
            raise ScoringError(
                f"the references of all {len(self.utterances)} utterances are empty, so there is no error rate: "
                "check the manifest's texts and the normaliser"
            )

    @cached_property
    def counts(self) -> ErrorCounts:
        """The counts of all utterances together."""
        return sum(self.utterances, ErrorCounts(0, 0, 0, 0))

    @property
    def rate(self) -> float:
        """Errors as a fraction of the reference."""
        return self.counts.rate

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the rate; one utterance alone has none, and gives its rate twice."""
        return _percentiles(_resampled_rates([self], self.resamples, self.seed)[0])

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary, without the single utterances."""
        counts, (low, high) = self.counts, self.interval
        return {
            "unit": self.unit,
            "rate": self.rate,
            "interval_95": [low, high],
            "substitutions": counts.substitutions,
            "deletions": counts.deletions,
            "insertions": counts.insertions,
            "reference_length": counts.reference_length,
            "utterances": len(self.utterances),
        }

    def __str__(self) -> str:
        low, high = self.interval
        rate, _, counts = str(self.counts).partition(" (")
        return f"{rate} [{100 * low:.2f}, {100 * high:.2f}] ({counts}"


@dataclass(frozen=True)
class PairedComparison:
    """System b against system a on the same utterances.

    ``difference`` is b's rate minus a's, a fraction: below 0, b is better. ``interval`` is its 95 % interval over
    the same resamples of utterances for both; ``probability_better`` and ``probability_worse`` are the shares
    of resamples where b's rate is below or above a's (what is missing to 1 are ties). ``better``, ``worse`` and
    ``equal`` count the utterances on which b made fewer, more, or as many errors.
    """

    a: Score
    b: Score
    difference: float
    interval: tuple[float, float]
    probability_better: float
    probability_worse: float
    better: int
    worse: int
    equal: int

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        names = ("difference", "probability_better", "probability_worse", "better", "worse", "equal")
        figures = {name: getattr(self, name) for name in names}
        return {"a": self.a.to_dict(), "b": self.b.to_dict(), "interval_95": list(self.interval), **figures}


def score_pair(reference: str, hypothesis: str, unit: Unit = "word") -> ErrorCounts:
    """Count the errors of one hypothesis.

    Words are what whitespace separates; their counts are sclite's (case-sensitive), see
    :mod:`quantasr.speech.alignment`. Characters include the single spaces between words, and have the least
    possible number of errors, each weighing the same, as in jiwer and most published character error rates.
    """
    if unit == "word":
        words = reference.split()
        return ErrorCounts(*count_errors(words, hypothesis.split()), reference_length=len(words))
    if unit == "character":
        characters = " ".join(reference.split())
        found = kaldialign.edit_distance(characters, " ".join(hypothesis.split()))
        return ErrorCounts(found["sub"], found["del"], found["ins"], reference_length=len(characters))
    raise ScoringError(f"unit '{unit}' is unknown: choose 'word' or 'character'")


def score(
    references: Sequence[str],
    hypotheses: Sequence[str],
    unit: Unit = "word",
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Score:
    """Score a corpus; texts are compared as they are, so normalise both sides before.

    Raises:
        ScoringError: no utterances or no reference words, an unknown unit, or not one hypothesis a reference.
    """
    if len(references) != len(hypotheses):
        raise ScoringError(f"{len(references)} references but {len(hypotheses)} hypotheses: give one for each")
    pairs = tuple(score_pair(r, h, unit) for r, h in zip(references, hypotheses, strict=True))
    return Score(unit, pairs, resamples, seed)


def compare(
    references: Sequence[str],
    hypotheses_a: Sequence[str],
    hypotheses_b: Sequence[str],
    unit: Unit = "word",
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedComparison:
    """Compare two systems on the same utterances; errors as :func:`score`."""
    return compare_scores(
        score(references, hypotheses_a, unit, resamples=resamples, seed=seed),
        score(references, hypotheses_b, unit, resamples=resamples, seed=seed),
    )


def compare_scores(a: Score, b: Score) -> PairedComparison:
    """Compare two scores of the same utterances.

    Raises:
        ScoringError: the two were not scored on the same references, utterance by utterance.
    """
    lengths_a, lengths_b = ([u.reference_length for u in s.utterances] for s in (a, b))
    if a.unit != b.unit or lengths_a != lengths_b:
        raise ScoringError("the two systems were scored on different references: score them on the same manifest")
    rates = _resampled_rates([a, b], a.resamples, a.seed)
    differences = rates[1] - rates[0]
    errors = [(one.errors, other.errors) for one, other in zip(a.utterances, b.utterances, strict=True)]
    better = sum(other < one for one, other in errors)
    worse = sum(other > one for one, other in errors)
    return PairedComparison(
        a=a,
        b=b,
        difference=b.rate - a.rate,
        interval=_percentiles(differences),
        probability_better=float(np.mean(differences < 0)),
        probability_worse=float(np.mean(differences > 0)),
        better=better,
        worse=worse,
        equal=len(errors) - better - worse,
    )


def by_group(score: Score, groups: Sequence[str]) -> dict[str, Score]:
    """The score of each group of utterances, say of each speaker, in the order in which they first appear.

    Raises:
        ScoringError: not one group for each utterance, or a group without any reference words.
    """
    if len(groups) != len(score.utterances):
        raise ScoringError(f"{len(groups)} groups for {len(score.utterances)} utterances: give one for each")
    members: dict[str, list[ErrorCounts]] = {}
    for group, counts in zip(groups, score.utterances, strict=True):
        members.setdefault(group, []).append(counts)
    try:
        return {name: Score(score.unit, tuple(own), score.resamples, score.seed) for name, own in members.items()}
    except ScoringError as error:
        empty = [name for name, own in members.items() if not sum(u.reference_length for u in own)]
        raise ScoringError(f"group '{empty[0]}': {error}") from error


def align(reference: str, hypothesis: str) -> list[tuple[str | None, str | None]]:
    """Pairs of words, as sclite aligns them; None faces an insertion (left) or a deletion (right)."""
    words, others = reference.split(), hypothesis.split()
    return [
        (None if i is None else words[i], None if j is None else others[j]) for i, j in align_sequences(words, others)
    ]


def _resampled_rates(scores: Sequence[Score], resamples: int, seed: int) -> NDArray[np.float64]:
    """Error rates over utterances drawn with replacement, the same draws for each score: [scores, resamples]."""
    lengths = np.array([u.reference_length for u in scores[0].utterances], dtype=np.float64)
    errors = np.array([[u.errors for u in s.utterances] for s in scores], dtype=np.float64)
    generator = np.random.default_rng(seed)
    step = max(1, _CELLS // len(lengths))
    parts = []
    for begin in range(0, resamples, step):
        drawn = generator.integers(len(lengths), size=(min(step, resamples - begin), len(lengths)))
        words = lengths[drawn].sum(axis=1)
        # Draws of nothing but empty references have no rate; they can happen where most of them are empty.
        drawn, words = drawn[words > 0], words[words > 0]
        parts.append(np.stack([row[drawn].sum(axis=1) / words for row in errors]))
    return np.concatenate(parts, axis=1)


def _percentiles(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
