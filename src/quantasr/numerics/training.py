"""What quantizers do in training: round with straight-through gradients, by scales that follow the data or are learned.

The values are those of :mod:`quantasr.numerics.fake_quantize`, to the last bit, so what is trained is what is exported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from quantasr.numerics.fake_quantize import scale_and_zero_point
from quantasr.numerics.qtypes import QType

_BLOCK = 1 << 17
_MOMENTUM = 0.01  # of the moving average over training steps, as in PyTorch's and TensorFlow's observers


def trained_fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qtype: QType) -> Tensor:
    """Quantize and dequantize ``x``, with gradients for ``x`` and for ``scale``.

    ``scale`` and ``zero_point`` are scalars, or ``[rows]`` for an ``x`` of ``[rows, values]``. The gradient for ``x``
    is passed on inside the range and zero outside. That for the scale is learned step size quantization's (LSQ: Esser
    et al., arXiv 1902.08153): ``round(x / scale) - x / scale`` inside the range and its end outside, times
    ``1 / sqrt(values of a scale * quant_max)``.
    """
    out: Tensor = _TrainedFakeQuantize.apply(x, scale, zero_point, qtype)  # type: ignore[no-untyped-call]
    return out


class _TrainedFakeQuantize(torch.autograd.Function):
    """In blocks that stay in the processor's cache: passes over memory are what quantization costs in training."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qtype: QType) -> Tensor:
        order = _memory_order(x)
        rows = scale.numel() if scale.ndim else 1
        flat = x.permute(order).reshape(rows, -1)
        out = torch.empty_like(flat)
        scales, low = scale.reshape(-1, 1), qtype.quant_min - zero_point.reshape(-1, 1)
        high = low + (qtype.quant_max - qtype.quant_min)
        for part in _blocks(rows, flat.shape[1]):
            row = part[0]
            values = torch.div(flat[part], scales[row], out=out[part])
            # Clipped to whole numbers before it is rounded to whole numbers: the same as afterwards.
            torch.clamp(values, low[row], high[row], out=values).round_().mul_(scales[row])
        # What is needed besides is computed again: that is faster than to write it down and to read it.
        ctx.save_for_backward(flat, scales, low, high)
        ctx.order, ctx.scale_shape = order, scale.shape
        ctx.factor = 1 / math.sqrt(max(1, flat.shape[1]) * qtype.quant_max)
        return _as_before(out, x, order)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        flat, scales, low, high = ctx.saved_tensors
        (gradient,) = gradients
        arriving = gradient.permute(ctx.order).reshape(flat.shape)
        for_x = torch.empty_like(arriving)
        sums = torch.zeros(len(flat), device=flat.device) if ctx.needs_input_grad[1] else None
        for part in _blocks(*flat.shape):
            row = part[0]
            values = flat[part] / scales[row]
            clipped = values.clamp(low[row], high[row])
            inside = clipped == values
            torch.mul(arriving[part], inside, out=for_x[part])
            if sums is not None:
                slope = clipped.round_().sub_(values.mul_(inside))
                sums[row] += slope.mul_(arriving[part]).sum(1)
        for_scale = None if sums is None else sums.mul_(ctx.factor).reshape(ctx.scale_shape)
        return _as_before(for_x, gradient, ctx.order), for_scale, None, None


def _memory_order(x: Tensor) -> tuple[int, ...]:
    """The axes as they lie in memory, the outermost first: read in this order, a transposed tensor needs no copy."""
    if x.is_contiguous() or x.ndim == 2:
        return tuple(range(x.ndim))
    strides = x.stride()
    return tuple(sorted(range(x.ndim), key=lambda axis: -strides[axis]))


def _as_before(flat: Tensor, x: Tensor, order: tuple[int, ...]) -> Tensor:
    """The inverse of ``x.permute(order).reshape(...)``."""
    inverse = sorted(range(len(order)), key=lambda position: order[position])
    return flat.reshape([x.shape[axis] for axis in order]).permute(inverse)


def _blocks(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Parts of some :data:`_BLOCK` values of ``[rows, columns]``: whole rows, or pieces of one."""
    height = max(1, _BLOCK // max(1, columns))
    for row in range(0, rows, height):
        for column in range(0, columns, _BLOCK):
            yield slice(row, row + height), slice(column, column + _BLOCK)


class TrainedScale(nn.Module):
    """The scale of one quantizer in training, or one scale for each of its rows (channels, groups).

    ``log_scale`` is a parameter where it is ``learned``: steps of an optimizer are then relative to the scale, and it
    stays positive (as the thresholds of Jain et al., arXiv 1903.08066).
    """

    log_scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor, qtype: QType, *, learned: bool) -> None:
        super().__init__()
        self.qtype = qtype
        self.learned = learned
        log_scale = scale.detach().clone().log()
        if learned:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)
        self.register_buffer("zero_point", zero_point.detach().clone().float())

    @property
    def scale(self) -> Tensor:
        """The scale itself."""
        return self.log_scale.exp()

    def quantize(self, x: Tensor) -> Tensor:
        """``x``, quantized and dequantized; every scale is for a row where there are several."""
        scale = self.scale if self.learned else self.scale.detach()
        with torch.autocast(x.device.type, enabled=False):
            return trained_fake_quantize(x.float(), scale, self.zero_point, self.qtype)


class InputTraining(TrainedScale):
    """In training, an input's quantizer, or those of several layers that read the same tensor.

    Without ``learned``, the range starts as calibrated and is then a moving average of each step's smallest and largest
    value, which :meth:`follow` takes in once the step is done: so it does not matter in how many parts a step came.
    """

    low: Tensor
    high: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor, qtype: QType, *, learned: bool) -> None:
        super().__init__(scale, zero_point, qtype, learned=learned)
        self.following = not learned
        self.seen: list[Tensor] = []
        self._last: tuple[Tensor, int, Tensor] | None = None
        if not learned:
            self.register_buffer("low", (qtype.quant_min - zero_point) * scale)
            self.register_buffer("high", (qtype.quant_max - zero_point) * scale)

    def forward(self, x: Tensor) -> Tensor:
        # Layers that read the same tensor (q, k and v) read one rounded tensor too.
        if self._last is not None and self._last[0] is x and self._last[1] == x._version:
            return self._last[2]
        if self.following and self.training and torch.is_grad_enabled():
            self.seen.append(torch.stack(torch.aminmax(x.detach())).float())
        out = self.quantize(x)
        self._last = x, x._version, out
        return out

    def forget(self) -> None:
        """Let go of the last tensor."""
        self._last = None

    def range_seen(self) -> Tensor:
        """``[2]``: the smallest and the largest value since :meth:`follow`; infinite when there was none."""
        empty = torch.tensor([math.inf, -math.inf], device=self.log_scale.device)
        rows = torch.stack([empty, *self.seen])
        self.seen.clear()
        return torch.stack([rows[:, 0].min(), rows[:, 1].max()])

    @torch.no_grad()
    def follow(self, seen: Tensor) -> None:
        """Move the range towards ``seen`` ``[2]``, what :meth:`range_seen` gave (in all processes)."""
        if not bool(torch.isfinite(seen).all()):
            return  # nothing passed, or a step that is skipped for its NaNs
        self.low.lerp_(seen[0], _MOMENTUM)
        self.high.lerp_(seen[1], _MOMENTUM)
        scale, zero_point = scale_and_zero_point(self.low[None], self.high[None], self.qtype)
        self.log_scale.copy_(scale[0].log())
        self.zero_point.copy_(zero_point[0])


class WeightTraining(TrainedScale):
    """In training, a weight's quantizer, on rows of the weight, ``[scales, values]``.

    Without ``learned``, each scale keeps its ratio to what would just hold the row: so ranges that an observer clipped
    (percentile, mse) stay clipped while the weights move.
    """

    ratio: Tensor

    def __init__(self, rows: Tensor, scale: Tensor, zero_point: Tensor, qtype: QType, *, learned: bool) -> None:
        super().__init__(scale, zero_point, qtype, learned=learned)
        self.following = not learned
        if not learned:
            self.register_buffer("ratio", (scale / self._whole(rows)[0]).detach())

    def forward(self, rows: Tensor) -> Tensor:
        if self.following and self.training:
            with torch.no_grad():
                whole, zero_point = self._whole(rows)
                self.log_scale.copy_((whole * self.ratio).log())
                self.zero_point.copy_(zero_point)
        return self.quantize(rows)

    @torch.no_grad()
    def _whole(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point that clip nothing."""
        low, high = torch.aminmax(rows.detach(), dim=1)
        return scale_and_zero_point(low, high, self.qtype)
