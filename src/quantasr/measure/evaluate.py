"""Word error rate and real-time factor of one system or several, on the same utterances in one run."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from quantasr.atomic import write_atomically
from quantasr.errors import AudioError, ManifestError
from quantasr.measure.faults import advise
from quantasr.progress import track
from quantasr.runtime import artifact_of
from quantasr.speech.audio import describe_faults
from quantasr.speech.manifest import Utterance, read_manifest, require_texts
from quantasr.speech.manifest.fingerprint import check_not_among
from quantasr.speech.scoring import PairedComparison, Score, compare_scores, score
from quantasr.speech.text import normalizer as find_normalizer
from quantasr.speech.transcript import Transcriber, Transcript, Waveform

_ALSO_HEARD = {"training": "training", "retuned": "tuning"}
"""What else than calibration speech an artifact must not be evaluated on, by the entry of its provenance."""


@dataclass(frozen=True)
class EvalResult:
    """What one system made of a manifest.

    ``transcripts`` are in the order of ``utterances``; ``normalizer`` was applied to both sides before scoring.
    ``seconds`` is the time spent in the recogniser (frontend, model and decoder; reading files is not counted).
    ``failures`` names the recordings that could not be read and are not counted, and why; ``warnings`` those that are
    suspicious (silent, clipped) but were used.
    """

    system: str
    utterances: tuple[Utterance, ...]
    transcripts: tuple[Transcript, ...]
    seconds: float
    normalizer: str = "basic"
    failures: Mapping[str, str] = field(default_factory=dict)
    warnings: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def references(self) -> list[str]:
        """Normalised reference texts."""
        normalize = find_normalizer(self.normalizer)
        return [normalize(text) for text in require_texts(self.utterances)]

    @cached_property
    def hypotheses(self) -> list[str]:
        """Normalised recognised texts."""
        normalize = find_normalizer(self.normalizer)
        return [normalize(transcript.text) for transcript in self.transcripts]

    @cached_property
    def wer(self) -> Score:
        """Word error rate with its counts and interval."""
        return score(self.references, self.hypotheses, "word")

    @cached_property
    def cer(self) -> Score:
        """Character error rate with its counts and interval."""
        return score(self.references, self.hypotheses, "character")

    @property
    def audio_seconds(self) -> float:
        """Length of all recordings."""
        return sum(transcript.duration for transcript in self.transcripts)

    @property
    def rtf(self) -> float:
        """Real-time factor: processing time ÷ audio time; lower is better."""
        return self.seconds / self.audio_seconds

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary, without the single utterances."""
        return {
            "system": self.system,
            "utterances": len(self.utterances),
            "normalizer": self.normalizer,
            "wer": self.wer.to_dict(),
            "cer": self.cer.to_dict(),
            "audio_seconds": round(self.audio_seconds, 3),
            "processing_seconds": round(self.seconds, 3),
            "rtf": round(self.rtf, 5),
        }

    def rows(self) -> list[dict[str, Any]]:
        """A JSON-ready row for each utterance: texts, counts, times of words."""
        return [
            {
                "system": self.system,
                "id": utterance.id,
                "audio": str(utterance.audio),
                "speaker": utterance.speaker,
                "reference": reference,
                "hypothesis": hypothesis,
                "substitutions": counts.substitutions,
                "deletions": counts.deletions,
                "insertions": counts.insertions,
                "reference_length": counts.reference_length,
                **transcript.to_dict(),
            }
            for utterance, reference, hypothesis, counts, transcript in zip(
                self.utterances, self.references, self.hypotheses, self.wer.utterances, self.transcripts, strict=True
            )
        ]


@dataclass(frozen=True)
class Evaluation:
    """Several systems on the same utterances."""

    results: tuple[EvalResult, ...]

    @property
    def failures(self) -> Mapping[str, str]:
        """Recordings that could not be read, by the utterance's id, and why."""
        return self.results[0].failures

    @property
    def warnings(self) -> Mapping[str, str]:
        """Recordings that are suspicious but were used, by the utterance's id."""
        return self.results[0].warnings

    def against_first(self) -> list[PairedComparison]:
        """Every further system compared with the first, pair by pair of utterances."""
        return [compare_scores(self.results[0].wer, other.wer) for other in self.results[1:]]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "results": [result.to_dict() for result in self.results],
            "comparisons": [
                {"system": result.system, "baseline": self.results[0].system, **pair.to_dict()}
                for result, pair in zip(self.results[1:], self.against_first(), strict=True)
            ],
            "failures": dict(self.failures),
            "warnings": dict(self.warnings),
        }

    def save_utterances(self, path: Path) -> None:
        """Write every utterance of every system as a line of JSON."""
        rows = (json.dumps(row, ensure_ascii=False) for result in self.results for row in result.rows())
        write_atomically(path, "".join(f"{row}\n" for row in rows))


def evaluate(transcriber: Transcriber, manifest: str | Path | Sequence[Utterance], **options: Any) -> EvalResult:
    """Evaluate one system; see :func:`evaluate_systems` for the options and errors.

    What was left out is in the result's ``failures``.
    """
    return evaluate_systems([transcriber], manifest, **options).results[0]


def evaluate_systems(
    systems: Sequence[Transcriber],
    manifest: str | Path | Sequence[Utterance],
    *,
    normalizer: str = "basic",
    batch_size: int = 1,
    limit: int | None = None,
    progress: bool = False,
) -> Evaluation:
    """Run every system over a manifest, batch by batch in turn, and score them.

    Systems take turns on each batch (and the order turns too), so that a machine whose speed drifts slows all of
    them alike. A recording that cannot be read is left out and reported; the rest is evaluated. Raises
    :class:`quantasr.errors.ManifestError` when texts are missing or a system was calibrated on one of the utterances,
    and :class:`quantasr.errors.AudioError` when no recording can be read.
    """
    if limit is not None and limit < 1:
        raise ManifestError(f"limit is {limit}: give 1 or more utterances")
    if batch_size < 1:
        raise ManifestError(f"batch_size is {batch_size}: give 1 or more utterances")
    utterances = read_manifest(manifest) if isinstance(manifest, str | Path) else list(manifest)
    utterances = utterances[:limit]
    if not utterances:
        raise ManifestError("there are no utterances to evaluate on: give some")
    require_texts(utterances)
    find_normalizer(normalizer)
    for system in systems:
        artifact = artifact_of(system)
        if artifact is not None:
            also = [name for key, name in _ALSO_HEARD.items() if key in artifact.provenance]
            heard = " and ".join(["calibration", *also])
            check_not_among(artifact.calibration(), utterances, f"{heard} speech of {artifact.name}")
    used: list[Utterance] = []
    failures: dict[str, str] = {}
    warnings: dict[str, str] = {}
    seconds = [0.0] * len(systems)
    transcripts: list[list[Transcript]] = [[] for _ in systems]
    batches = [utterances[i : i + batch_size] for i in range(0, len(utterances), batch_size)]
    warm = False
    for turn, batch in enumerate(track(batches, "evaluating", total=len(batches), show=progress)):
        readable = load_batch(batch, systems, failures, warnings)
        if not readable:
            continue
        used += [utterance for utterance, _ in readable]
        order = list(range(len(systems)))
        for i in order[turn % len(order) :] + order[: turn % len(order)]:
            waves = [by_rate[systems[i].sample_rate] for _, by_rate in readable]
            if not warm:
                systems[i].transcribe(waves[:1])  # kernels are made and memory is taken in the first run
            begin = time.perf_counter()
            transcripts[i] += systems[i].transcribe(waves)
            seconds[i] += time.perf_counter() - begin
        warm = True
    if not used:
        first = next(iter(failures.values()))
        raise AudioError(f"none of {len(utterances)} recordings can be read; the first: {first}")
    results = tuple(
        EvalResult(system.name, tuple(used), tuple(transcripts[i]), seconds[i], normalizer, failures, warnings)
        for i, system in enumerate(systems)
    )
    return Evaluation(results)


def load_batch(
    batch: Sequence[Utterance], systems: Sequence[Transcriber], failures: dict[str, str], warnings: dict[str, str]
) -> list[tuple[Utterance, dict[int, Waveform]]]:
    """Each readable utterance with its samples at every rate that a system wants."""
    rates = {system.sample_rate for system in systems}
    found = []
    for utterance in batch:
        try:
            waves = {rate: utterance.load(rate) for rate in rates}
        except AudioError as error:
            failures[utterance.id] = str(error)
            continue
        faults = describe_faults(next(iter(waves.values()))) if utterance.features is None else ()
        if faults:
            listed = f" (listed in {utterance.source})" if utterance.source else ""
            warnings[utterance.id] = f"{utterance.audio}: {'; '.join(map(advise, faults))}{listed}"
        found.append((utterance, waves))
    return found
