"""Error rates over the weight of the language model and the word penalty: chosen on one set, reported on another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import AudioError, ManifestError, RecipeError
from quantasr.measure.evaluate import EvalResult, Evaluation, load_batch
from quantasr.progress import track
from quantasr.runtime import artifact_of
from quantasr.speech.lattice.lattice import Lattice
from quantasr.speech.lattice.transcriber import LatticeTranscriber
from quantasr.speech.manifest import Utterance, check_disjoint
from quantasr.speech.manifest.fingerprint import check_not_among
from quantasr.speech.manifest.utterance import require_texts
from quantasr.speech.scoring import PairedComparison, Score, Unit, by_group, compare_scores
from quantasr.speech.text import normalizer as find_normalizer
from quantasr.speech.transcript import Transcript

Decode = Callable[[NDArray[np.float32]], Lattice]

RATIOS = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7)
PENALTIES = (0.0, 0.5, 1.0)
"""Kaldi's score.sh tries weights 7..17 where the search took 10 (an acoustic scale of 0.1), and these penalties."""


class Weights(NamedTuple):
    """Paths are compared by graph cost + acoustic cost ÷ ``lm_weight`` + ``penalty`` for each word, as in Kaldi's
    score.sh: ``lm_weight`` is its LMWT, ``penalty`` its word insertion penalty."""

    lm_weight: float
    penalty: float

    def __str__(self) -> str:
        return f"LM weight {self.lm_weight:g}, word penalty {self.penalty:g}"


@dataclass(frozen=True)
class WeightGrid:
    """The score of one set at every pair of weights. ``own`` are those of the search itself."""

    own: Weights
    scores: Mapping[Weights, Score]

    @property
    def best(self) -> Weights:
        """The pair with the fewest errors; of several, the one nearest to the search's own."""

        def order(weights: Weights) -> tuple[float, ...]:
            away = abs(np.log(weights.lm_weight / self.own.lm_weight))
            return self.scores[weights].rate, abs(weights.penalty), float(away), weights.lm_weight

        return min(self.scores, key=order)

    def to_dict(self) -> list[dict[str, Any]]:
        """A JSON-ready row for each pair."""
        return [{**weights._asdict(), **found.to_dict()} for weights, found in self.scores.items()]


@dataclass(frozen=True)
class WeightSearch:
    """``result``: the evaluation set at ``chosen``, the best pair of ``grid``; ``before``: at the search's own.

    ``separate``: whether the pair was chosen on another set than it is reported on. If not, the result is better than
    it will be on new speech.
    """

    grid: WeightGrid
    result: EvalResult
    before: EvalResult
    separate: bool
    unit: Unit = "word"
    failures: Mapping[str, str] = field(default_factory=dict)
    warnings: Mapping[str, str] = field(default_factory=dict)

    @property
    def chosen(self) -> Weights:
        return self.grid.best

    @cached_property
    def comparison(self) -> PairedComparison:
        """The chosen pair against the search's own, on the same utterances."""
        return compare_scores(self.score(self.before), self.score(self.result))

    @cached_property
    def speakers(self) -> dict[str, Score]:
        """The score of each speaker of the evaluation set who says words; empty where no speakers are known."""
        found = self.score(self.result)
        names = [utterance.speaker for utterance in self.result.utterances]
        if not any(names):
            return {}
        spoken = {n for n, counts in zip(names, found.utterances, strict=True) if counts.reference_length}
        pairs = [(n or "?", counts) for n, counts in zip(names, found.utterances, strict=True) if n in spoken]
        return by_group(Score(self.unit, tuple(counts for _, counts in pairs)), [name for name, _ in pairs])

    def score(self, result: EvalResult) -> Score:
        """The rate that is counted here: of words, or of characters."""
        return result.wer if self.unit == "word" else result.cer

    def save_utterances(self, path: Path) -> None:
        """Write every utterance at the chosen pair as a line of JSON."""
        Evaluation((self.result,)).save_utterances(path)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "chosen": self.chosen._asdict(),
            "own": self.grid.own._asdict(),
            "chosen_on_the_reported_set": not self.separate,
            "result": self.result.to_dict(),
            "comparison": self.comparison.to_dict(),
            "speakers": {name: found.to_dict() for name, found in self.speakers.items()},
            "grid": self.grid.to_dict(),
            "failures": dict(self.failures),
            "warnings": dict(self.warnings),
        }


def search_weights(
    recogniser: LatticeTranscriber,
    evaluation: Sequence[Utterance],
    tuning: Sequence[Utterance] | None = None,
    *,
    lm_weights: Sequence[float] | None = None,
    penalties: Sequence[float] = PENALTIES,
    unit: Unit = "word",
    normalizer: str = "basic",
    decode: Decode | None = None,
    progress: bool = False,
) -> WeightSearch:
    """Search every recording once, and read the best path off its lattice for every pair of weights.

    The pair with the fewest errors on ``tuning`` is reported on ``evaluation``; without ``tuning``, it is chosen and
    reported on the same set, which the result says. ``lm_weights`` are by default :data:`RATIOS` of the search's own.
    ``decode`` searches instead of the recogniser's own decoder, in log-likelihoods that know of no search: i-vectors
    that leave out silence go by loudness then. Each recording is searched whole.

    Raises RecipeError for weights that are none, ManifestError where texts are missing or the sets share speech,
    AudioError when no recording can be read.
    """
    own = Weights(round(1 / recogniser.options.acoustic_scale, 6), 0.0)
    values = [round(ratio * own.lm_weight, 6) for ratio in RATIOS] if lm_weights is None else list(lm_weights)
    if not values or not penalties or any(not 0 < value < float("inf") for value in values):
        raise RecipeError(f"weights {values} and penalties {list(penalties)}: give one or more, weights above 0")
    grid = [Weights(value, penalty) for value in values for penalty in penalties]
    find_normalizer(normalizer)
    for utterances in (evaluation, *([] if tuning is None else [tuning])):
        if not utterances:
            raise ManifestError("there are no utterances to score: give some")
        require_texts(utterances)
    artifact = artifact_of(recogniser)
    if artifact is not None:
        check_not_among(artifact.calibration(), evaluation, f"calibration speech of {artifact.name}")
    if tuning is not None:
        check_disjoint(tuning, evaluation, "tuning")
    asked = list(dict.fromkeys([*grid, own]))
    search = _Search(recogniser, decode, normalizer, progress)
    heard = search(evaluation, asked, "searching")
    tuned = heard if tuning is None else search(tuning, grid, "choosing weights")
    found = WeightGrid(own, {w: tuned[w].wer if unit == "word" else tuned[w].cer for w in grid})
    return WeightSearch(
        found, heard[found.best], heard[own], tuning is not None, unit, search.failures, search.warnings
    )


class _Search:
    """Sets of recordings searched, and what could not be read in any of them."""

    def __init__(self, recogniser: LatticeTranscriber, decode: Decode | None, normalizer: str, progress: bool) -> None:
        self.recogniser, self.decode, self.normalizer, self.progress = recogniser, decode, normalizer, progress
        self.failures: dict[str, str] = {}
        self.warnings: dict[str, str] = {}

    def __call__(
        self, utterances: Sequence[Utterance], grid: Sequence[Weights], label: str
    ) -> dict[Weights, EvalResult]:
        """What is heard at each pair of weights; a lattice is kept no longer than it takes to read it."""
        seconds = 0.0
        used: list[Utterance] = []
        transcripts: dict[Weights, list[Transcript]] = {weights: [] for weights in grid}
        for utterance, wave in self._waves(track(utterances, label, total=len(utterances), show=self.progress)):
            begin = time.perf_counter()
            if self.decode is None:
                (lattice,) = self.recogniser.lattices([wave])
            else:
                lattice = self.decode(self.recogniser.logprobs([wave])[0])
            seconds += time.perf_counter() - begin
            used.append(utterance)
            for weights in grid:
                best = lattice.best_path(1.0, 1 / weights.lm_weight, weights.penalty)
                text = lattice.text(best.words)
                transcripts[weights].append(Transcript(text, wave.size / self.recogniser.sample_rate))
        if not used:
            first = next(iter(self.failures.values()))
            raise AudioError(f"none of {len(utterances)} recordings can be read; the first: {first}")
        return {
            weights: EvalResult(
                f"{self.recogniser.name}, {weights}",
                tuple(used),
                tuple(texts),
                seconds,
                self.normalizer,
                self.failures,
                self.warnings,
            )
            for weights, texts in transcripts.items()
        }

    def _waves(self, utterances: Iterator[Utterance]) -> Iterator[tuple[Utterance, NDArray[np.float32]]]:
        for utterance in utterances:
            for _, waves in load_batch([utterance], [self.recogniser], self.failures, self.warnings):
                yield utterance, waves[self.recogniser.sample_rate]
