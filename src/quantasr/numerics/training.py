"""What quantizers do in training: round with straight-through gradients, by scales that follow the data or are learned.

The values are those of :mod:`quantasr.numerics.fake_quantize`, to the last bit, so what is trained is what is exported.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from quantasr.numerics.fake_quantize import fake_quantize, scale_and_zero_point
from quantasr.numerics.qtypes import QType

_MOMENTUM = 0.01  # of the moving average over training steps, as in PyTorch's and TensorFlow's observers


def learned_fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qtype: QType) -> Tensor:
    """Quantize and dequantize ``x``, with gradients for ``x`` and for ``scale``, which broadcasts against ``x``.

    Learned step size quantization (LSQ: Esser et al., arXiv 1902.08153): the gradient of the result for the scale is
    ``round(x / scale) - x / scale`` inside the range and the integer at its end outside, times
    ``1 / sqrt(values of a scale * quant_max)``.
    """
    out: Tensor = _LearnedFakeQuantize.apply(x, scale, zero_point, qtype)  # type: ignore[no-untyped-call]
    return out


class _LearnedFakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qtype: QType) -> Tensor:
        # In place wherever possible: these passes over memory are what quantization costs in training.
        ratio = x / scale
        low, high = qtype.quant_min, qtype.quant_max
        if qtype.symmetric:
            outside = ratio.lt(low).logical_or_(ratio.gt(high))
            out = torch.round(ratio).clamp_(low, high)
        else:
            outside = ratio.lt(low - zero_point).logical_or_(ratio.gt(high - zero_point))
            out = torch.round(ratio).add_(zero_point).clamp_(low, high).sub_(zero_point)
        ctx.save_for_backward(torch.sub(out, ratio.masked_fill_(outside, 0.0), out=ratio), outside)
        ctx.shape = scale.shape
        ctx.factor = 1 / math.sqrt(x.numel() / scale.numel() * qtype.quant_max)
        return out.mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        slope, outside = ctx.saved_tensors
        (gradient,) = gradients
        for_scale = (gradient * slope).sum_to_size(ctx.shape) * ctx.factor
        return gradient.masked_fill(outside, 0.0), for_scale, None, None


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
        scale, zero_point = self.scale, self.zero_point
        if scale.ndim:
            scale, zero_point = scale[:, None], zero_point[:, None]
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            if self.learned and torch.is_grad_enabled():
                return learned_fake_quantize(x, scale, zero_point, self.qtype)
            return fake_quantize(x, scale.detach(), zero_point, self.qtype)


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
