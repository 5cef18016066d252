"""A run in the making: the model, its optimizer, where it stands, and how that is kept and found again."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from quantasr.errors import TrainingError
from quantasr.training.average import average_checkpoints
from quantasr.training.checkpoint import TrainState, checkpoint_folder, flat
from quantasr.training.optimizers import freeze, load_optimizer_tensors, make_optimizer, optimizer_tensors
from quantasr.training.options import HOW_NOT_WHAT, TrainOptions
from quantasr.training.processes import Processes
from quantasr.training.run_folder import Run, RunFolder


class Session:
    """What training changes. Only the main process has a ``folder``."""

    def __init__(self, trainee: nn.Module, options: TrainOptions, processes: Processes) -> None:
        self.trainee, self.options, self.processes = trainee, options, processes
        # Users write paths as they are in the model that a trainee is around.
        self._frozen_norms = freeze(getattr(trainee, "module", trainee), options.freeze)
        trainee.to(processes.device)
        self.optimizer = processes.accelerator.prepare(make_optimizer(trainee, options))
        self.state = TrainState()
        self.folder: RunFolder | None = None

    def open(self, run: Run, say: Callable[[str], None]) -> None:
        """Make the run's folder, or go on from its newest checkpoint; all processes then have the same weights."""
        checkpoint = None
        with self.processes.together():
            if self.processes.is_main:
                self.folder = RunFolder(run, self.options, self._identity(run), self.processes.count)
                if run.resume:
                    checkpoint = self.folder.newest(say)
                    where = (
                        f"going on after step {checkpoint.state.step}" if checkpoint else "no checkpoint: from step 1"
                    )
                    say(f"{run.folder}: {where}")
        checkpoint = self.processes.share(checkpoint)
        if checkpoint is not None:
            self.trainee.load_state_dict(dict(checkpoint.model))
            load_optimizer_tensors(self.optimizer, self.trainee, checkpoint.optimizer)
            self.state = checkpoint.state
            if self.processes.accelerator.scaler is not None:
                self.processes.accelerator.scaler.load_state_dict(self.state.scaler)
        self.processes.send_out(list(self.trainee.state_dict().values()))

    def save(self, figure: float | None = None) -> None:
        """Write a checkpoint; with a ``figure``, the final weights may come from it."""
        state = self.state
        if figure is not None:
            ranked = sorted((state.candidates | {state.step: figure}).items(), key=lambda item: (item[1], -item[0]))
            state.candidates = dict(sorted(ranked[: max(1, self.options.average)]))
        if self.processes.accelerator.scaler is not None:
            state.scaler = self.processes.accelerator.scaler.state_dict()
        with self.processes.together():
            if self.folder is not None:
                self.folder.save(self.trainee.state_dict(), optimizer_tensors(self.optimizer, self.trainee), state)

    def average_processes(self) -> None:
        """Give all processes the mean of their models, and of their optimizers' states."""
        self.trainee.load_state_dict(self.processes.average(self.trainee.state_dict()))
        moments = self.processes.average(optimizer_tensors(self.optimizer, self.trainee))
        load_optimizer_tensors(self.optimizer, self.trainee, moments)

    def train_mode(self) -> None:
        """Train mode, but for the batch norms in what is frozen."""
        self.trainee.train()
        for norm in self._frozen_norms:
            norm.eval()

    def validate(self, validate: Callable[[], Mapping[str, float]]) -> dict[str, float]:
        """Figures of the main process, while the others wait."""
        figures: dict[str, float] = {}
        with self.processes.together():
            if self.processes.is_main:
                self.trainee.eval()
                with torch.no_grad():
                    figures = {name: float(value) for name, value in validate().items()}
        self.train_mode()
        return dict(self.processes.share(figures))

    def judge(self, figures: Mapping[str, float]) -> float:
        """The figure that decides; notes whether it is the best so far, and ends training when patience does."""
        state = self.state
        name = self.options.best_by or next((name for name in ("wer", "loss", *figures) if name in figures), "")
        if name not in figures:
            raise TrainingError(f"best_by = {name!r}: validation gives {', '.join(figures) or 'nothing'}")
        figure = figures[name] if math.isfinite(figures[name]) else math.inf
        better = state.best is None or figure < state.best
        state.best = figure if better else state.best
        state.without_better = 0 if better else state.without_better + 1
        state.ended = bool(self.options.patience) and state.without_better >= self.options.patience
        return figure

    def finish(self) -> tuple[int, ...]:
        """Put the final weights into the trainee, in eval mode; gives the steps that they are the mean of."""
        chosen = sorted(self.state.candidates) if self.options.average else []
        with self.processes.together():
            if self.folder is not None and chosen:
                folders = [checkpoint_folder(self.folder.path, step) for step in chosen]
                self.trainee.load_state_dict(average_checkpoints(folders))
        self.processes.send_out(list(self.trainee.state_dict().values()))
        self.trainee.eval()
        return tuple(chosen) or (self.state.step,)

    def _identity(self, run: Run) -> dict[str, Any]:
        """What a run that goes on from a checkpoint of this one must have in common with it."""
        options = {name: value for name, value in self.options.to_dict().items() if name not in HOW_NOT_WHAT}
        shapes = [f"{name} {tensor.dtype} {[*tensor.shape]}" for name, tensor in self.trainee.state_dict().items()]
        digest = hashlib.sha256("\n".join(shapes).encode()).hexdigest()
        # Apart, each process goes its own way: with another number of them they would be other ways.
        processes = {"processes": self.processes.count} if self.options.sync == "models" else {}
        return flat({**options, **run.identity, "shapes of the weights": digest, **processes})
