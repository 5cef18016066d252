"""What is trained: a model, and in quantization-aware training its quantizers too, as one module."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from quantasr.quantize.training import QatState
from quantasr.sources.asr_model import FrameModel
from quantasr.training.batch import Output
from quantasr.training.optimizers import BATCH_NORMS


class Trainee(nn.Module):
    """A model in training; ``state_dict()`` is all that a checkpoint must hold, learned scales included.

    Batch norms take the statistics of each batch for ``freeze_norms_after`` steps (0: never; None: always), and are
    from then on as in inference.
    """

    steps: Tensor

    def __init__(self, model: FrameModel, qat: QatState | None = None, *, freeze_norms_after: int | None = 0) -> None:
        super().__init__()
        self.module = model.module
        self.qat = qat
        self.register_buffer("steps", torch.tensor(0))
        self._freeze_norms_after = freeze_norms_after
        self._model = model
        self._update()

    def forward(self, features: Tensor, lengths: Tensor) -> Output:
        """``[batch, time]`` or ``[batch, frames, bins]``, and rows of each recording ``[batch]``.

        In eval mode quantizers do as they were told, by :meth:`QatState.settled` for one.
        """
        with self.qat.rounding() if self.qat is not None and self.training else nullcontext():
            return Output(*self._model.train_outputs(features, lengths))

    def train(self, mode: bool = True) -> Trainee:
        """As of any module; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        self._update()
        return self

    def after_step(self, *_: Any) -> None:
        """To be called after each optimizer step, in every process: scales follow, and what is due is frozen."""
        if self.qat is not None:
            self.qat.after_step()
        self.steps += 1
        self._update()

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As of any module; what was frozen by then is frozen again."""
        found = super().load_state_dict(*args, **kwargs)
        self._update()
        return found

    def _update(self) -> None:
        steps = int(self.steps)
        if self.qat is not None:
            self.qat.freeze_due(steps)
        if self._freeze_norms_after is not None and steps >= self._freeze_norms_after:
            if self.qat is not None:
                self.qat.freeze_norms()
            for part in self.module.modules():
                if isinstance(part, BATCH_NORMS):
                    part.eval()
