"""Convolutions with a scale from each call: as a matrix times the patches that they look at.

PyTorch's own ``conv2d_dynamic`` rounds what comes out with the scale of what went in, so anything larger is cut off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from quantasr.engines.torch_native.dynamic import DynamicLayer, DynamicLinear
from quantasr.engines.torch_native.kernels import Geometry, Weights, geometry_of
from quantasr.engines.torch_native.tensors import Operation, as_float

CONVOLUTIONS = ("conv1d", "conv2d")


class DynamicConvolution(DynamicLinear):
    """A 1-d or 2-d convolution, in one group, with packed weights; stands in its ``PackedWeight``."""

    def __init__(self, layer: DynamicLayer, weights: Weights, backend: str) -> None:
        super().__init__(layer, replace(weights, integers=weights.integers.flatten(1)), backend)
        self._shape = weights.integers.shape

    def float_weight(self) -> Tensor:
        """The dequantized weight."""
        return self.weights.real().reshape(self._shape)

    def __call__(self, func: Operation, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The convolution of its first argument; in float where it is called in a way that has no matrix."""
        given = dict(kwargs)
        x = as_float(args[0] if args else given.pop("input"))
        geometry = geometry_of(func, args, given)
        if geometry is None or geometry.function not in CONVOLUTIONS or geometry.groups != 1:
            weight = args[1] if len(args) > 1 else given.pop("weight")
            return func(x, self.float_weight().reshape(weight.shape), *args[2:], **given)
        kernel = tuple((args[1] if len(args) > 1 else given["weight"]).shape[2:])
        flat = x.ndim == 3
        rows, size = _patches(x.unsqueeze(2) if flat else x, (1, *kernel) if flat else kernel, geometry)
        out = self.product(rows).transpose(1, 2).contiguous()
        out = out.view(*out.shape[:2], *size)
        return out.squeeze(2) if flat else out


def _patches(x: Tensor, kernel: tuple[int, ...], geometry: Geometry) -> tuple[Tensor, tuple[int, int]]:
    """``[batch, channels, height, width]`` -> ``[batch, positions, channels * kernel]``, and their (height, width)."""
    short = len(geometry.stride) == 1
    stride, dilation = (((1,) if short else ()) + values for values in (geometry.stride, geometry.dilation))
    padding = ((0,) if short else ()) + geometry.padding
    high, wide = (
        (n + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i, n in enumerate(x.shape[2:])
    )  # fmt: skip
    if set(kernel) == set(stride) == {1} and not any(padding):
        columns = x.flatten(2)
    else:
        columns = F.unfold(x, kernel, dilation, padding, stride)
    return columns.transpose(1, 2).contiguous(), (high, wide)
