"""The folder of a run: its configuration, checkpoints, and what was reported."""

from __future__ import annotations

import json
import math
import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from quantasr.atomic import sweep, write_atomically
from quantasr.errors import TrainingError
from quantasr.training.checkpoint import (
    Checkpoint,
    TrainState,
    checkpoint_folder,
    checkpoints_in,
    differences,
    read_checkpoint,
    write_checkpoint,
)
from quantasr.training.options import TrainOptions

CONFIG, METRICS, TENSORBOARD = "config.json", "metrics.jsonl", "tensorboard"


@dataclass(frozen=True)
class Run:
    """Where a run is kept, and what it is a run of.

    ``identity`` is what a resumed run must have in common with its checkpoint, besides the options and the shapes of
    the weights: by name, fingerprints of the model it began with, the recipe, the data. ``config`` is whatever else
    ``config.json`` should tell. With ``resume`` training goes on from the newest checkpoint in ``folder``, or begins if
    there is none; without it, ``folder`` must be new or empty.
    """

    folder: Path
    identity: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    resume: bool = False


class RunFolder:
    """The folder on disk; only the main process has one."""

    def __init__(self, run: Run, options: TrainOptions, identity: Mapping[str, Any], processes: int) -> None:
        self.path, self.identity, self._options = run.folder, identity, options
        try:
            if not run.resume and run.folder.exists() and (not run.folder.is_dir() or any(run.folder.iterdir())):
                raise TrainingError(f"{run.folder}: exists already: choose another folder, or go on with --resume")
            (run.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            sweep(run.folder / "checkpoints")
            config = {
                "options": options.to_dict(),
                "identity": dict(identity),
                "processes": processes,
                "versions": {name: version(name) for name in ("quantasr", "torch", "accelerate")}
                | {"python": platform.python_version()},
            }
            write_atomically(run.folder / CONFIG, json.dumps(config | dict(run.config), indent=1, default=str) + "\n")
        except OSError as error:
            raise TrainingError(f"{run.folder}: cannot be written: {error.strerror or error}") from error

    def newest(self, say: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that is not damaged. Raises :class:`TrainingError` if it is of another run."""
        for path in reversed(checkpoints_in(self.path).values()):
            try:
                checkpoint = read_checkpoint(path)
            except TrainingError as error:
                say(f"{error}: looking for the one before")
                continue
            words = differences(self.identity, checkpoint.identity)
            if words:
                raise TrainingError(f"{path}: a checkpoint of another run, which differs in {', '.join(words)}")
            return checkpoint
        return None

    def save(self, model: Mapping[str, torch.Tensor], optimizer: Mapping[str, torch.Tensor], state: TrainState) -> None:
        """Write the checkpoint of a step, and only then remove those that nothing needs any more."""
        write_checkpoint(checkpoint_folder(self.path, state.step), Checkpoint(model, optimizer, state, self.identity))
        found = checkpoints_in(self.path)
        for step in sorted(set(found) - {*list(found)[-self._options.keep :], *state.candidates}):
            shutil.rmtree(found[step], ignore_errors=True)

    def cut_metrics(self, step: int) -> None:
        """Forget what was reported after ``step``: those steps are taken again."""
        path = self.path / METRICS
        if path.is_file():
            lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            write_atomically(path, "".join(f"{line}\n" for line in lines))

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """One more line of ``metrics.jsonl``; what is no number is null."""
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain) + "\n")


def _step_of(line: str) -> float:
    """The step that a line is about; a line that was cut off when the disk was full is about none."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
