"""One step of the optimizer, whatever the number of processes and of parts that its batch comes in."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from quantasr.errors import TrainingError
from quantasr.training.batch import Loss, Output
from quantasr.training.optimizers import named_trained
from quantasr.training.options import TrainOptions
from quantasr.training.processes import Processes
from quantasr.training.shares import Share, seed_step


@runtime_checkable
class FollowsSteps(Protocol):
    """A model in training that changes with the steps: in its quantizers, ranges follow what they have seen."""

    def after_step(self) -> None:
        """Called after each step, skipped ones too, in all processes."""


@dataclass(frozen=True)
class Taken:
    """What a step has given, over all processes: the loss's sum and its weight, recordings, norm of the gradient."""

    loss: float
    weight: float
    examples: int
    norm: float
    skipped: bool

    @property
    def mean(self) -> float:
        """The mean loss."""
        return self.loss / self.weight if self.weight else math.nan


class Stepper:
    """Takes steps with one model, loss and optimizer (as Accelerate has prepared it)."""

    def __init__(
        self, trainee: nn.Module, loss: Loss, optimizer: Any, options: TrainOptions, processes: Processes
    ) -> None:
        self.trainee, self.loss, self.optimizer, self.options = trainee, loss, optimizer, options
        self.processes = processes
        self.parameters = [parameter for _, parameter in named_trained(trainee)]
        self._kept = set(trainee.state_dict())

    def take(self, share: Share) -> Taken:
        """One step. Where loss or gradient is no finite number, nothing changes, and ``skipped`` is set.

        The gradient is that of the loss's sum over all recordings of the step, divided by their weight; with
        ``sync = "models"``, over those of this process. Raises :class:`TrainingError` when memory is not enough.
        """
        together = self.options.sync == "gradients"
        (weight,) = self.processes.sum(share.weight)
        before = [buffer.clone() for buffer in self._buffers()]
        self.optimizer.zero_grad()
        with self.processes.together():
            mine = self._backward(share, weight if together else share.weight)
        if together:
            self.processes.sum_gradients(self.parameters)
        # Without clipping the norm is still wanted: it shows a NaN in any gradient.
        norm = float(self.processes.accelerator.clip_grad_norm_(self.parameters, self.options.clip or math.inf))
        finite = math.isfinite(mine) and math.isfinite(norm)
        loss, odd = self.processes.sum(mine, float(not finite))
        skipped = odd > 0 or weight == 0
        if skipped:
            self._take_back(before)
        elif share.batches or together:
            self.optimizer.step()
        if together:
            self.processes.send_out(self._buffers())  # statistics of batch norms are those of the main process's share
        if isinstance(self.trainee, FollowsSteps):
            self.trainee.after_step()
        return Taken(loss, weight, share.examples, norm, skipped)

    def _backward(self, share: Share, weight: float) -> float:
        """Run the model forward and back on this process's batches; gives the sum of the loss."""
        total = 0.0
        try:
            for position, batch in share.batches:
                batch = batch.to(self.processes.device)
                seed_step(self.options.seed, share.step, position)
                with self.processes.accelerator.autocast():
                    output = self.trainee(batch.features, batch.lengths)
                value = self.loss(_in_float(output), batch)
                self.processes.accelerator.backward(value / weight)
                total += float(value.detach())
        except (RuntimeError, MemoryError) as error:
            if not _is_memory(error):
                raise
            raise TrainingError(
                f"out of memory in step {share.step + 1}; its longest recording is {share.longest}: take more "
                "accumulate or a smaller batch, or leave out the longest recordings"
            ) from error
        return total

    def _take_back(self, before: list[Tensor]) -> None:
        """Have everything as it was before a step: running the model has changed its batch norms' statistics."""
        for buffer, value in zip(self._buffers(), before, strict=True):
            buffer.copy_(value)
        scaler = self.processes.accelerator.scaler
        if scaler is not None and any(parameter.grad is not None for parameter in self.parameters):
            scaler.update()  # gradients that are too large for fp16 are scaled less from now on
        self.optimizer.zero_grad()

    def _buffers(self) -> list[Tensor]:
        return [buffer for name, buffer in self.trainee.named_buffers() if name in self._kept]


def _in_float(output: Output) -> Output:
    """Losses are computed in fp32 whatever the model is."""
    xent = output.xent if output.xent is None else output.xent.float()
    return replace(output, logprobs=output.logprobs.float(), xent=xent)


def _is_memory(error: Exception) -> bool:
    words = ("out of memory", "not enough memory", "can't allocate memory")
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or any(word in str(error) for word in words)
