"""1-d layers computed on ``[batch, channels, 1, time]``, a layout in which engines keep the channels innermost."""

from __future__ import annotations

from torch import Tensor, nn


def flat_convolution(conv: nn.Conv1d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1-d convolution over the last axis of ``[batch, channels, 1, time]``."""
    stride, padding, dilation = (1, *conv.stride), (0, *conv.padding), (1, *conv.dilation)
    return nn.functional.conv2d(x, weight.unsqueeze(2), bias, stride, padding, dilation, conv.groups)


def batch_norm(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    """As the module's own ``forward``, for any number of axes behind the channels."""
    if norm.training:
        return nn.BatchNorm1d.forward(norm, x.flatten(2)).reshape(x.shape)
    return nn.functional.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
    )
