"""Layers in static int8: weights packed for a backend, run by its kernel, or in float for the simulation."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quantasr.engines.torch_native.backends import is_exact, packing_for
from quantasr.engines.torch_native.tensors import (
    Operation,
    PackedWeight,
    QParams,
    QTensor,
    Sum,
    as_float,
    dequantize,
    integers,
    quantize,
)
from quantasr.engines.torch_native.trace import Event, note
from quantasr.numerics.qtypes import SAFE

CONVOLUTIONS = {torch.conv1d: "conv1d", torch.conv2d: "conv2d", torch.conv3d: "conv3d"}
FUNCTIONS: dict[Operation, str] = {
    **CONVOLUTIONS,
    torch.conv_transpose1d: "conv_transpose1d",
    F.linear: "linear",
}
"""The functions of layers that have a static kernel, and their names."""

_DIMENSIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3, "conv_transpose1d": 1}
_POINTWISE = {
    "conv1d": torch.ops.onednn.qconv_pointwise,
    "conv2d": torch.ops.onednn.qconv_pointwise,
    "conv3d": torch.ops.onednn.qconv_pointwise,
}


@dataclass(frozen=True)
class Geometry:
    """How a layer's function is called: strides and so on, one number a dimension; empty for ``linear``."""

    function: str
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    output_padding: tuple[int, ...] = ()


@dataclass(frozen=True)
class Output:
    """What a layer gives: a float tensor, or an int8 one.

    ``params`` is the format of the int8 output; of a float output only where the kernel cannot but round it.
    ``relu`` is fused. ``into`` is the int8 sum that it goes into. ``contiguous`` lays a float output out as the
    framework's own function would, for code that makes views of it.
    """

    quantized: bool
    params: QParams | None = None
    relu: bool = False
    into: Sum | None = None
    contiguous: bool = True


@dataclass(frozen=True)
class Layer:
    """Everything about a static layer but its weights; ``shape`` is that of an input for which they are laid out."""

    path: str
    geometry: Geometry
    input: QParams
    output: Output
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Weights:
    """Integers of a weight (int8, symmetric), a scale for each output channel, and the bias in float."""

    integers: Tensor
    scale: Tensor
    bias: Tensor | None

    def real(self, transposed: bool = False) -> Tensor:
        """The weight as float."""
        shape = [1] * self.integers.ndim
        shape[1 if transposed else 0] = -1
        return self.integers.float() * self.scale.reshape(shape)

    def exact(self, backend: str) -> bool:
        """Whether ``backend`` multiplies them rightly by 8-bit inputs on this CPU."""
        return bool(self.integers.abs().max() <= SAFE) or is_exact(backend)


def geometry_of(func: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Geometry | None:
    """The geometry of a call, None when no kernel is made for it."""
    function = FUNCTIONS.get(func)
    if function is None:
        return None
    if function == "linear":
        return Geometry(function)
    names = ["stride", "padding", "dilation", "groups"]
    if function == "conv_transpose1d":
        names = ["stride", "padding", "output_padding", "groups", "dilation"]
    given = {**dict(zip(names, args[3:], strict=False)), **{k: v for k, v in kwargs.items() if k in names}}
    if isinstance(given.get("padding"), str):
        return None
    size = _DIMENSIONS[function]

    def wide(name: str, default: int) -> tuple[int, ...]:
        value = given.get(name, default)
        return (value,) * size if isinstance(value, int) else tuple(value) * (size if len(value) == 1 else 1)

    return Geometry(
        function,
        wide("stride", 1),
        wide("padding", 0),
        wide("dilation", 1),
        given.get("groups", 1),
        wide("output_padding", 0) if function == "conv_transpose1d" else (),
    )


class StaticKernel:
    """A layer in int8; stands in its :class:`PackedWeight`.

    ``simulated`` computes in float what the kernel computes in integers: the same rounding, other sums. So does a layer
    with weights of 8 bits, from an older folder, where the backend would add its products wrongly.
    """

    def __init__(self, layer: Layer, weights: Weights, backend: str, simulated: bool = False) -> None:
        self.layer, self.weights, self.backend = layer, weights, backend
        exact = weights.exact(backend)
        self.simulated, self._precision = simulated or not exact, "int8" if exact else "fp32"
        self._transposed = layer.geometry.function == "conv_transpose1d"
        self._packed: Any = None if self.simulated else _pack(layer, weights, backend)

    def __repr__(self) -> str:
        return f"{self.layer.path}: {self.layer.geometry.function} on {self.backend}"

    @property
    def name(self) -> str:
        """What executes it."""
        return f"{self.backend} {self.layer.geometry.function}{'_relu' if self.layer.output.relu else ''}"

    def float_weight(self) -> Tensor:
        """The dequantized weight."""
        return self.weights.real(self._transposed)

    def __call__(self, func: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the layer; in float where it is called in another way than when it was calibrated."""
        x = args[0] if args else kwargs["input"]
        if geometry_of(func, args, kwargs) != self.layer.geometry:
            return func(*_plain(args), **{k: as_float(v) if isinstance(v, Tensor) else v for k, v in kwargs.items()})
        return self.run(x)

    def run(self, x: Tensor) -> Tensor:
        """The layer's output for a float tensor, or one that is quantized already."""
        if isinstance(x, QTensor) and x.quantized:
            value = x.value
        else:
            value = as_float(x)
            note(Event("entry", self.layer.path, value.numel()))
            value = quantize(value, self.layer.input)
        begin = time.perf_counter()
        out = self._simulate(value) if self.simulated else self._run(value)
        macs, seconds = self.macs(value.shape, out.shape), time.perf_counter() - begin
        note(Event("kernel", self.layer.path, macs, self.name, self._precision, seconds))
        output = self.layer.output
        if output.quantized:
            return QTensor(out, output.into, output.relu)
        if out.is_quantized:
            out = dequantize(out)
        note(Event("exit", self.layer.path, out.numel()))
        return out.contiguous() if output.contiguous else out

    def macs(self, given: torch.Size, made: torch.Size) -> int:
        """Multiply-accumulates for an input and an output of these shapes."""
        shape = self.weights.integers.shape
        return prod(given) * prod(shape[1:]) if self._transposed else prod(made) * prod(shape[1:])

    def _run(self, value: Tensor) -> Tensor:
        output, geometry = self.layer.output, self.layer.geometry
        if isinstance(self._packed, Tensor):
            return self._run_to_float(value)
        assert output.params is not None
        name = geometry.function + ("_relu" if output.relu else "")
        function = getattr(torch.ops.quantized, name)
        out: Tensor = function(value, self._packed, output.params.scale, output.params.zero_point)
        return out

    def _run_to_float(self, value: Tensor) -> Tensor:
        """The kernels of oneDNN that multiply in int8 and give float."""
        geometry, weights = self.layer.geometry, self.weights
        scale, zero_point = value.q_scale(), value.q_zero_point()
        post = "relu" if self.layer.output.relu else "none"
        out: Tensor
        if geometry.function == "linear":
            out = torch.ops.onednn.qlinear_pointwise(
                integers(value.contiguous()),
                *(scale, zero_point, self._packed, weights.scale, self._zeros, weights.bias),
                *(1.0, 0, torch.float32, post, [], ""),
            )
            return out
        out = torch.ops.onednn.qconv_pointwise(
            integers(value),
            *(scale, zero_point, self._packed, weights.scale, self._zeros, weights.bias),
            *(geometry.stride, geometry.padding, geometry.dilation, geometry.groups),
            *(1.0, 0, torch.float32, post, [], ""),
        )
        return out

    @property
    def _zeros(self) -> Tensor:
        return torch.zeros(len(self.weights.scale), dtype=torch.int64)

    def _simulate(self, value: Tensor) -> Tensor:
        output = self.layer.output
        out = float_call(self.layer.geometry, dequantize(value), self.float_weight(), self.weights.bias)
        if output.relu:
            out = torch.relu(out)
        return out if output.params is None else quantize(out, output.params)


def float_call(geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer's own function in float."""
    g = geometry
    if g.function == "linear":
        return F.linear(x, weight, bias)
    if g.function == "conv_transpose1d":
        return F.conv_transpose1d(x, weight, bias, g.stride, g.padding, g.output_padding, g.groups, g.dilation)
    return getattr(torch, g.function)(x, weight, bias, g.stride, g.padding, g.dilation, g.groups)  # type: ignore[no-any-return]


def _plain(args: tuple[Any, ...]) -> list[Any]:
    return [as_float(x) if isinstance(x, QTensor | PackedWeight) else x for x in args]


def _pack(layer: Layer, weights: Weights, backend: str) -> Any:
    """The weight in the form that the kernel wants; raises what PyTorch raises where there is no kernel."""
    g = layer.geometry
    if layer.output.params is None:
        # Without a shape, weights are laid out in a way that some kernels must change in every call.
        shape = list(layer.shape) or None
        if g.function == "linear":
            rows = None if shape is None else [prod(shape[:-1]), shape[-1]]
            return torch.ops.onednn.qlinear_prepack(weights.integers.contiguous(), rows)
        if g.function not in _POINTWISE:
            raise NotImplementedError(f"no kernel of {g.function} gives float")
        return torch.ops.onednn.qconv_prepack(
            weights.integers, weights.scale, layer.input.scale, layer.input.zero_point,
            *(g.stride, g.padding, g.dilation, g.groups, shape),
        )  # fmt: skip
    axis = 1 if g.function == "conv_transpose1d" else 0
    quantized = torch._make_per_channel_quantized_tensor(
        weights.integers, weights.scale.double(), torch.zeros(len(weights.scale), dtype=torch.int64), axis
    )
    with packing_for(backend):
        if g.function == "linear":
            return torch.ops.quantized.linear_prepack(quantized, weights.bias)
        prepack = getattr(torch.ops.quantized, f"{g.function}_prepack")
        if g.function == "conv_transpose1d":
            return prepack(quantized, weights.bias, g.stride, g.padding, g.output_padding, g.dilation, g.groups)
        return prepack(quantized, weights.bias, g.stride, g.padding, g.dilation, g.groups)
