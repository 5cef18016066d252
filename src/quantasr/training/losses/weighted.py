"""CTC and distillation together."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from quantasr.errors import TrainingError
from quantasr.training.batch import Batch, Example, Output
from quantasr.training.losses.ctc import CtcLoss
from quantasr.training.losses.distillation import Distillation


class Weighted:
    """``(1 - alpha)`` x CTC + ``alpha`` x distillation, recording by recording; the weight is their number.

    Here distillation is the mean over a recording's own frames, so that both count recordings.

    Raises:
        TrainingError: alpha is not from 0 to 1.
    """

    name = "ctc+distillation"

    def __init__(self, ctc: CtcLoss, distillation: Distillation, alpha: float = 0.5) -> None:
        if not 0 <= alpha <= 1:
            raise TrainingError(f"alpha, the share of distillation in the loss, is {alpha}: give 0 to 1")
        self._ctc = ctc
        self._distillation = distillation
        self._alpha = alpha

    def collate(self, examples: Sequence[Example], seed: int) -> Batch:
        """Features and labels, as CTC has them."""
        return self._ctc.collate(examples, seed)

    def __call__(self, output: Output, batch: Batch) -> Tensor:
        """The sum over the recordings of ``batch``."""
        ctc, distillation = self._ctc.each(output, batch), self._distillation.each(output, batch)
        return ((1 - self._alpha) * ctc + self._alpha * distillation).sum()
