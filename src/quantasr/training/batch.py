"""What a training step works on, and what losses are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from quantasr.speech.transcript import Waveform


@dataclass(frozen=True)
class Example:
    """One recording as training hears it: augmented, mono ``[samples]`` at the model's rate, and what is said."""

    id: str
    wave: Waveform
    text: str | None


class LazyExample(Protocol):
    """A recording that is read and augmented only when it is asked for: by the one process whose share it is in."""

    @property
    def id(self) -> str: ...

    @property
    def seconds(self) -> float:
        """Its length after augmentation, known without reading it."""

    def load(self) -> Example:
        """Read and augment it; gives the same each time."""


class BatchSource(Protocol):
    """What gives training its recordings."""

    @property
    def steps_per_epoch(self) -> int:
        """How many optimizer steps go once over the data."""

    def batches(self, first: int, last: int) -> Iterator[Sequence[LazyExample]]:
        """All recordings of every optimizer step from ``first`` to ``last - 1``, whatever the number of processes.

        Step ``s`` is the same whichever step is the first: what is in it depends on the seed and ``s`` alone. A step
        may have fewer recordings than there are processes, but not none.
        """


@dataclass(frozen=True)
class Batch:
    """Recordings side by side: ``features`` ``[batch, time]`` or ``[batch, frames, bins]``, ``lengths`` ``[batch]``.

    ``lengths`` count rows of ``features``. ``targets`` are what the loss compares with, and only the loss knows them.
    ``weight`` is what the loss's sum is divided by (utterances, or frames): known before the model is run, so that
    batches can be parted over steps and processes and still add up to the same number.
    """

    ids: tuple[str, ...]
    features: Tensor
    lengths: Tensor
    targets: Any
    weight: float

    def to(self, device: Any) -> Batch:
        """The same batch on another device; ``targets`` move if they can."""
        moved = self.targets.to(device) if hasattr(self.targets, "to") else self.targets
        return replace(self, features=self.features.to(device), lengths=self.lengths.to(device), targets=moved)


@dataclass(frozen=True)
class Output:
    """What a model gives in training: ``logprobs`` ``[batch, frames, vocabulary]``, ``counts`` ``[batch]`` of frames.

    ``xent`` ``[batch, frames, pdfs]`` are the log-posteriors of a chain model's cross-entropy branch, if it has one.
    """

    logprobs: Tensor
    counts: Tensor
    xent: Tensor | None = None


class Loss(Protocol):
    """A loss and the batches that it needs."""

    name: str

    def collate(self, examples: Sequence[Example], seed: int) -> Batch:
        """Features and targets of some recordings.

        ``seed`` is the same for all batches of a step: with the recordings' ids it decides what is random.
        """

    def __call__(self, output: Output, batch: Batch) -> Tensor:
        """The sum (not the mean) of the loss over ``batch``: divided by ``batch.weight`` it is the mean."""
