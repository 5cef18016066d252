"""Try every kernel before anything is converted: does it exist, is it right, is it faster than the float layer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from quantasr.engines.torch_native.flow import Node
from quantasr.engines.torch_native.kernels import Layer, StaticKernel, Weights, float_call
from quantasr.engines.torch_native.plan import Plan
from quantasr.engines.torch_native.tensors import QParams, QTensor, dequantize, quantize

_ROUNDS = 7
_ENOUGH = 0.5  # seconds for one layer, after which no further round begins

_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

Signature = tuple[object, ...]


@dataclass(frozen=True)
class Trial:
    """What became of one kernel: why it cannot be used, if so, and the times of kernel and float layer in seconds."""

    fault: str = ""
    int8_seconds: float = 0.0
    float_seconds: float = 0.0
    float_type: str = "fp32"

    def reason(self, timing: bool) -> str:
        """Why the layer stays float; empty when it does not."""
        if self.fault:
            return self.fault
        if timing and self.int8_seconds >= self.float_seconds:
            return (
                f"{_milliseconds(self.int8_seconds)} in int8, {_milliseconds(self.float_seconds)} in {self.float_type}"
            )
        return ""


def signature(layer: Layer, node: Node, weights: Weights, enters: bool) -> Signature:
    """What two layers must share to be tried as one; ``enters`` where the kernel gets a float tensor."""
    output = layer.output
    return (
        *(layer.geometry, node.shape, tuple(weights.integers.shape), weights.bias is None),
        *(enters, output.quantized, output.params is None, output.relu, output.contiguous),
    )


class Trials:
    """Trials of one backend; layers with the same signature are timed once."""

    def __init__(
        self, backend: str, nodes: Mapping[str, Node], weights: Mapping[str, Weights], dtype: torch.dtype
    ) -> None:
        self._backend, self._nodes, self._weights, self._dtype = backend, nodes, weights, dtype
        self._known: dict[Signature, Trial] = {}

    def run(self, plan: Plan) -> dict[str, Trial]:
        """The trial of every layer of ``plan``."""
        found = {}
        for path, layer in plan.layers.items():
            node = self._nodes[path]
            enters = not all(plan.quantized(source) for source in node.sources)
            key = signature(layer, node, self._weights[path], enters)
            if key not in self._known:
                self._known[key] = try_layer(layer, node.shape, self._weights[path], self._backend, enters, self._dtype)
            found[path] = self._known[key]
        return found


@torch.no_grad()
def try_layer(
    layer: Layer,
    shape: tuple[int, ...],
    weights: Weights,
    backend: str,
    enters: bool,
    dtype: torch.dtype = torch.float32,
) -> Trial:
    """Build the kernel of ``layer``, compare it with its simulation, and time it against the float layer.

    ``enters`` tells that the kernel gets a float tensor; ``dtype`` is the type in which the float layer would run.
    """
    x = _noise(shape, layer.input).to(dtype)
    try:
        kernel = StaticKernel(layer, weights, backend)
        value = quantize(x, layer.input)
        given = x if enters else QTensor(value)
        found = kernel.run(given)
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        return Trial(f"{backend} has no kernel for it: {first_line(error)}")
    expected = StaticKernel(layer, weights, backend, simulated=True).run(given)
    if fault := _difference(found, expected):
        return Trial(f"{backend} computes it wrongly: {fault}")
    real = weights.real(layer.geometry.function == "conv_transpose1d").to(dtype)
    bias = None if weights.bias is None else weights.bias.to(dtype)
    times: tuple[list[float], list[float]] = [], []
    begin = time.perf_counter()
    for turn in range(_ROUNDS + 1):
        start = time.perf_counter()
        kernel.run(given)
        middle = time.perf_counter()
        # In the middle of a region in int8, a float layer costs an exit before it and an entry behind it as well.
        out = float_call(layer.geometry, x if enters else dequantize(value).to(dtype), real, bias)
        if layer.output.quantized and layer.output.params is not None:
            quantize(out, layer.output.params)
        end = time.perf_counter()
        if turn:  # the first of all takes memory
            times[0].append(middle - start)
            times[1].append(end - middle)
        if turn and end - begin > _ENOUGH:
            break
    return Trial("", median(times[0]), median(times[1]), _NAMES.get(dtype, str(dtype)))


def _difference(found: Tensor, expected: Tensor) -> str:
    """What is wrong with a kernel's result; one step, or rounding of float sums, is not."""
    if isinstance(found, QTensor) and isinstance(expected, QTensor):
        steps = (found.value.int_repr().int() - expected.value.int_repr().int()).abs()
        far = float((steps > 1).float().mean())
        return f"{far:.1%} of its integers are off by up to {int(steps.max())}" if far > 1e-3 else ""
    error = float((found - expected).abs().mean() / expected.abs().mean().clamp(min=1e-9))
    return f"off by {error:.1%} of the mean magnitude" if error > 0.02 else ""


def _noise(shape: tuple[int, ...], params: QParams) -> Tensor:
    """Values that fill the range of ``params``."""
    generator = torch.Generator().manual_seed(0)
    step = torch.randint(0, 256, shape, generator=generator)
    return (step - params.zero_point) * params.scale


def _milliseconds(seconds: float) -> str:
    value = seconds * 1e3
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def first_line(error: Exception) -> str:
    """What PyTorch has to say, without the lines that say where."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
