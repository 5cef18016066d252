"""The tensors that flow through a converted model: activations in int8 that look like float, and packed weights.

Both are tensor subclasses, so the framework's own ``forward`` needs no change and no context: whatever operation meets
one of them comes here. An operation that has an integer form runs in it; for any other the values are dequantized
first, so every operation works, only not every one in int8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from quantasr.engines.torch_native.trace import Event, note

Operation = Callable[..., Any]


@dataclass(frozen=True)
class QParams:
    """Scale and zero point of an activation in unsigned 8 bits: ``real = (integer - zero_point) * scale``."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class Sum:
    """A residual sum in int8: its name, the format of its result, the sum that the result goes into, if any."""

    name: str
    params: QParams
    relu: bool = False
    into: Sum | None = None


class LayerKernel(Protocol):
    """What computes a layer in the place of its float function."""

    def __call__(self, func: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What ``func(*args, **kwargs)`` gives, where the weight is among the arguments."""
        ...

    def float_weight(self) -> Tensor:
        """The weight as float, for operations that are not the layer's own."""
        ...


class _Flowing(Tensor):
    """A tensor whose every operation is decided by :func:`dispatch`."""

    @classmethod
    def __torch_function__(
        cls, func: Operation, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return dispatch(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Operation, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Only from C++ that never asked Python: give it floats.
        return in_float(func, args, kwargs or {})


class QTensor(_Flowing):
    """An activation in 8 bits that has the shape, type and values of a float tensor.

    ``value`` is PyTorch's quantized tensor, or a float one after an operation in place that has no integer form.
    ``into`` is the residual sum that it goes into, if that is computed in int8; ``relued`` says that a fused ReLU
    has been applied, so that the framework's own has nothing left to do.
    """

    value: Tensor
    into: Sum | None
    relued: bool

    @staticmethod
    def __new__(cls, value: Tensor, into: Sum | None = None, relued: bool = False) -> QTensor:
        out: QTensor = Tensor._make_wrapper_subclass(cls, value.shape, strides=value.stride(), dtype=torch.float32)
        out.value, out.into, out.relued = value, into, relued
        return out

    @property
    def quantized(self) -> bool:
        """Whether ``value`` is still in 8 bits."""
        return self.value.is_quantized

    def with_value(self, value: Tensor) -> QTensor:
        """The same, of another shape or with other values in the same format."""
        return QTensor(value, self.into, self.relued)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"QTensor({tuple(self.value.shape)}, {self.value.dtype})"


class PackedWeight(_Flowing):
    """Stands where a layer's weight was; the layer's function finds its kernel in it."""

    kernel: LayerKernel

    @staticmethod
    def __new__(cls, shape: torch.Size | tuple[int, ...], kernel: LayerKernel) -> PackedWeight:
        out: PackedWeight = Tensor._make_wrapper_subclass(cls, torch.Size(shape), dtype=torch.float32)
        out.kernel = kernel
        return out

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeight:
        return PackedWeight(self.shape, self.kernel)  # a kernel never changes; PyTorch would copy the float values

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"PackedWeight({self.kernel})"


HANDLERS: dict[Operation, Callable[[Operation, tuple[Any, ...], dict[str, Any]], Any]] = {}
"""Operations with an integer form; a handler gives ``NotImplemented`` where the arguments do not allow it."""

LAYER_FUNCTIONS: dict[Operation, int] = {
    torch.conv1d: 1,
    torch.conv2d: 1,
    torch.conv3d: 1,
    torch.conv_transpose1d: 1,
    torch.nn.functional.linear: 1,
    torch.nn.functional.embedding: 1,
    torch.nn.functional.embedding_bag: 1,
}
"""The functions that layers call, and where among their arguments the weight is."""

WEIGHT_SHAPES = {Tensor.unsqueeze, torch.unsqueeze, Tensor.squeeze, torch.squeeze}
"""What may be done to a weight before the layer's function gets it: 1-d convolutions can be computed as 2-d ones."""

METADATA = {
    "dim",
    "size",
    "numel",
    "ndimension",
    "nelement",
    "is_floating_point",
    "is_complex",
    "__len__",
    "get_device",
}
_ATTRIBUTES = {"shape", "dtype", "device", "ndim", "requires_grad", "layout", "is_cuda", "is_leaf", "grad_fn", "grad"}


def is_metadata(func: Operation) -> bool:
    """Whether ``func`` asks about a tensor without reading its values."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", "") in _ATTRIBUTES
    return name in METADATA


def dispatch(func: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run ``func`` in int8 where that is possible, otherwise in float."""
    if is_metadata(func):
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)
    if func in LAYER_FUNCTIONS:
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        if isinstance(weight, PackedWeight):
            return weight.kernel(func, args, kwargs)
    if func in WEIGHT_SHAPES and args and isinstance(args[0], PackedWeight):
        with torch._C.DisableTorchFunctionSubclass():
            shape = func(torch.empty(args[0].shape, device="meta"), *args[1:], **kwargs).shape
        return PackedWeight(shape, args[0].kernel)
    handler = HANDLERS.get(func)
    if handler is not None:
        out = handler(func, args, kwargs)
        if out is not NotImplemented:
            return out
    return in_float(func, args, kwargs)


def in_float(func: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run ``func`` on dequantized values."""
    first = args[0] if args else None
    plain: dict[int, Tensor] = {}  # the same tensor given twice is the same tensor still

    def to_float(x: _Flowing) -> Tensor:
        if id(x) not in plain:
            plain[id(x)] = as_float(x)
        return plain[id(x)]

    new_args, new_kwargs = tree_map_only(_Flowing, to_float, (args, kwargs))
    out = func(*new_args, **new_kwargs)
    if isinstance(first, QTensor) and (out is new_args[0] or getattr(func, "__name__", "") == "__setitem__"):
        first.value = new_args[0]  # changed in place
        return first if out is new_args[0] else out
    return out


def as_float(x: Tensor) -> Tensor:
    """The values of any tensor as a plain float tensor."""
    if isinstance(x, PackedWeight):
        return x.kernel.float_weight()
    if isinstance(x, QTensor):
        if not x.quantized:
            return x.value
        note(Event("exit", "", x.value.numel()))
        return dequantize(x.value)
    return x


def memory_order(x: Tensor) -> list[int]:
    """Dimensions from the slowest to the fastest in memory.

    PyTorch's quantized kernels are fast on contiguous tensors, and rearrange any other; channels-last activations of
    1-d convolutions are contiguous when they are looked at in this order.
    """
    strides: tuple[int, ...] = x.stride()
    return sorted(range(x.ndim), key=lambda d: (x.shape[d] == 1, -strides[d], d))


def as_stored(operation: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Tensor:
    """``operation(x, *others)``, element by element, in the memory order of ``x``, which the result keeps."""
    if x.is_contiguous():
        return operation(x, *(other.contiguous() for other in others))
    order = memory_order(x)
    back = [order.index(d) for d in range(x.ndim)]
    out = operation(x.permute(order).contiguous(), *(other.permute(order).contiguous() for other in others))
    return out.permute(back)


def quantize(x: Tensor, params: QParams) -> Tensor:
    """Round a float tensor to PyTorch's quantized tensor of unsigned 8 bits."""
    return as_stored(
        lambda v: torch.quantize_per_tensor(v, params.scale, params.zero_point, torch.quint8), x.detach().float()
    )


def dequantize(value: Tensor) -> Tensor:
    """The float values of a quantized tensor, laid out as it is."""
    return as_stored(torch.dequantize, value)


def integers(value: Tensor) -> Tensor:
    """The integers of a quantized tensor, without a copy."""
    raw = torch.empty(0, dtype=torch.uint8)
    return raw.set_(value.untyped_storage(), value.storage_offset(), value.size(), value.stride())
