"""Connectionist temporal classification (Graves et al., 2006): all alignments of the labels count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from quantasr.errors import TrainingError
from quantasr.sources.asr_model import CtcModel
from quantasr.training.batch import Batch, Example, Output
from quantasr.training.labels import LabelEncoder
from quantasr.training.losses.features import BatchFeatures
from quantasr.training.spec_augment import SpecAugment


@dataclass(frozen=True)
class Labels:
    """``ids`` ``[labels of all]``, one recording behind the other, and how many each has: ``lengths`` ``[batch]``."""

    ids: Tensor
    lengths: Tensor

    def to(self, device: Any) -> Labels:
        """The same on another device."""
        return Labels(self.ids.to(device), self.lengths.to(device))


class CtcLoss:
    """-log P(labels | recording) of each recording, divided by its number of labels.

    So the mean over a batch (sum ÷ weight, the number of recordings) is what PyTorch's ``ctc_loss`` calls "mean", and
    transformers ``ctc_loss_reduction="mean"``. Recordings that are too short for their labels count as 0 and give no
    gradient (``zero_infinity``).
    """

    name = "ctc"

    def __init__(
        self, model: CtcModel, *, spec_augment: SpecAugment | None = None, encoder: LabelEncoder | None = None
    ) -> None:
        self.encoder = encoder or LabelEncoder.of(model)
        self._blank = model.tokenizer.blank_id
        self._features = BatchFeatures(model, spec_augment)

    def collate(self, examples: Sequence[Example], seed: int) -> Batch:
        """Features and labels of some recordings.

        Raises:
            TrainingError: a recording has no text.
        """
        features, lengths = self._features(examples, seed)
        return Batch(tuple(e.id for e in examples), features, lengths, self._labels(examples), float(len(examples)))

    def __call__(self, output: Output, batch: Batch) -> Tensor:
        """The sum over the recordings of ``batch``."""
        return self.each(output, batch).sum()

    def each(self, output: Output, batch: Batch) -> Tensor:
        """The loss of every recording, ``[batch]``."""
        labels: Labels = batch.targets
        # cuDNN's CTC gives other numbers from run to run, and takes no labels on the GPU.
        with torch.backends.cudnn.flags(enabled=False):
            losses = functional.ctc_loss(
                output.logprobs.float().transpose(0, 1),
                labels.ids,
                output.counts,
                labels.lengths,
                blank=self._blank,
                reduction="none",
                zero_infinity=True,
            )
        return losses / labels.lengths.clamp(min=1)

    def _labels(self, examples: Sequence[Example]) -> Labels:
        rows = []
        for example in examples:
            if example.text is None:
                raise TrainingError(f"{example.id}: has no text, which the loss 'ctc' needs: give texts, or distil")
            rows.append(self.encoder.encode(example.text))
        ids = torch.tensor([i for row in rows for i in row], dtype=torch.int64)
        return Labels(ids, torch.tensor([len(row) for row in rows], dtype=torch.int64))
