"""A layer in whole numbers: integers times integers, with every zero point accounted for, and one scale at the end.

With ``x = sx (qx - zx)`` and ``w = sw (qw - zw)``, a layer of K inputs is

    sum x w = sx sw (sum qx qw - zw sum qx - zx sum qw + K zx zw)

(Jacob et al., arXiv 1712.05877, equation 4). Sums are whole numbers held in float64: exact, in any order, as long as
they stay below 2**53, which is checked. The result is rounded twice, to float64 by the scale and then to float32.

The simulation is what ``numerics`` rounds: real numbers ``sx (qx - zx)`` in float32. Each is a whole number of scales,
so the exact sum of their products is found as well, without zero points, and rounded the same way. Both therefore give
the same bits. A simulation that multiplies and adds in float32, as an engine does, differs in the last bits: it rounds
each product and each partial sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from quantasr.errors import RecipeError
from quantasr.numerics.fake_quantize import dequantize_weight, fake_quantize, quantize, scale_and_zero_point, spread
from quantasr.numerics.qtypes import QType

_EXACT = 1 << 53
_INT32 = 1 << 31


class Form(StrEnum):
    """Which of the two ways sums are found; the results are the same bits."""

    INTEGER = "integer"  # products of the stored integers, and the terms of the zero points
    SIMULATED = "simulated"  # products of the rounded real numbers, in exact arithmetic


@dataclass(frozen=True)
class Quantized:
    """A tensor as ``scale * (integers - zero_point)``.

    ``scale`` (float32) and ``zero_point`` (int32) are scalars, or ``[channels]`` along axis 0: a weight's per channel.
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor
    qtype: QType

    def __post_init__(self) -> None:
        if self.qtype.granularity == "per_group":
            raise RecipeError("granularity per_group: a layer in integers has one scale for each output: per_channel")

    @classmethod
    def of(cls, x: Tensor, qtype: QType) -> Quantized:
        """Round ``x`` with one scale that covers it."""
        low, high = x.amin().reshape(1), x.amax().reshape(1)
        scale, zero_point = scale_and_zero_point(low, high, qtype)
        return cls.fixed(x, scale[0], zero_point[0], qtype)

    @classmethod
    def fixed(cls, x: Tensor, scale: Tensor, zero_point: Tensor, qtype: QType) -> Quantized:
        """Round ``x`` with a scale that is given."""
        return cls(quantize(x, scale, zero_point, qtype), scale, zero_point, qtype)

    def simulated(self) -> Tensor:
        """The real numbers that fake quantization gives, float32."""
        # The same functions as the attached quantizers', of which rounded values pass the first unchanged.
        if self.scale.ndim == 0:
            real = (self.integers.float() - self.zero_point) * self.scale
            return fake_quantize(real, self.scale, self.zero_point, self.qtype)
        return dequantize_weight(self.integers, self.scale, self.zero_point, self.qtype, 0)

    def scales_of(self, real: Tensor) -> Tensor:
        """How many scales each of the simulated ``real`` numbers is: whole numbers, float64."""
        return torch.round(real.double() / spread(self.scale.double(), real, 0))


@dataclass(frozen=True)
class Product:
    """What a layer sums: all inputs (``dims`` 0), or a window of a convolution over ``dims`` axes.

    ``padding`` is that of each axis, (before, after).
    """

    dims: int = 0
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @property
    def channel_axis(self) -> int:
        """The axis of the result that is the layer's outputs."""
        return 1 if self.dims else -1

    def padded(self, x: Tensor, value: float) -> Tensor:
        """``x`` with its edges filled up; ``value`` is what stands for zero."""
        if not any(map(any, self.padding)):
            return x
        return functional.pad(x, [n for pair in reversed(self.padding) for n in pair], value=value)

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """Sums of products with each output's ``weight``, of ``x`` that is padded already."""
        if not self.dims:
            return functional.linear(x, weight)
        convolution = (functional.conv1d, functional.conv2d, functional.conv3d)[self.dims - 1]
        return convolution(x, weight, None, self.stride, 0, self.dilation, self.groups)

    def sums(self, x: Tensor, weight: Tensor) -> Tensor:
        """Sums of what each output reads, shaped to broadcast against the result."""
        if not self.dims:
            return x.sum(-1, keepdim=True)
        ones = torch.ones(self.groups, *weight.shape[1:], dtype=x.dtype)
        return self(x, ones).repeat_interleave(len(weight) // self.groups, 1)


def layer(x: Quantized, weight: Quantized, bias: Tensor | None, product: Product, form: Form = Form.INTEGER) -> Tensor:
    """The output of a layer, float32: the exact sum of all products, times ``scale of x * scale of weight``.

    ``bias`` becomes integers of that scale. Where one of them does not fit into 32 bits, as with scales of 16 bits, the
    bias is added as it is instead. Raises :class:`RecipeError` when sums could be too large to be exact.
    """
    inputs = prod(weight.integers.shape[1:])
    largest = [max(abs(t.qtype.quant_min), t.qtype.quant_max) for t in (x, weight)]
    if 4 * inputs * largest[0] * largest[1] + _INT32 >= _EXACT:  # four terms
        raise RecipeError(
            f"sums of {inputs} products of {x.qtype.bits} and {weight.qtype.bits} bits pass 2**53 and would not be "
            "exact: use fewer bits"
        )
    total = _integer(x, weight, product) if form is Form.INTEGER else _simulated(x, weight, product)
    total = total + 0.0  # whole numbers have no negative zero
    axis = product.channel_axis
    scale = x.scale.double() * spread(weight.scale.double(), total, axis)  # exact: 24 bits times 24
    if bias is None:
        return (total * scale).float()
    shaped = spread(bias.double(), total, axis)
    integers = torch.round(shaped / scale)
    if bool((integers.abs() < _INT32).all()):
        return ((total + integers) * scale).float()
    return (total * scale + shaped).float()


def _integer(x: Quantized, weight: Quantized, product: Product) -> Tensor:
    """Sums by the expansion; padding is zero, whose integer is the zero point."""
    zx, zw = x.zero_point.double(), weight.zero_point.double()
    qx = product.padded(x.integers.double(), float(zx))
    qw = weight.integers.double()
    total = product(qx, qw)
    zw = spread(zw, total, product.channel_axis)
    if bool(zw.any()):
        total = total - zw * product.sums(qx, qw)
    if bool(zx):
        inputs = prod(qw.shape[1:])
        weights = spread(qw.flatten(1).sum(1), total, product.channel_axis)
        total = total - zx * weights + inputs * zx * zw
    return total


def _simulated(x: Quantized, weight: Quantized, product: Product) -> Tensor:
    """Sums of the products of simulated numbers, each counted in its scale."""
    inputs = product.padded(x.scales_of(x.simulated()), 0.0)
    return product(inputs, weight.scales_of(weight.simulated()))


def same_padding(kernel: Sequence[int], dilation: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """PyTorch's ``padding="same"``: what is odd goes behind."""
    totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)
