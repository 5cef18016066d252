"""The mean of several models' weights: of checkpoints of one run, or of parallel jobs' models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quantasr.errors import TrainingError
from quantasr.training.checkpoint import MODEL, checkpoints_in

COUNTERS = ("zero_point", "num_batches_tracked")
"""Tensors that hold whole numbers, of whatever type: a mean of them would mean nothing."""


def averages(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is averaged; the others (whole numbers) are the newest's."""
    return tensor.is_floating_point() and name.rpartition(".")[2] not in COUNTERS


def average_checkpoints(folders: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of the models in some folders: of checkpoints, or of runs, whose newest checkpoint is taken.

    Summed in float64, one tensor at a time; what is not averaged is the last folder's. Izmailov et al., arXiv
    1803.05407; Kaldi's ``nnet3-average`` does the same with its jobs' models. Raises :class:`TrainingError` when there
    is no folder, or they hold different models.
    """
    files = [_model_file(folder) for folder in folders]
    if not files:
        raise TrainingError("there is nothing to average: no checkpoint is given")
    try:
        # Memory maps: only one tensor of each is in memory.
        models = [safe_open(file, framework="pt") for file in files]
        names = [set(model.keys()) for model in models]  # type: ignore[no-untyped-call]
        for file, other in zip(files, names, strict=True):
            if other != names[0]:
                odd = min(names[0] ^ other)
                raise TrainingError(f"{file}: another model than {files[0]}: {odd} is only in one of them")
        return {name: _mean(name, [model.get_tensor for model in models], files) for name in sorted(names[0])}
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{', '.join(str(file) for file in files)}: cannot be averaged: {error}") from error


def _mean(name: str, readers: Sequence[Callable[[str], Tensor]], files: Sequence[Path]) -> Tensor:
    newest = readers[-1](name)
    if not averages(name, newest):
        return newest
    total = torch.zeros_like(newest, dtype=torch.float64)
    for reader, file in zip(readers, files, strict=True):
        tensor = reader(name)
        if tensor.shape != newest.shape:
            raise TrainingError(f"{file}: another model: {name} is {[*tensor.shape]}, not {[*newest.shape]}")
        total += tensor
    return (total / len(readers)).to(newest.dtype)


def _model_file(folder: Path) -> Path:
    if (folder / MODEL).is_file():
        return folder / MODEL
    checkpoints = checkpoints_in(folder)
    if not checkpoints:
        raise TrainingError(f"{folder}: neither a checkpoint nor a run with one")
    return checkpoints[max(checkpoints)] / MODEL
