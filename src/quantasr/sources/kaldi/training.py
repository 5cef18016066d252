"""What Kaldi does to weights while it trains them: the semi-orthogonal constraint of TDNN-F layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from quantasr.sources.kaldi.layers import TimeHeight
from quantasr.sources.kaldi.network import KaldiNetwork

EVERY = 4
"""Optimizer steps from one correction to the next."""


@torch.no_grad()
def constrain(network: KaldiNetwork, steps: int) -> None:
    """After ``steps`` optimizer steps: every fourth time, make constrained weights more semi-orthogonal.

    Povey et al., "Semi-orthogonal low-rank matrix factorization for deep neural networks" (Interspeech 2018), as
    Kaldi's ConstrainOrthonormal; which weights, each component's OrthonormalConstraint says.
    """
    keep_zeros(network)
    if steps % EVERY or not steps:
        return
    for path, scale in network.orthonormal.items():
        if path in network.paths.values():
            weight = trained_weight(network.get_submodule(path))
            weight.copy_(semi_orthogonal(weight.flatten(1), scale).view_as(weight))


def semi_orthogonal(matrix: Tensor, scale: float) -> Tensor:
    """``matrix`` one step nearer to having orthogonal rows (or columns, if it has fewer) of length ``scale``.

    A negative ``scale`` means the length that the step itself does not change.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return semi_orthogonal(matrix.T, scale).T
    square = matrix @ matrix.T
    speed = 0.125
    if scale < 0:
        trace, trace_square = square.trace().item(), square.square().sum().item()
        if trace < 1e-15:
            return matrix
        target = trace_square / trace
        ratio = trace_square * len(square) / trace**2  # 1 where all rows are as they should be
        if ratio > 1.02:  # far off, a full step might overshoot
            speed *= 0.25 if ratio > 1.1 else 0.5
    else:
        target = scale * scale
    error = square - target * torch.eye(len(square), dtype=matrix.dtype, device=matrix.device)
    return matrix - (4 * speed / target) * (error @ matrix)


def trained_weight(layer: nn.Module) -> Tensor:
    """The parameter behind ``layer.weight``, which a quantizer may have been put before."""
    if parametrize.is_parametrized(layer, "weight"):
        return layer.parametrizations.weight.original  # type: ignore[union-attr, return-value]
    assert isinstance(layer.weight, Tensor)
    return layer.weight


@torch.no_grad()
def keep_zeros(network: KaldiNetwork) -> None:
    """Let the places of a convolution's kernel that its component does not have stay zero."""
    for layer in (part for part in network.modules() if isinstance(part, TimeHeight)):
        weight = trained_weight(layer)
        kept = torch.zeros_like(weight)
        for place in layer.places:
            kept[:, :, *place] = 1
        weight.mul_(kept)
