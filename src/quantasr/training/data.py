"""The recordings of a training run: from a manifest to one batch for each step."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import TrainingError
from quantasr.sources.asr_model import CtcModel, FrameModel
from quantasr.speech.manifest import Utterance
from quantasr.training.augment import Augmenter
from quantasr.training.batch import Example
from quantasr.training.buckets import Buckets
from quantasr.training.checks import Checks
from quantasr.training.data_options import DataOptions
from quantasr.training.disjoint import Apart
from quantasr.training.labels import LabelEncoder
from quantasr.training.reading import seconds_of, stream_utterances
from quantasr.training.report import DataReport, lasting
from quantasr.training.store import UtteranceStore
from quantasr.training.subset import drawn, hold_back

Say = Callable[[str], None]
Problem = Callable[[str, str | None, float], str | None]

_ARCHIVES = threading.Lock()


@dataclass(frozen=True)
class Recording:
    """A :class:`~quantasr.training.batch.LazyExample`: an utterance in one epoch."""

    utterance: Utterance
    seconds: float
    epoch: int
    sample_rate: int
    augmenter: Augmenter

    @property
    def id(self) -> str:
        """The id of the utterance."""
        return self.utterance.id

    def load(self) -> Example:
        """Read and augment it. Raises AudioError, naming the manifest's line."""
        # An archive of features reads one place after the other, and examples are loaded by several threads.
        with nullcontext() if _has_only_sound(self.utterance) else _ARCHIVES:
            wave = self.utterance.load(self.sample_rate)
        return Example(self.id, self.augmenter(wave, self.epoch, self.id), self.utterance.text)


class TrainingData:
    """A :class:`~quantasr.training.batch.BatchSource` over the utterances of a manifest.

    ``validation`` are utterances that are not trained on, and ``report`` says what was left out. Nothing is read but
    the manifest, and headers where it tells no lengths, until :meth:`Recording.load`. Closing is not needed.
    """

    def __init__(
        self,
        store: UtteranceStore,
        chosen: NDArray[np.int64],
        augmenter: Augmenter,
        options: DataOptions,
        report: DataReport,
        validation: Sequence[Utterance],
        *,
        sample_rate: int,
        batch: int,
        seed: int,
    ) -> None:
        self.report = report
        self.validation = list(validation)
        self._store = store
        self._augmenter = augmenter
        self._rate = sample_rate
        self._options, self._batch, self._seed = options, batch, seed
        self._train_on(chosen)

    @classmethod
    def open(
        cls,
        manifest: str | Path,
        model: FrameModel,
        options: DataOptions | None = None,
        *,
        batch: int,
        seed: int = 0,
        validation: str | Path | None = None,
        apart_from: Mapping[str, Sequence[Utterance]] | None = None,
        needs_text: bool = True,
        encoder: LabelEncoder | None = None,
        format: str = "auto",
        trust: bool = False,
        say: Say | None = None,
    ) -> TrainingData:
        """Read the manifests, check every utterance, and choose.

        ``batch``: recordings of one step. ``apart_from``: lists of speech by their names ("test", "calibration") that
        must not be trained on. ``needs_text`` is False for distillation. ``encoder`` makes the labels; of a
        :class:`CtcModel` it is made from its tokenizer. ``say`` is given the lines of the report.

        Raises:
            TrainingError: there is no validation set and none is held out, or nothing is left to train on.
            ManifestError: a manifest cannot be read, or they share speech.
            AudioError: a header cannot be read.
        """
        options = options or DataOptions()
        if validation is None and not options.holdout:
            raise TrainingError(
                f"{manifest}: there is no validation manifest: name one, or hold some of the training speech back "
                "(holdout, such as 5%)"
            )
        if validation is not None and options.holdout:
            raise TrainingError(f"{validation}: a validation manifest and holdout exclude each other: take one away")
        if encoder is None and needs_text and isinstance(model, CtcModel):
            encoder = LabelEncoder.of(model)
        augmenter = Augmenter(options.augment, model.sample_rate, seed, trust=trust)
        others = dict(apart_from or {})
        held = [] if validation is None else list(stream_utterances(validation, trust=trust))
        if held:
            others = {"validation": held, **others}

        report = DataReport(str(manifest))
        checks = Checks(
            report,
            model,
            encoder,
            needs_text,
            options.min_seconds,
            min(options.max_seconds, (options.max_batch_seconds or math.inf) * min(options.augment.speeds)),
            max(options.augment.speeds),
        )
        store = _read(stream_utterances(manifest, format=format, trust=trust), checks, others, options)
        if not len(store):
            raise TrainingError(f"{manifest}: no utterance can be trained on: {'; '.join(report.lines()[1:])}")
        chosen, kept_back = _choose(store, options, seed, report)
        data = cls(
            store,
            chosen,
            augmenter,
            options,
            report,
            held or [store[int(i)] for i in kept_back],
            sample_rate=model.sample_rate,
            batch=batch,
            seed=seed,
        )
        if say is not None:
            for line in report.lines():
                say(line)
        return data

    def leave_out(self, problem: Problem, say: Say | None = None) -> None:
        """Leave out what a loss cannot learn from; the report's lines on it go to ``say``.

        ``problem(id, text, seconds)`` is why not, or None. What stands behind a colon is counted by itself, part by
        part: "words without a pronunciation: ab, cd". Lengths are those at the fastest speed.

        Raises:
            TrainingError: nothing is left.
        """
        found = DataReport(self.report.manifest, listed=len(self))
        kept = []
        for index, seconds in zip(self._chosen, self._seconds / max(self._options.augment.speeds), strict=True):
            utterance = self._store[int(index)]
            reason, _, parts = (problem(utterance.id, utterance.text, float(seconds)) or "").partition(": ")
            if not reason:
                kept.append(index)
                continue
            found.skip(f"whose loss cannot be computed ({reason})", utterance.id)
            if parts:
                found.details.setdefault(f"whose loss cannot be computed ({reason})", Counter()).update(
                    parts.split(", ")
                )
        if say is not None:
            for line in found.lines()[1:]:
                say(line)
        if not kept:
            raise TrainingError(
                f"{self.report.manifest}: no utterance can be trained on: {'; '.join(found.lines()[1:])}"
            )
        self._train_on(np.array(kept, np.int64))
        self.report.skipped += found.skipped
        self.report.examples |= found.examples
        self.report.details |= found.details
        self.report.kept, self.report.seconds = len(kept), float(self._seconds.sum())

    def _train_on(self, chosen: NDArray[np.int64]) -> None:
        self._chosen = chosen
        self._seconds = self._store.seconds[chosen]
        self._buckets = Buckets(
            self._seconds / min(self._options.augment.speeds),
            self._batch,
            buckets=self._options.buckets,
            max_batch_seconds=self._options.max_batch_seconds,
            seed=self._seed,
        )

    @property
    def steps_per_epoch(self) -> int:
        """How many batches hold every utterance once."""
        return self._buckets.per_epoch

    def __len__(self) -> int:
        """How many utterances are trained on."""
        return len(self._chosen)

    @property
    def utterances(self) -> Iterator[Utterance]:
        """What is trained on, one by one."""
        return (self._store[int(i)] for i in self._chosen)

    def batches(self, first: int, last: int) -> Iterator[list[Recording]]:
        """The recordings of every step from ``first`` to ``last - 1``, as the seed and the step have it."""
        for step in range(first, last):
            epoch, members = self._buckets.batch(step)
            yield [self._recording(int(i), epoch) for i in members]

    def _recording(self, index: int, epoch: int) -> Recording:
        utterance = self._store[int(self._chosen[index])]
        seconds = float(self._seconds[index]) / self._augmenter.speed(epoch, utterance.id)
        return Recording(utterance, seconds, epoch, self._rate, self._augmenter)


def _read(
    utterances: Iterable[Utterance],
    checks: Checks,
    others: Mapping[str, Sequence[Utterance]],
    options: DataOptions,
) -> UtteranceStore:
    """The utterances that pass the checks; none of the others."""
    store, apart = UtteranceStore(), Apart(others)
    for utterance in utterances:
        if options.augment.changes_sound and not _has_only_sound(utterance):
            raise TrainingError(
                f"{utterance.source or utterance.id}: comes with features or i-vectors, which would not fit a changed "
                "sound: switch speed, gain and noise off, or give sound alone"
            )
        seconds = seconds_of(utterance)
        if checks.keeps(utterance, seconds):
            apart.show(utterance)
            store.append(utterance, seconds)
    apart.check()
    return store


def _has_only_sound(utterance: Utterance) -> bool:
    return utterance.features is None and utterance.ivectors is None


def _choose(
    store: UtteranceStore, options: DataOptions, seed: int, report: DataReport
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of what is trained on, and of what is kept back for validation."""
    seconds = store.seconds
    chosen, kept_back = np.arange(len(store)), np.zeros(0, np.int64)
    if options.holdout:
        kept_back, whole_speakers = hold_back(store, seconds, options.holdout, seed)
        chosen = np.setdiff1d(chosen, kept_back)
        report.notes.append(
            f"{len(kept_back)} utterances ({lasting(float(seconds[kept_back].sum()))}) are kept back for validation"
            + ("" if whole_speakers else "; their speakers are trained on too")
        )
        if not len(chosen):
            raise TrainingError(
                f"{report.manifest}: nothing is left to train on when {options.holdout} are held out: hold out less, "
                "or name a validation manifest"
            )
    if options.hours is not None:
        ids = [store[int(i)].id for i in chosen]
        asked, there = options.hours * 3600, float(seconds[chosen].sum())
        if asked > there:
            report.notes.append(f"{options.hours:g} h were asked for, and there are {there / 3600:.2f}")
        chosen = chosen[drawn(ids, seconds[chosen], asked, seed)]
    report.kept, report.seconds = len(chosen), float(seconds[chosen].sum())
    return chosen, kept_back
