"""Distillation: what the float original says of every frame is what is learned (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from quantasr.errors import TrainingError
from quantasr.sources.asr_model import FrameModel, evaluating
from quantasr.training.batch import Batch, Example, Output
from quantasr.training.losses.features import BatchFeatures
from quantasr.training.spec_augment import SpecAugment


class Distillation:
    """KL(teacher || student) of each frame, with the teacher reading the same features as the student.

    Both are softened: log-probs are divided by ``temperature`` and normalized again, and the divergence is multiplied
    by its square, so that gradients keep their size. The log-likelihoods of chain models are no probabilities: the
    normalization makes them comparable, and what it takes away, one number a frame, does not change what is recognised.

    Texts are not needed. ``teacher`` must be a model of its own, not the one that is trained; it runs in evaluation
    mode, without gradients. The sum is over frames, and so is the weight.

    Raises:
        TrainingError: the temperature is not positive.
    """

    name = "distillation"

    def __init__(
        self, teacher: FrameModel, *, temperature: float = 1.0, spec_augment: SpecAugment | None = None
    ) -> None:
        if not temperature > 0:
            raise TrainingError(f"distillation: temperature is {temperature}: give more than 0")
        self._teacher = teacher
        self._temperature = temperature
        self._device = torch.device("cpu")
        self._features = BatchFeatures(teacher, spec_augment)

    def collate(self, examples: Sequence[Example], seed: int) -> Batch:
        """Features of some recordings; the weight is the number of frames that the model makes of them."""
        features, lengths = self._features(examples, seed)
        counts = self._teacher.frame_counts(lengths)
        return Batch(tuple(e.id for e in examples), features, lengths, None, float(counts.sum()))

    def __call__(self, output: Output, batch: Batch) -> Tensor:
        """The sum over all frames of ``batch``."""
        return self._frames(output, batch).sum()

    def each(self, output: Output, batch: Batch) -> Tensor:
        """The mean over the frames of every recording, ``[batch]``."""
        return self._frames(output, batch).sum(1) / output.counts.clamp(min=1)

    def _frames(self, output: Output, batch: Batch) -> Tensor:
        """The divergence of every frame, ``[batch, frames]``, 0 behind a recording's end."""
        teacher, counts = self._teach(batch.features, batch.lengths)
        if not torch.equal(counts, output.counts):
            raise TrainingError(
                "distillation: teacher and student make different numbers of frames of one recording: "
                "take the float original of the same model as teacher"
            )
        student = functional.log_softmax(output.logprobs.float() / self._temperature, -1)
        wanted = functional.log_softmax(teacher.float() / self._temperature, -1)
        divergence = (wanted.exp() * (wanted - student)).sum(-1) * self._temperature**2
        valid = torch.arange(divergence.shape[1], device=counts.device) < counts[:, None]
        return torch.where(valid, divergence, 0.0)

    def _teach(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if self._device != features.device:
            self._teacher.graph.to(features.device)
            self._device = features.device
        with evaluating(self._teacher.module), torch.no_grad():
            logprobs, counts, _ = self._teacher.train_outputs(features, lengths)
        return logprobs, counts
