"""Which layers become dynamic, whether their kernels are right and fast, and how they get into the model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from quantasr.engines.torch_native.dynamic import (
    RECURRENT,
    DynamicLayer,
    DynamicLinear,
    PackedEmbedding,
    RecurrentModule,
)
from quantasr.engines.torch_native.dynamic_convolution import CONVOLUTIONS, DynamicConvolution
from quantasr.engines.torch_native.kernels import Weights
from quantasr.engines.torch_native.tensors import PackedWeight
from quantasr.engines.torch_native.trial import Trial, first_line
from quantasr.numerics.observers import observer_factory
from quantasr.numerics.quantizers import WeightQuantizer
from quantasr.quantize import Prepared
from quantasr.recipes.recipe import QConfig

_EMBEDDINGS = ("embedding", "embedding_bag")
_ROUNDS = 5
_TOLERANCE = 0.25


@dataclass
class Dynamic:
    """Layers that can be dynamic, their weights by full names, inputs that they were called with, and reasons."""

    layers: dict[str, DynamicLayer] = field(default_factory=dict)
    weights: dict[str, Weights] = field(default_factory=dict)
    inputs: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def of(self, path: str) -> dict[str, Weights]:
        """The weights of the layer at ``path``, by their names in it."""
        return weights_of(self.weights, path)


def weights_of(weights: Mapping[str, Weights], path: str) -> dict[str, Weights]:
    """The weights of the layer at ``path`` in ``{full name: weights}``."""
    return {name.rpartition(".")[2]: found for name, found in weights.items() if name.rpartition(".")[0] == path}


def find_dynamic(prepared: Prepared) -> Dynamic:
    """Every layer of a prepared model that its recipe wants without static scales, quantizers still on."""
    found = Dynamic()
    for row in prepared.plan:
        path, kind, qconfig = row.path, row.kind, prepared.native_only.get(row.path, row.qconfig)
        unscaled = kind in _EMBEDDINGS or kind in RECURRENT.values()
        if qconfig.mode == "float" or (qconfig.mode == "static" and not unscaled):
            continue
        layer = prepared.model.module.get_submodule(path)
        if reason := _refusal(kind, qconfig, layer):
            found.reasons[path] = reason
            continue
        found.layers[path] = DynamicLayer(path, kind, qconfig.weight.bits)
        for name, parameter in _parameters(layer).items():
            found.weights[f"{path}.{name}"] = _weights(parameter, qconfig, getattr(layer, "bias", None), kind)
    return found


def _refusal(kind: str, qconfig: QConfig, layer: nn.Module) -> str:
    """Why a layer cannot be dynamic; empty when it can."""
    half = qconfig.weight.bits == 16
    if 8 < qconfig.weight.bits < 16:
        return f"PyTorch has no kernel of {qconfig.weight.bits} bits: choose 8 or 16"
    if kind in _EMBEDDINGS:
        return "packed embeddings have 8 or 4 bits" if half else ""
    if kind in CONVOLUTIONS and (layer.groups != 1 or isinstance(layer.padding, str)):
        return f"no dynamic kernel of a {kind} in groups, or with padding by name"
    if kind not in ("linear", *CONVOLUTIONS, *RECURRENT.values()):
        return f"PyTorch has no kernel of {kind} in mode {qconfig.mode}"
    if qconfig.mode == "static":
        return "its kernels take their scales from each call: choose mode dynamic"
    if qconfig.mode == "weight_only" and not half:
        return "PyTorch multiplies no int8 weights by float inputs: choose mode dynamic, or 16 bits"
    own: Any = next((base for base in RECURRENT if isinstance(layer, base)), None)
    if own is not None and type(layer).forward is not own.forward:
        return f"{type(layer).__name__} has a forward of its own"
    return "PyTorch has no kernel for projections (proj_size)" if getattr(layer, "proj_size", 0) else ""


def _parameters(layer: nn.Module) -> dict[str, Tensor]:
    """The matrices of a layer by their names in it."""
    if isinstance(layer, tuple(RECURRENT)):
        return {name: p for name, p in layer.named_parameters(recurse=False) if name.startswith("weight_")}
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return {"weight": weight}


@torch.no_grad()
def _weights(parameter: Tensor, qconfig: QConfig, bias: Any, kind: str) -> Weights:
    bias = bias.detach().clone() if kind in ("linear", *CONVOLUTIONS) and isinstance(bias, Tensor) else None
    if qconfig.weight.bits == 16:
        return Weights(parameter.detach().half(), torch.ones(len(parameter)), bias)
    quantizer = WeightQuantizer(qconfig.weight, observer_factory(qconfig.weight_observer), 0)
    quantizer.freeze(parameter.detach())
    scale = quantizer.scale.reshape(-1).expand(len(parameter)).float().contiguous().clone()
    return Weights(quantizer.integers.to(torch.int8), scale, bias)


def watch_inputs(module: nn.Module, found: Dynamic) -> list[Any]:
    """Hooks that keep what each dynamic layer is called with first."""

    def keep(path: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        found.inputs.setdefault(path, args)

    return [module.get_submodule(path).register_forward_pre_hook(partial(keep, path)) for path in found.layers]


@torch.no_grad()
def try_dynamic(module: nn.Module, found: Dynamic, backend: str) -> dict[str, Trial]:
    """The trial of every dynamic layer on ``backend``; embeddings are packed for their size, so no time is theirs.

    Every kernel is compared with its layer; those that are alike are timed once.
    """
    trials: dict[str, Trial] = {}
    alike: dict[object, Trial] = {}
    for path, layer in found.layers.items():
        if path not in found.inputs:
            trials[path] = Trial("it is never called when transcribing")
            continue
        original = module.get_submodule(path)
        try:
            kernel = make(original, layer, found.of(path), backend)
            fault = _fault(original, kernel, found.inputs[path])
            key = _signature(layer, original, found.inputs[path])
            if not fault and key not in alike:
                alike[key] = _timed(original, kernel, found.inputs[path])
            trials[path] = Trial(fault) if fault else alike[key]
        except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
            trials[path] = Trial(f"{backend} has no kernel for it: {first_line(error)}")
    return trials


def _signature(layer: DynamicLayer, original: nn.Module, args: tuple[Any, ...]) -> object:
    """What two layers must share to take the same time."""
    shapes = [tuple(leaf.shape) for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
    return layer.kind, layer.bits, str(original), str(shapes)


def _run(original: nn.Module, kernel: Any, args: tuple[Any, ...]) -> Any:
    return kernel(*args) if isinstance(kernel, RecurrentModule) else call(original, kernel, args)


def _fault(original: nn.Module, kernel: Any, args: tuple[Any, ...]) -> str:
    """What is wrong with a kernel's result; empty when it is right."""
    expected, got = tree_leaves(original(*args)), tree_leaves(_run(original, kernel, args))
    for left, right in zip(expected, got, strict=True):
        if isinstance(left, Tensor) and left.is_floating_point():
            error = float((left - right).abs().mean() / left.abs().mean().clamp(min=1e-9))
            if error > _TOLERANCE:
                return f"computed wrongly: off by {error:.1%} of the mean magnitude"
    return ""


def _timed(original: nn.Module, kernel: Any, args: tuple[Any, ...]) -> Trial:
    if isinstance(kernel, PackedEmbedding):
        return Trial("", 0.0, 1.0)
    times: tuple[list[float], list[float]] = [], []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        _run(original, kernel, args)
        middle = time.perf_counter()
        original(*args)
        times[0].append(middle - start)
        times[1].append(time.perf_counter() - middle)
    return Trial("", median(times[0]), median(times[1]))


def call(layer: nn.Module, kernel: Any, args: tuple[Any, ...]) -> Any:
    """``layer(*args)`` with ``kernel`` in the place of its weight."""
    weight = layer._parameters.pop("weight")
    layer.__dict__["weight"] = PackedWeight(weight.shape, kernel)  # type: ignore[union-attr]
    try:
        return layer(*args)
    finally:
        layer.__dict__.pop("weight")
        layer._parameters["weight"] = weight


def make(original: nn.Module, layer: DynamicLayer, weights: Mapping[str, Weights], backend: str) -> Any:
    """The kernel of a dynamic layer, or the module that takes its place."""
    if layer.kind == "linear":
        return DynamicLinear(layer, weights["weight"], backend)
    if layer.kind in CONVOLUTIONS:
        return DynamicConvolution(layer, weights["weight"], backend)
    if layer.kind in _EMBEDDINGS:
        return PackedEmbedding(layer, weights["weight"], backend)
    return RecurrentModule(original, layer, weights, backend)
