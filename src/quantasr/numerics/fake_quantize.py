"""The arithmetic: scales from ranges, rounding to integers and back, with gradients and an ONNX form.

The formulas are ONNX's ``QuantizeLinear`` and ``DequantizeLinear`` (round half to even, saturate), so that a
simulation and the graph exported from it agree to the last bit of the integers. Gradients are straight-through
inside the range and zero outside it (Bengio et al., arXiv 1308.3432).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quantasr.numerics.qtypes import QType

# While tracing for export, these custom nodes stand for whole quantizers; quantasr.export.lower turns each into
# standard ONNX operators once the layout of its neighbours is known.
DOMAIN = "quantasr"


def scale_and_zero_point(low: Tensor, high: Tensor, qtype: QType) -> tuple[Tensor, Tensor]:
    """``scale`` and ``zero_point`` (int32) that cover ``[low, high]``, each of the shape of ``low``.

    The range is widened to hold zero, because padding and ReLU need an exact zero. A range that is nothing but
    zero gets scale 1. (Jacob et al., arXiv 1712.05877, section 2.)
    """
    low, high = low.double().clamp(max=0.0), high.double().clamp(min=0.0)
    levels = qtype.quant_max - qtype.quant_min
    if qtype.symmetric:
        scale = torch.maximum(-low, high) / (levels / 2)
        zero_point = torch.zeros_like(scale)
    else:
        scale = (high - low) / levels
        zero_point = qtype.quant_min - low / torch.where(scale > 0, scale, 1.0)
    smallest = torch.finfo(torch.float32).tiny
    scale = torch.where(scale > smallest, scale, 1.0).float()
    return scale, zero_point.round().clamp(qtype.quant_min, qtype.quant_max).int()


def spread(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """Shape per-channel ``values`` ``[channels]`` so that they broadcast against ``x`` along ``axis``."""
    if axis is None or values.ndim == 0:
        return values
    return values.reshape([-1 if d == axis % x.ndim else 1 for d in range(x.ndim)])


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qtype: QType) -> Tensor:
    """Round to integers, kept as float; ``scale`` and ``zero_point`` broadcast against ``x``."""
    return torch.clamp(torch.round(x / scale) + zero_point, qtype.quant_min, qtype.quant_max)


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qtype: QType, label: str = "") -> Tensor:
    """Quantize ``x`` and dequantize it again; ``scale`` and ``zero_point`` are scalars, or broadcast against ``x``.

    ``label`` is kept in the exported node, to find it again.
    """
    out: Tensor = FakeQuantize.apply(  # type: ignore[no-untyped-call]
        x, scale, zero_point, qtype.bits, qtype.symmetric, label
    )
    return out


def dynamic_fake_quantize(x: Tensor, label: str = "") -> Tensor:
    """Quantize ``x`` with a scale of its own (8 bits, affine) and dequantize it again."""
    out: Tensor = DynamicFakeQuantize.apply(x, label)  # type: ignore[no-untyped-call]
    return out


def dequantize_weight(
    integers: Tensor, scale: Tensor, zero_point: Tensor, qtype: QType, axis: int, label: str = ""
) -> Tensor:
    """Real weights from integers; ``axis`` is the one that per-channel scales run along."""
    axis = axis if qtype.granularity == "per_channel" else -1
    group = qtype.group_size or 0
    out: Tensor = DequantizeWeight.apply(  # type: ignore[no-untyped-call]
        integers, scale, zero_point, qtype.bits, qtype.symmetric, axis, group, label
    )
    return out


class FakeQuantize(torch.autograd.Function):
    """Quantize and dequantize; exported as a ``quantasr::FakeQuantize`` node."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, symmetric: bool, label: str
    ) -> Tensor:
        qtype = QType(bits, symmetric)
        shifted = (x / scale).round_()
        if not symmetric:
            shifted += zero_point
        integers = shifted.clamp(qtype.quant_min, qtype.quant_max)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(integers == shifted)
        if not symmetric:
            integers -= zero_point
        return integers.mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None, None, None

    @staticmethod
    def symbolic(g: Any, x: Any, scale: Any, zero_point: Any, bits: int, symmetric: bool, label: str) -> Any:
        attributes = {"bits_i": bits, "symmetric_i": int(symmetric), "label_s": label}
        out = g.op(f"{DOMAIN}::FakeQuantize", x, scale, zero_point, **attributes)
        return out.setType(x.type())


class DynamicFakeQuantize(torch.autograd.Function):
    """Quantize and dequantize with a scale from the tensor itself: ONNX ``DynamicQuantizeLinear``, 8 bits affine."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, label: str) -> Tensor:
        qtype = QType(8, symmetric=False)
        # ONNX defines this in float32; double here would give another zero_point now and then.
        low, high = x.min().clamp(max=0.0), x.max().clamp(min=0.0)
        scale = (high - low) / 255
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        zero_point = torch.round(-low / scale).clamp(0, 255)
        return (quantize(x, scale, zero_point, qtype) - zero_point) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None

    @staticmethod
    def symbolic(g: Any, x: Any, label: str) -> Any:
        return g.op(f"{DOMAIN}::DynamicFakeQuantize", x, label_s=label).setType(x.type())


class DequantizeWeight(torch.autograd.Function):
    """Integers back to real weights; exported as ``quantasr::DequantizeWeight`` with the integers inside.

    ``integers`` has the weight's shape; ``scale`` and ``zero_point`` broadcast against it, except per group, where
    they are ``[channels, groups]`` and each scale serves ``group_size`` neighbours on axis 1.
    """

    @staticmethod
    def forward(
        ctx: Any,
        integers: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        bits: int,
        symmetric: bool,
        axis: int,
        group: int,
        label: str,
    ) -> Tensor:
        if group:
            size = integers.shape[1]
            scale = scale.repeat_interleave(group, 1)[:, :size]
            zero_point = zero_point.repeat_interleave(group, 1)[:, :size]
        elif axis >= 0:
            scale, zero_point = spread(scale, integers, axis), spread(zero_point, integers, axis)
        return (integers.float() - zero_point) * scale

    @staticmethod
    def symbolic(
        g: Any,
        integers: Any,
        scale: Any,
        zero_point: Any,
        bits: int,
        symmetric: bool,
        axis: int,
        group: int,
        label: str,
    ) -> Any:
        out = g.op(
            f"{DOMAIN}::DequantizeWeight",
            integers,
            scale,
            zero_point,
            bits_i=bits,
            symmetric_i=int(symmetric),
            axis_i=axis,
            group_i=group,
            label_s=label,
        )
        return out.setType(integers.type().with_dtype(torch.float32))
