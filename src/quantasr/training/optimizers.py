"""Which parameters are trained, by which optimizer, and its state as plain tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quantasr.errors import TrainingError
from quantasr.quantize.fold import BatchNorm
from quantasr.recipes.pattern import Pattern, nearest
from quantasr.sources.kaldi.layers import BatchNorm as KaldiBatchNorm
from quantasr.training.options import TrainOptions

BATCH_NORMS = BatchNorm | KaldiBatchNorm
"""Modules that have statistics of batches; in evaluation mode they keep them."""
_SCALES = ("log_scale", "scale")


def freeze(module: nn.Module, patterns: Iterable[str]) -> list[nn.Module]:
    """Exclude what ``patterns`` name from training; the batch norms in it, whose statistics must not move either.

    Raises :class:`TrainingError` for a pattern that names nothing, and where nothing is left to train.
    """
    modules = dict(module.named_modules())
    norms: dict[int, nn.Module] = {}
    for text in patterns:
        pattern = Pattern(text)
        found = [part for path, part in modules.items() if path and pattern.matches(path)]
        if not found:
            near = ", ".join(nearest(text, modules)) or ", ".join(path for path, _ in module.named_children())
            raise TrainingError(f"freeze = {text!r}: no such module; the nearest are {near}")
        for part in found:
            part.requires_grad_(False)
            norms |= {id(part): part} if isinstance(part, BATCH_NORMS) else {}
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise TrainingError("nothing is left to train: every parameter is frozen")
    return list(norms.values())


def make_optimizer(module: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """An optimizer of what is not frozen in ``module``.

    Its groups have a ``factor``, by which they multiply the learning rate of a step. Weight decay is for matrices
    alone: on biases, norms and quantizers' scales it would only do harm.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named_trained(module):
        scale = name.rpartition(".")[2] in _SCALES
        decay = 0.0 if scale or parameter.ndim <= 1 else options.weight_decay
        groups.setdefault((options.scale_rate if scale else 1.0, decay), []).append(parameter)
    tables = [
        {"params": parameters, "factor": factor, "weight_decay": decay, "lr": options.rate * factor}
        for (factor, decay), parameters in groups.items()
    ]
    if options.optimizer == "sgd":
        return torch.optim.SGD(tables, momentum=options.momentum)
    return torch.optim.AdamW(tables, betas=options.betas)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def named_trained(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that are not frozen, in the module's order."""
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state by ``<parameter>|<what>``: moments, and the number of their steps."""
    return {
        f"{name}|{key}": value.detach()
        for name, parameter in module.named_parameters()  # learned scales freeze during training, and keep their state
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)  # SGD writes None for a momentum that has not begun
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`optimizer_tensors` gave."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for path, value in tensors.items():
        name, _, key = path.rpartition("|")
        state.setdefault(order.index(name), {})[key] = value.clone()
    # PyTorch's own loading puts each tensor on its parameter's device.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
