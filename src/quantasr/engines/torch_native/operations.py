"""Operations on activations that stay in int8, and which of them carry a value unchanged from layer to layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quantasr.engines.torch_native.tensors import (
    HANDLERS,
    Operation,
    QTensor,
    as_stored,
    integers,
)

RELU: set[Operation] = {F.relu, torch.relu, Tensor.relu, F.relu_, torch.relu_, Tensor.relu_}

ADD: set[Operation] = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__}

# New shapes of the same values. A view is made by reshape: the layout in memory may be another than the framework's.
SHAPE: dict[Operation, Operation] = {
    Tensor.view: Tensor.reshape,
    Tensor.reshape: Tensor.reshape,
    torch.reshape: torch.reshape,
    **{
        f: f
        for f in (
            *(Tensor.transpose, torch.transpose, Tensor.permute, torch.permute, Tensor.unsqueeze, torch.unsqueeze),
            *(Tensor.squeeze, torch.squeeze, Tensor.flatten, torch.flatten, Tensor.contiguous, Tensor.clone),
            *(torch.clone, Tensor.detach, Tensor.narrow, torch.narrow),
        )
    },
}
MASKED_FILL: set[Operation] = {Tensor.masked_fill, torch.masked_fill}
DROPOUT: set[Operation] = {F.dropout, torch.dropout, F.dropout1d, F.dropout2d}
CLAMP: set[Operation] = {torch.clamp, Tensor.clamp, F.hardtanh, F.relu6}
MULTIPLY: set[Operation] = {torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__}
POOL: set[Operation] = {F.max_pool1d, F.max_pool2d, torch.max_pool1d, torch.max_pool2d}
PAD: set[Operation] = {F.pad}


def carries(func: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether ``func`` on a quantized activation stays in int8 and gives the same values, moved, clipped or zeroed."""
    if func in SHAPE or func in RELU or func is Tensor.__getitem__:
        return func is not Tensor.__getitem__ or _plain_index(args[1])
    if func in MASKED_FILL:
        return bool(_argument(args, kwargs, 2, "value") == 0)
    if func in MULTIPLY:
        return len(args) == 2 and not kwargs and _is_mask(args[1], args[0])
    if func in DROPOUT:
        return not _argument(args, kwargs, 2, "training", True)
    if func in CLAMP:
        return True
    if func in POOL:
        return not (kwargs.get("return_indices") or len(args) > 6)
    if func in PAD:
        return _argument(args, kwargs, 2, "mode", "constant") == "constant" and not _argument(args, kwargs, 3, "value")
    return False


def handles(*functions: Operation) -> Callable[[Operation], Operation]:
    """Register the handler of some functions."""

    def register(handler: Operation) -> Operation:
        HANDLERS.update(dict.fromkeys(functions, handler))
        return handler

    return register


@handles(*SHAPE, Tensor.__getitem__)
def _reshaped(func: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    if not _int8(x) or (func is Tensor.__getitem__ and not _plain_index(args[1])):
        return NotImplemented
    return x.with_value(SHAPE.get(func, func)(x.value, *args[1:], **kwargs))


@handles(*RELU)
def _relu(func: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    if not _int8(x):
        return NotImplemented
    if x.relued:
        return x
    in_place = func in (F.relu_, torch.relu_, Tensor.relu_) or _argument(args, kwargs, 1, "inplace", False)
    return _put(x, as_stored(torch.relu, x.value), in_place)


@handles(*CLAMP)
def _clamp(func: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    if not _int8(x):
        return NotImplemented
    if func is F.relu6:
        low, high = 0.0, 6.0
    else:
        default = (-1.0, 1.0) if func is F.hardtanh else (None, None)
        names = ("min_val", "max_val") if func is F.hardtanh else ("min", "max")
        low, high = (_argument(args, kwargs, i + 1, names[i], default[i]) for i in range(2))
    value = as_stored(lambda v: torch.clamp(v, low, high), x.value)
    return _put(x, value, kwargs.get("inplace", False) or (func is F.hardtanh and len(args) > 3 and args[3]))


@handles(*DROPOUT)
def _dropout(func: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    return x if _int8(x) and carries(func, args, kwargs) else NotImplemented


@handles(*MASKED_FILL)
def _masked_fill(func: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, mask = args[0], _argument(args, kwargs, 1, "mask")
    if not _int8(x) or not carries(func, args, kwargs) or not isinstance(mask, Tensor) or isinstance(mask, QTensor):
        return NotImplemented
    return _zeroed(x, mask)


@handles(*MULTIPLY)
def _multiply(func: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, mask = args[0], args[1]
    if not _int8(x) or not carries(func, args, kwargs):
        return NotImplemented
    return _zeroed(x, mask == 0)


def _zeroed(x: QTensor, mask: Tensor) -> QTensor:
    """``x`` with zeros where ``mask`` is True."""
    if not bool(mask.any()):
        return x  # nothing is padded, as with a single recording
    out = x.value.clone()
    raw = integers(out)
    raw.copy_(torch.where(mask, torch.tensor(x.value.q_zero_point(), dtype=torch.uint8), raw))
    return x.with_value(out)


@handles(*POOL, *PAD)
def _moved(func: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    if not _int8(x) or not carries(func, args, kwargs):
        return NotImplemented
    return x.with_value(func(x.value, *args[1:], **kwargs))


@handles(*ADD)
def _add(func: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if len(args) != 2 or kwargs or not all(_int8(x) for x in args):
        return NotImplemented
    left, right = args
    total = left.into
    if total is None or total != right.into or left.value.shape != right.value.shape:
        return NotImplemented
    add = torch.ops.quantized.add_relu if total.relu else torch.ops.quantized.add
    scale, zero_point = total.params.scale, total.params.zero_point
    value = as_stored(lambda a, b: add(a, b, scale, zero_point), left.value, right.value)
    return QTensor(value, total.into, total.relu)


def _put(x: QTensor, value: Tensor, in_place: bool) -> QTensor:
    """``value`` in a new tensor, or in ``x`` itself."""
    if not in_place:
        return x.with_value(value)
    x.value = value
    return x


def _int8(x: Any) -> bool:
    return isinstance(x, QTensor) and x.quantized


def _is_mask(mask: Any, x: Tensor) -> bool:
    """Whether ``mask`` holds nothing but ones and zeros, fewer than ``x``: a factor that keeps frames or drops them."""
    if not isinstance(mask, Tensor) or isinstance(mask, QTensor) or mask.numel() * 2 > x.numel():
        return False
    return mask.dtype == torch.bool or bool(((mask == 0) | (mask == 1)).all())


def _plain_index(index: Any) -> bool:
    """Slices, integers and None, which only move values."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is None or part is Ellipsis or isinstance(part, slice | int) for part in parts)


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], place: int, name: str, default: Any = None) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)
