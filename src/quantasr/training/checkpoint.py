"""A checkpoint: a folder with the model, the optimizer and where training stands, whole or not there at all.

``model.safetensors``, ``optimizer.safetensors`` and ``state.json``; nothing in it can run code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from quantasr.atomic import put_folder
from quantasr.errors import TrainingError

FORMAT = 1
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_NAME = re.compile(r"step-(\d{6,})")


@dataclass
class TrainState:
    """Where training stands after ``step`` steps: all that goes on with it, but for weights and the optimizer's state.

    ``candidates`` are the checkpoints that the final weights may come from: step, and figure of validation (lower is
    better; 0 without validation). ``best`` is the best figure so far, and ``without_better`` counts the validations
    since. ``since`` are sums since the last report, ``scaler`` is what scales losses for fp16.
    """

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    candidates: dict[int, float] = field(default_factory=dict)
    best: float | None = None
    without_better: int = 0
    ended: bool = False
    since: dict[str, float] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint's folder holds. ``identity`` is what must be the same in a run that goes on from it."""

    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: TrainState
    identity: Mapping[str, Any]


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint's folder; raises :class:`TrainingError` for a full disk and the like."""
    table = {"format": FORMAT, "training": asdict(checkpoint.state), "identity": dict(checkpoint.identity)}

    def fill(fresh: Path) -> None:
        save_file(alone(checkpoint.model), fresh / MODEL)
        save_file(alone(checkpoint.optimizer), fresh / OPTIMIZER)
        (fresh / STATE).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")

    try:
        put_folder(folder, fill)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{folder}: cannot write the checkpoint: {getattr(error, 'strerror', None) or error}: make room on the "
            "disk, and go on from the checkpoint before with --resume"
        ) from error


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's folder, its tensors on the CPU; raises :class:`TrainingError` if it is damaged."""
    try:
        table = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if table["format"] != FORMAT:
            raise ValueError(f"format {table['format']!r}: this quantasr reads format {FORMAT}")
        state = TrainState(**table["training"])
        state.candidates = {int(step): figure for step, figure in state.candidates.items()}  # JSON's keys are strings
        return Checkpoint(load_file(folder / MODEL), load_file(folder / OPTIMIZER), state, table["identity"])
    except (OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise TrainingError(f"{folder}: no checkpoint, or a damaged one: {error}") from error


def checkpoints_in(run: Path) -> dict[int, Path]:
    """The checkpoints in a run's folder by step, the newest last."""
    found = {int(match[1]): path for path in run.glob("checkpoints/*") if (match := _NAME.fullmatch(path.name))}
    return dict(sorted(found.items()))


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies in a run's folder."""
    return run / "checkpoints" / f"step-{step:06d}"


def alone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU that share no memory, as tied weights do: safetensors wants each by itself."""
    return {
        name: torch.clone(tensor.detach().cpu(), memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """What a table holds, and the tables in it, by dotted names; as JSON gives it back, without tuples and paths."""
    rows: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            rows |= {f"{name}.{key}": inner for key, inner in flat(value).items()}
        else:
            rows[name] = json.loads(json.dumps(value, default=str))
    return rows


def differences(identity: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What differs between a run (``identity``) and a checkpoint (``other``), in words."""
    words = []
    for key in sorted({*identity, *other}):
        new, old = identity.get(key), other.get(key)
        if new != old:
            short = all(len(str(value)) <= 40 for value in (new, old))
            words.append(f"{key} ({new}, was {old})" if short else key)
    return words
