"""Run a live model's layers in integers, without touching them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from quantasr.errors import RecipeError
from quantasr.numerics.qtypes import QType
from quantasr.numerics.quantizers import DynamicInputQuantizer, InputQuantizer, Phase, WeightQuantizer
from quantasr.quantize.integer.arithmetic import Form, Product, Quantized, layer, same_padding
from quantasr.quantize.prepare import Prepared

KINDS = ("linear", "depthwise_conv1d", "conv1d", "depthwise_conv2d", "conv2d", "conv3d")
"""Kinds of layers that have integer arithmetic; others are simulated in float32."""

_CONVOLUTIONS: dict[Callable[..., Any], int] = {
    functional.conv1d: 1,
    functional.conv2d: 2,
    functional.conv3d: 3,
}


@dataclass
class _Layer:
    weight: WeightQuantizer
    input: InputQuantizer | QType

    def quantized(self, x: Tensor) -> Quantized:
        if isinstance(self.input, QType):
            return Quantized.of(x, self.input)
        return Quantized.fixed(x, self.input.scale, self.input.zero_point, self.input.qtype)


@dataclass
class IntegerProducts(TorchFunctionMode):
    """While active, every linear layer and convolution whose weight is known is computed in integers.

    A layer is known by the tensor that it multiplies by, wherever that happens: in PyTorch's own ``forward``, in that
    of a framework's subclass, in code that rewrites it. ``met`` are the paths of the layers that were seen to be so.
    """

    form: Form = Form.INTEGER
    layers: dict[str, _Layer] = field(default_factory=dict)
    met: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()
        self._owners: dict[int, str] = {}

    def add(self, path: str, weight: Tensor, found: _Layer) -> None:
        """Take over the layer at ``path``, which multiplies by ``weight``."""
        other = self._owners.setdefault(id(weight), path)
        if other != path and isinstance(found.input, InputQuantizer):
            raise RecipeError(f"{other} and {path} share one weight: exclude one of them, or take ranges per utterance")
        self.layers[path] = found

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.linear:
            return self._run(func, 0, *args, **kwargs)
        if func in _CONVOLUTIONS:
            return self._run(func, _CONVOLUTIONS[func], *args, **kwargs)
        return func(*args, **kwargs)

    def _run(
        self,
        func: Callable[..., Any],
        dims: int,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *rest: Any,
        **more: Any,
    ) -> Any:
        path = self._path(weight)
        if path is None:
            return func(input, weight, bias, *rest, **more)
        self.met.add(path)
        found = self.layers[path]
        stored = found.weight
        integers = stored.integers.reshape(weight.shape)
        quantized = Quantized(integers, stored.scale, stored.zero_point, stored.qtype)
        if not dims:
            return layer(found.quantized(input), quantized, bias, Product(), self.form)
        single = input.ndim == dims + 1
        product = _convolution(dims, weight.shape[2:], *rest, **more)
        x = input[None] if single else input
        out = layer(found.quantized(x), quantized, bias, product, self.form)
        return out[0] if single else out

    def _path(self, weight: Tensor) -> str | None:
        """Whose weight it is; a convolution may see it with an axis of size one more."""
        path = self._owners.get(id(weight))
        base = weight._base
        if path is None and base is not None and base.numel() == weight.numel() and len(base) == len(weight):
            path = self._owners.get(id(base)) if weight.is_contiguous() else None
        return path


def _convolution(
    dims: int, kernel: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Product:
    """PyTorch's arguments of a convolution, each for every axis."""
    spread_ = _each(dilation, dims)
    if padding == "same":
        pairs = same_padding(tuple(kernel), spread_)
    else:
        pairs = tuple((n, n) for n in _each(0 if padding == "valid" else padding, dims))
    return Product(dims, _each(stride, dims), pairs, spread_, groups)


def _each(value: Any, dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


@contextmanager
def integer_products(
    prepared: Prepared, *, inputs: QType | None = None, form: Form = Form.INTEGER
) -> Iterator[IntegerProducts]:
    """Compute the quantized layers of a converted model in integers for a while; then it is float again.

    ``inputs`` is the format of layers' inputs whose ranges are taken from each call: from each utterance, where they
    are transcribed one at a time. None takes the ranges that calibration found, and leaves the inputs of layers without
    them float. Layers of other kinds than :data:`KINDS` are simulated in float32. Raises :class:`RecipeError` for a
    format that integers cannot have.
    """
    products = IntegerProducts(form)
    simulated = []
    for path, weight in prepared.weights.items():
        own = prepared.inputs.get(path)
        source = inputs or (own.qtype if isinstance(own, DynamicInputQuantizer) else own)
        kind = next(row.kind for row in prepared.plan if row.path == path)
        if source is None or kind not in KINDS:
            simulated.append(path)
            continue
        module: Any = prepared.model.module.get_submodule(path)
        products.add(path, module.parametrizations.weight.original, _Layer(weight, source))
    with prepared.active(Phase.SIMULATE, simulated), torch.no_grad(), products:
        yield products
