"""Convolutions with a scale from each call: as a matrix times the patches that they look at.

PyTorch's own ``conv2d_dynamic`` rounds what comes out with the scale of what went in, so anything larger is cut off.
"""

from __future__ import annotations

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
        by_channel = weights.integers.movedim(1, -1)  # [outputs, kernel, inputs], as patches are
        super().__init__(layer, replace(weights, integers=by_channel.flatten(1).contiguous()), backend)
        self._shape = by_channel.shape

    def float_weight(self) -> Tensor:
        """The dequantized weight."""
        return self.weights.real().view(self._shape).movedim(-1, 1)

    def __call__(self, func: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The convolution of its first argument; in float where it is called in a way that is no such product."""
        x = as_float(args[0] if args else kwargs["input"])
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        geometry = geometry_of(func, args, kwargs)
        if geometry is None or geometry.function not in CONVOLUTIONS or geometry.groups != 1:
            rest = {key: value for key, value in kwargs.items() if key not in ("input", "weight")}
            return func(x, self.float_weight().reshape(weight.shape), *args[2:], **rest)
        found = self.product(_patches(x, tuple(weight.shape[2:]), geometry)).movedim(-1, 1)
        # As PyTorch's own: channels stay innermost where they were, which saves two changes of layout.
        return found if not x.is_contiguous() and x.movedim(1, -1).is_contiguous() else found.contiguous()


def _patches(x: Tensor, kernel: tuple[int, ...], geometry: Geometry) -> Tensor:
    """``[batch, channels, ...]`` -> ``[batch, ..., prod(kernel) * channels]``, a row for each place of the kernel."""
    if any(geometry.padding):
        x = F.pad(x, [side for size in reversed(geometry.padding) for side in (size, size)])
    x = x.movedim(1, -1)
    for i, (size, stride, dilation) in enumerate(zip(kernel, geometry.stride, geometry.dilation, strict=True)):
        x = x.unfold(1 + i, dilation * (size - 1) + 1, stride)[..., ::dilation]
    places = x.shape[1 : 1 + len(kernel)]
    rows = x.movedim(1 + len(kernel), -1)
    return rows.reshape(x.shape[0], *places, -1).contiguous()
