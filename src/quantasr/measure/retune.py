"""Decoding parameters that make up for what quantization changed: searched on tuning speech, kept in the artifact."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from quantasr.artifact import CALIBRATION, Artifact
from quantasr.atomic import MANIFEST, create, write_atomically
from quantasr.errors import AudioError, ManifestError, RecipeError
from quantasr.measure.evaluate import EvalResult, Evaluation, evaluate_systems, load_batch
from quantasr.measure.remember import RememberingEngine
from quantasr.progress import track
from quantasr.runtime import Loaded, load, recogniser
from quantasr.speech.manifest import Utterance, check_disjoint, read_manifest, require_texts
from quantasr.speech.manifest.fingerprint import check_not_among, fingerprints
from quantasr.speech.scoring import PairedComparison, compare_scores
from quantasr.speech.steps import StepTranscriber
from quantasr.speech.text import normalizer as find_normalizer
from quantasr.speech.transcript import Transcript

Values = Mapping[str, Any]
"""Options of a search by name."""

Grids = Mapping[str, Sequence[Any]]
"""The values to be tried of each option."""

BEAM_GRIDS: Grids = {"alpha": (0.2, 0.3, 0.4, 0.6, 0.7, 0.9, 1.2), "beta": (0.0, 0.5, 1.0, 2.0, 2.5, 3.0)}
"""Of CTC's beam search with an n-gram: weight of the language model, and bonus for each word."""

_ROUNDS = 3


@dataclass(frozen=True)
class Trial:
    """One run over the tuning speech: the options that were other than the artifact's own, and what came of them."""

    options: Values
    result: EvalResult

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions."""
        return self.result.wer.counts.errors

    @property
    def name(self) -> str:
        """``blank_penalty 0.5, beam_width 4``."""
        return ", ".join(f"{key} {value}" for key, value in self.options.items()) or "as it is"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {"options": dict(self.options), "wer": self.result.wer.to_dict()}


@dataclass(frozen=True)
class Retuned:
    """What was tried on the tuning speech, the first with the artifact's ``own`` values, and the best of it.

    ``evaluation`` holds both on other speech, if there was any. ``written`` says whether the artifact was changed.
    """

    artifact: str
    own: Values
    trials: tuple[Trial, ...]
    best: Trial
    evaluation: Evaluation | None = None
    written: bool = False
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def before(self) -> Trial:
        """With the artifact's own values."""
        return self.trials[0]

    @property
    def gained(self) -> bool:
        """Whether there are fewer errors than before."""
        return self.best.errors < self.before.errors

    @cached_property
    def comparison(self) -> PairedComparison:
        """The best against the artifact's own, pair by pair of utterances; of its own choice, so it flatters."""
        return compare_scores(self.before.result.wer, self.best.result.wer)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "artifact": self.artifact,
            "own": dict(self.own),
            "chosen": dict(self.best.options),
            "gained": self.gained,
            "written": self.written,
            "before": self.before.result.to_dict(),
            "after": self.best.result.to_dict(),
            "comparison": self.comparison.to_dict(),
            "evaluation": None if self.evaluation is None else self.evaluation.to_dict(),
            "trials": [trial.to_dict() for trial in self.trials],
            "failures": dict(self.failures),
        }


def retune(
    artifact: Artifact | str | Path,
    tuning: str | Path | Sequence[Utterance],
    *,
    evaluation: str | Path | Sequence[Utterance] | None = None,
    grids: Grids | None = None,
    engine: str | Mapping[str, str] | None = None,
    compute: str | None = None,
    threads: int = 0,
    limit: int | None = None,
    normalizer: str = "basic",
    dry_run: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Retuned:
    """Search the decoding parameters with which an artifact has the fewest word errors on ``tuning``, and keep them.

    One option after the other is tried at each value of its grid, with the best so far of the others, until a round
    gains nothing. ``grids`` are by default those that the artifact's own search names
    (:attr:`quantasr.speech.steps.StepTranscriber.tunable`; ``alpha`` and ``beta`` for CTC with an n-gram); the own
    value is always among them, and stays where nothing is better. Encoders run once for each recording. ``tuning`` may
    be the calibration speech; ``evaluation`` is other speech, on which the result is reported and nothing is chosen.

    The artifact is replaced whole, with the values under ``decoding`` and the tuning speech among what it must not be
    evaluated on, unless nothing was gained or with ``dry_run``. Raises :class:`RecipeError` where there is nothing to
    tune or an option is unknown, :class:`ManifestError` for speech without texts or in both manifests, and the errors
    of :func:`quantasr.runtime.load`.
    """
    artifact = artifact if isinstance(artifact, Artifact) else Artifact.load(artifact)
    find_normalizer(normalizer)
    speech = read_manifest(tuning) if isinstance(tuning, str | Path) else list(tuning)
    speech = speech[:limit]
    if not speech:
        raise ManifestError("there are no utterances to tune on: give some")
    require_texts(speech)
    others = read_manifest(evaluation) if isinstance(evaluation, str | Path) else list(evaluation or ())
    if others:
        require_texts(others)
        check_disjoint(speech, others, "tuning")
        check_not_among(artifact.calibration(), others, f"calibration speech of {artifact.name}")
    if artifact.native:
        raise RecipeError(f"{artifact.name}: searches in its own framework, in PyTorch: there is nothing to tune here")
    loaded = load(artifact, engine=engine, compute=compute, threads=threads)
    search = _Search(artifact, loaded, speech, normalizer, progress, say)
    search.check(chosen := grids or search.grids)
    best = search.descend(chosen)
    retuned = Retuned(artifact.name, search.own(chosen), tuple(search.trials), best, failures=search.failures)
    if others and retuned.gained:
        systems = [search.system({}), search.system(best.options)]
        retuned = replace(retuned, evaluation=evaluate_systems(systems, others, normalizer=normalizer))
    if dry_run or not retuned.gained:
        return retuned
    _write(artifact, retuned, speech)
    return replace(retuned, written=True)


class _Search:
    """Runs over the tuning speech, each remembered."""

    def __init__(
        self,
        artifact: Artifact,
        loaded: Loaded,
        speech: Sequence[Utterance],
        normalizer: str,
        progress: bool,
        say: Callable[[str], None],
    ) -> None:
        self._artifact, self._loaded, self._speech = artifact, loaded, speech
        self._normalizer, self._progress, self._say = normalizer, progress, say
        self._engines = {
            part: RememberingEngine(engine) if _hears(artifact, part) else engine
            for part, engine in loaded.engines.items()
        }
        self.trials: list[Trial] = []
        self.failures: dict[str, str] = {}

    @property
    def grids(self) -> Grids:
        """What the search itself would have tuned; raises RecipeError where that is nothing."""
        loaded = self._loaded
        found: Grids = {}
        if isinstance(loaded, StepTranscriber):
            found = loaded.tunable
        elif self._artifact.decoder == "ctc" and self._artifact.decoding.get("lm"):
            found = BEAM_GRIDS
        if not found:
            raise RecipeError(
                f"{self._artifact.name}: as it decodes, it has nothing to tune: name options and values, such as "
                "beam_width = 1, 4 (--grid beam_width=1,4)"
            )
        return found

    def own(self, names: Iterable[str]) -> dict[str, Any]:
        """The artifact's own values."""
        options = self._loaded.options if isinstance(self._loaded, StepTranscriber) else self._decoder()
        return {name: getattr(options, name) for name in names}

    def check(self, grids: Grids) -> None:
        """Refuse what cannot be tried before anything is."""
        for name, values in grids.items():
            for value in values:
                self.system({name: value})
        own = self.own(grids)
        runs = 1 + sum(len([value for value in values if value != own[name]]) for name, values in grids.items())
        tuned = ", ".join(f"{name} (now {own[name]})" for name in grids)
        self._say(f"tuning {tuned}: {runs} runs over {len(self._speech)} utterances, more where one gains")

    def system(self, options: Values) -> Loaded:
        """The artifact with some options of its search changed; its encoder remembers."""
        if isinstance(self._loaded, StepTranscriber):
            return recogniser(self._artifact, self._engines, **options)
        if not options:
            return recogniser(self._artifact, self._engines)
        decoder = self._decoder()
        known = {entry.name for entry in fields(decoder)}
        if strange := sorted(set(options) - known):
            raise RecipeError(f"CTC's beam search has no option {strange[0]!r}; it has {', '.join(sorted(known))}")
        return recogniser(self._artifact, self._engines, decoder=replace(decoder, **options))

    def _decoder(self) -> Any:
        """CTC's beam search; raises RecipeError where there is none."""
        if self._artifact.decoder != "ctc" or not self._artifact.decoding:
            raise RecipeError(f"{self._artifact.name}: has no search whose options could be tuned")
        return self._artifact.own_decoder()

    def descend(self, grids: Grids) -> Trial:
        """Coordinate descent; of several values with as few errors, the one nearest to the artifact's own."""
        best, own = self._run({}), self.own(grids)
        for _ in range(_ROUNDS):
            before = best
            for name, values in grids.items():
                for value in sorted(values, key=lambda value: _away(value, own[name])):
                    options = {key: kept for key, kept in best.options.items() if key != name}
                    trial = self._run(options if value == own[name] else {**options, name: value})
                    best = trial if trial.errors < best.errors else best
            if best is before:
                break
        return best

    def _run(self, options: Values) -> Trial:
        for trial in self.trials:
            if trial.options == options:
                return trial
        system = self.system(options)
        used: list[Utterance] = []
        transcripts: list[Transcript] = []
        warnings: dict[str, str] = {}
        begin = time.perf_counter()
        label = f"run {len(self.trials) + 1}"
        for utterance in track(self._speech, label, total=len(self._speech), show=self._progress):
            for _, waves in load_batch([utterance], [system], self.failures, warnings):
                transcripts += system.transcribe([waves[system.sample_rate]])
                used.append(utterance)
        if not used:
            first = next(iter(self.failures.values()))
            raise AudioError(f"none of {len(self._speech)} recordings can be read; the first: {first}")
        seconds = time.perf_counter() - begin
        result = EvalResult(
            system.name, tuple(used), tuple(transcripts), seconds, self._normalizer, self.failures, warnings
        )
        trial = Trial(dict(options), result)
        self.trials.append(trial)
        self._say(f"{label}: {trial.name}: {result.wer.counts} ({seconds:.1f} s)")
        return trial


def _hears(artifact: Artifact, part: str) -> bool:
    """Whether a part reads features, and so gives the same whatever the search does."""
    return not artifact.parts or "features" in artifact.parts[part]["inputs"]


def _away(value: Any, own: Any) -> float:
    numbers = isinstance(value, int | float) and isinstance(own, int | float)
    return abs(value - own) if numbers else 0.0


def _write(artifact: Artifact, retuned: Retuned, speech: Sequence[Utterance]) -> None:
    """Replace the artifact's folder by one with the chosen values, whole or not at all."""
    known = artifact.calibration()
    heard = [row for row in fingerprints(speech) if row not in known]
    counts = [trial.result.wer.counts for trial in (retuned.before, retuned.best)]
    note = {
        "options": dict(retuned.best.options),
        "utterances": len(retuned.best.result.utterances),
        "before": str(counts[0]),
        "after": str(counts[1]),
    }

    def fill(folder: Path) -> None:
        for path in artifact.folder.iterdir():
            if path.is_file() and path.name != MANIFEST:
                _link(path, folder / path.name)
        write_atomically(folder / CALIBRATION, json.dumps([*known, *heard], indent=1, ensure_ascii=False) + "\n")
        changed = replace(
            artifact,
            folder=folder,
            decoding={**artifact.decoding, **retuned.best.options},
            provenance={**artifact.provenance, "retuned": note},
        )
        changed.write_manifest()

    create(artifact.folder.resolve(), fill, overwrite=True)


def _link(path: Path, target: Path) -> None:
    """The same file under another name, which costs nothing, or a copy where the disk has no such thing."""
    try:
        os.link(path.resolve(), target)
    except OSError:
        shutil.copyfile(path, target)
