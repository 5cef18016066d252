"""Turn a calibrated live model into one that runs in int8, in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from quantasr.engines.torch_native.backends import Backend
from quantasr.engines.torch_native.dynamic import RecurrentModule
from quantasr.engines.torch_native.dynamic_plan import (
    Dynamic,
    find_dynamic,
    make,
    try_dynamic,
    watch_inputs,
    weights_of,
)
from quantasr.engines.torch_native.flow import Flow, Node
from quantasr.engines.torch_native.kernels import StaticKernel, Weights
from quantasr.engines.torch_native.plan import Plan, make_plan, needs_range
from quantasr.engines.torch_native.tensors import PackedWeight, QParams
from quantasr.engines.torch_native.trial import Trial, Trials
from quantasr.numerics.fake_quantize import scale_and_zero_point
from quantasr.numerics.histogram import Sample
from quantasr.numerics.observers import Observer, observer_factory
from quantasr.numerics.qtypes import QType
from quantasr.numerics.quantizers import InputQuantizer
from quantasr.quantize import Prepared, calibrate, convert
from quantasr.sources.asr_model import evaluating
from quantasr.speech.transcript import Waveform


@dataclass
class Calibrated:
    """A live model, float again, with everything that was found out about its layers.

    ``nodes`` is the flow between layers and sums; ``weights`` holds the integers of every layer with a static recipe.
    """

    module: nn.Module
    nodes: dict[str, Node]
    weights: dict[str, Weights]
    inputs: dict[str, InputQuantizer]
    outputs: dict[str, Observer] = field(default_factory=dict)
    dynamic: Dynamic = field(default_factory=Dynamic)
    floats: dict[str, nn.Module] = field(default_factory=dict)
    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The layers whose place a kernel has taken, and their float weights."""

    def input_params(self) -> dict[str, QParams]:
        """The formats of the layers' inputs."""
        found = {}
        for path, quantizer in self.inputs.items():
            found[path] = _params(quantizer.observer, QType(8, quantizer.qtype.symmetric))
        return found

    def output_params(self, name: str, relu: bool) -> QParams:
        """The format of a node's output from its own range."""
        return _params(self.outputs[name], QType(8, symmetric=False), relu)

    def install(self, plan: Plan, *, simulated: bool = False) -> None:
        """Put the kernels of ``plan`` in; ``simulated`` computes the rounding of static layers in float."""
        self.uninstall()
        for path in (*plan.layers, *plan.dynamic):
            self.floats[path] = self.module.get_submodule(path)
            self.parameters[path] = dict(self.floats[path]._parameters)
        install(self.module, plan, self.weights, simulated=simulated)

    def uninstall(self) -> None:
        """Make the model float again."""
        for path, layer in self.floats.items():
            layer.__dict__.pop("weight", None)
            layer._parameters.update(self.parameters[path])
            replace_module(self.module, self.module.get_submodule(path), layer)
        self.floats.clear()
        self.parameters.clear()

    def plan(self, backend: Backend, skip: Iterable[str] = ()) -> Plan:
        """Which layers run in int8 on ``backend`` and what they give, without those in ``skip``."""
        return make_plan(self.nodes, self.input_params(), backend, self.output_params, set(skip))


@dataclass
class Chosen:
    """A plan whose every layer was tried, and why the others stay float."""

    plan: Plan
    reasons: dict[str, str]
    trials: dict[str, Trial]


def calibrate_native(
    prepared: Prepared,
    waves: Iterable[Waveform],
    backends: Iterable[Backend],
    *,
    seconds: float = 10.0,
    progress: bool = False,
) -> Calibrated:
    """Calibrate a prepared model for native execution; it is float again afterwards, its quantizers taken off.

    ``seconds`` is the length of the recording on whose shapes the layers are tried. Raises what
    :func:`quantasr.quantize.calibrate` raises.
    """
    module, graph = prepared.model.module, prepared.model.graph
    static = {path: q for path, q in prepared.inputs.items() if isinstance(q, InputQuantizer)}
    weights = {id(_original(module.get_submodule(path))): path for path in static}
    flow = Flow(weights)
    dynamic = find_dynamic(prepared)
    hooks = watch_inputs(module, dynamic)
    with evaluating(module), torch.no_grad():
        with flow:
            out = graph(*prepared.model.probe(seconds))
        flow.finish(out)
    for hook in hooks:
        hook.remove()
    nodes = flow.nodes
    make = observer_factory(prepared.recipe.defaults.input_observer)
    outputs = {
        name: make(1) for name, node in nodes.items() if any(needs_range(node, nodes, backend) for backend in backends)
    }

    def observe(name: str, out: Tensor) -> None:
        if name in outputs:
            outputs[name].observe(Sample(out.detach().reshape(1, -1)))

    with Flow(weights, observe):
        calibrate(prepared, waves, progress=progress)
    if prepared.weights:
        convert(prepared)
    static = {path: q for path, q in static.items() if path in prepared.inputs}
    found = {path: _weights(prepared, path, nodes[path].weight_shape) for path in static if path in nodes}
    strip(prepared)
    return Calibrated(module, nodes, found | dynamic.weights, static, outputs, dynamic)


def strip(prepared: Prepared) -> None:
    """Take all quantizers off: the model is float, with folded norms."""
    for path in list(prepared.hooks):
        prepared.hooks.pop(path).remove()
    for path in prepared.weights:
        layer = prepared.model.module.get_submodule(path)
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


def choose(
    calibrated: Calibrated, backend: Backend, *, timing: bool = True, dtype: torch.dtype = torch.float32
) -> Chosen:
    """Plan for ``backend``, try every layer, leave out what fails or loses, and plan again until all stay.

    ``dtype`` is the type in which float layers run.
    """
    trials = Trials(backend.name, calibrated.nodes, calibrated.weights, dtype)
    dynamic = calibrated.dynamic
    reasons = dict(dynamic.reasons)
    tried_dynamic = try_dynamic(calibrated.module, dynamic, backend.name)
    reasons |= {path: reason for path, trial in tried_dynamic.items() if (reason := trial.reason(timing))}
    for path in calibrated.inputs:
        node = calibrated.nodes.get(path)
        if node is None or node.geometry is None:
            reasons[path] = "it is called in a way that no kernel computes"
    while True:
        plan = calibrated.plan(backend, reasons)
        tried = trials.run(plan)
        lost = {path: reason for path, trial in tried.items() if (reason := trial.reason(timing))}
        if not lost:
            plan.dynamic = {path: layer for path, layer in dynamic.layers.items() if path not in reasons}
            return Chosen(plan, reasons, tried | tried_dynamic)
        reasons |= lost


def install(module: nn.Module, plan: Plan, weights: Mapping[str, Weights], *, simulated: bool = False) -> None:
    """Put the kernels of ``plan`` where the layers' weights are; the module then runs in int8 by itself.

    ``simulated`` installs the same rounding computed in float.
    """
    backend = plan.backend.name
    for path, layer in plan.layers.items():
        put(module.get_submodule(path), StaticKernel(layer, weights[path], backend, simulated))
    for path, dynamic in plan.dynamic.items():
        original = module.get_submodule(path)
        kernel = make(original, dynamic, weights_of(weights, path), backend)
        if isinstance(kernel, nn.Module):
            replace_module(module, original, kernel)
        else:
            put(original, kernel)


def converted(module: nn.Module) -> bool:
    """Whether some layer of ``module`` runs in int8 already."""
    return any(
        isinstance(part, RecurrentModule) or isinstance(vars(part).get("weight"), PackedWeight)
        for part in module.modules()
    )


def replace_module(module: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` is registered; a module may have several names."""
    for part in list(module.modules()):
        for name, child in part.named_children():
            if child is old and old is not new:
                setattr(part, name, new)


def put(layer: nn.Module, kernel: Any) -> None:
    """Let ``kernel`` stand for the weight of a layer."""
    shape = layer.weight.shape
    layer._parameters.pop("weight", None)
    layer.__dict__["weight"] = PackedWeight(shape, kernel)  # type: ignore[arg-type]


def _original(layer: nn.Module) -> Tensor:
    """The parameter that a layer multiplies by while its quantizer lets it pass."""
    if parametrize.is_parametrized(layer, "weight"):
        original: Tensor = layer.parametrizations["weight"].original  # type: ignore[index,union-attr]
        return original
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight


def _weights(prepared: Prepared, path: str, shape: tuple[int, ...]) -> Weights:
    quantizer = prepared.weights[path]
    layer: Any = prepared.model.module.get_submodule(path)
    channels = quantizer.integers.shape[quantizer.axis]
    scale = quantizer.scale.reshape(-1).expand(channels) if quantizer.scale.numel() == 1 else quantizer.scale
    bias = None if layer.bias is None else layer.bias.detach().clone()
    return Weights(quantizer.integers.to(torch.int8).reshape(shape), scale.float().contiguous().clone(), bias)


def _params(observer: Observer, qtype: QType, relu: bool = False) -> QParams:
    low, high = observer.range(qtype)
    if relu:
        low = torch.zeros_like(low)
    scale, zero_point = scale_and_zero_point(low, high, qtype)
    # Symmetric integers are -127..127; all kernels take unsigned ones, where the same values lie around 128.
    middle = 1 << (qtype.bits - 1) if qtype.signed else 0
    return QParams(float(scale[0]), int(zero_point[0]) + middle)
