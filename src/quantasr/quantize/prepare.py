"""Attach quantizers to the layers that a recipe names."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from quantasr.numerics.observers import observer_factory
from quantasr.numerics.quantizers import (
    DynamicInputQuantizer,
    InputQuantizer,
    OperandQuantizer,
    Phase,
    Quantizer,
    Samples,
    WeightQuantizer,
)
from quantasr.quantize.fold import BatchNorm, bake_parametrizations, fold_batch_norms
from quantasr.quantize.functional import ProductQuantizers
from quantasr.quantize.layers import KINDS, find_layers, module_names
from quantasr.quantize.live_norms import LiveNorms
from quantasr.recipes.recipe import FLOAT, QConfig, Recipe
from quantasr.sources.asr_model import AsrModel, evaluating


@dataclass(frozen=True)
class LayerPlan:
    """What is done with one layer, and why it stays float where it does."""

    path: str
    kind: str
    qconfig: QConfig
    shape: tuple[int, ...]
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        row: dict[str, Any] = {
            "path": self.path,
            "kind": self.kind,
            "shape": list(self.shape),
            **self.qconfig.summary(),
        }
        return {**row, "reason": self.reason} if self.reason else row


@dataclass
class Prepared:
    """A model with its quantizers; :meth:`phase` decides what they do.

    The model is changed in place (frameworks' models cannot all be copied), but its float behaviour is only a
    phase away: in :attr:`Phase.FLOAT` it gives what the original gave, up to the rounding of folded norms.
    """

    model: AsrModel
    recipe: Recipe
    plan: list[LayerPlan]
    inputs: dict[str, InputQuantizer | DynamicInputQuantizer] = field(default_factory=dict)
    weights: dict[str, WeightQuantizer] = field(default_factory=dict)
    products: ProductQuantizers | None = None
    native_only: dict[str, QConfig] = field(default_factory=dict)
    folded: list[tuple[str, str]] = field(default_factory=list)
    norms: LiveNorms = field(default_factory=LiveNorms)
    samples: Samples = field(default_factory=Samples)
    hooks: dict[str, RemovableHandle] = field(default_factory=dict)
    stored: dict[str, Tensor] = field(default_factory=dict)
    """Float weights, by their names, as float16 will hold them; the simulation has these in place of the originals."""

    def set_phase(self, phase: Phase, paths: Collection[str] | None = None) -> None:
        """Put every quantizer, or those at ``paths``, into ``phase``."""
        for quantizer in self.quantizers(paths):
            quantizer.phase = phase
        if self.products is not None:
            self.products.phase = phase if paths is None else Phase.FLOAT  # for products met for the first time

    def quantizers(self, paths: Collection[str] | None = None) -> Iterator[Quantizer]:
        """All quantizers, or those at ``paths``; those of attention products included."""
        pairs = self.products.quantizers if self.products is not None else {}
        for path in self.paths() if paths is None else paths:
            if path in self.inputs:
                yield self.inputs[path]
            if path in self.weights:
                yield self.weights[path]
            yield from pairs.get(path, ())

    def attach(self) -> None:
        """Put the quantizers where they belong: an input's into a forward pre-hook, a weight's as a parametrization."""
        for path, quantizer in self.inputs.items():
            # The hook holds the quantizer; as a submodule it would change the paths that recipes speak of.
            hook = partial(_quantize_input, quantizer)
            self.hooks[path] = self.model.module.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True)
        for path, weight in self.weights.items():
            parametrize.register_parametrization(self.model.module.get_submodule(path), "weight", weight, unsafe=True)

    def leave_float(self, path: str, reason: str) -> None:
        """Take the quantizers off one layer and record why."""
        layer = self.model.module.get_submodule(path)
        if self.inputs.pop(path, None) is not None:
            self.hooks.pop(path).remove()
        if self.weights.pop(path, None) is not None:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        self.plan = [replace(row, qconfig=FLOAT, reason=reason) if row.path == path else row for row in self.plan]

    def never_called(self) -> list[str]:
        """Layers whose weight or input calibration did not see."""
        unseen = {path for path, quantizer in self.inputs.items() if not quantizer.seen}
        return [path for path, weight in self.weights.items() if not weight.calls or path in unseen]

    def paths(self) -> list[str]:
        """Layers and attention products that have a quantizer."""
        return list(dict.fromkeys([*self.weights, *self.inputs, *(self.products.quantizers if self.products else ())]))

    def label(self) -> None:
        """Tell every quantizer the path of its layer or product, which its node in a graph then carries."""
        for path in self.paths():
            for quantizer in self.quantizers({path}):
                quantizer.label = path

    @contextmanager
    def active(self, phase: Phase, paths: Collection[str] | None = None) -> Iterator[None]:
        """Run the model in ``phase`` for a while, then return to float.

        ``paths`` are the layers and attention products (:meth:`paths`) to do it with, while all others are float; None
        means all, new attention products included.
        """
        self.set_phase(phase, paths)
        products = self.products
        if products is not None and paths is not None and not set(paths) & set(products.quantizers):
            products = None  # watching every function call for them costs time
        try:
            with evaluating(self.model.module), self._stored(phase), products or nullcontext():
                yield
        finally:
            self.set_phase(Phase.FLOAT)
            self.samples.clear()

    @contextmanager
    def _stored(self, phase: Phase) -> Iterator[None]:
        """While simulating, give the float rest the values of its float16 storage."""
        originals = {}
        if phase is Phase.SIMULATE:
            parameters = dict(self.model.module.named_parameters())
            originals = {name: parameters[name].data for name in self.stored}
        try:
            for name in originals:
                parameters[name].data = self.stored[name].float()
            yield
        finally:
            for name, original in originals.items():
                parameters[name].data = original


def prepare(model: AsrModel, recipe: Recipe, *, live_norms: bool = False) -> Prepared:
    """Fold what can be folded, then attach a quantizer to the weight and the input of each layer that the recipe names.

    Nothing is replaced: an input gets a forward pre-hook, a weight a parametrization. With ``live_norms``, for training
    with the statistics of batches, batch norms that would be folded become live ones. Raises
    :class:`quantasr.errors.RecipeError` when the recipe matches nothing or does not fit a layer.
    """
    check_fits(model, recipe)
    model.make_exportable()
    layers = find_layers(model.module)
    with evaluating(model.module):
        bake_parametrizations(model.module)
        graph, probe = model.graph, model.probe()
        folded = [] if live_norms else fold_batch_norms(model.module, graph, probe)
        norms = LiveNorms.attach(model.module, graph, probe) if live_norms else LiveNorms()
    prepared = Prepared(model, recipe, [], folded=folded, norms=norms)
    for path, (kind, layer) in layers.items():
        qconfig = recipe.qconfig(path, kind)
        if KINDS[kind].native_only:
            reason = "the recipe leaves it float" if qconfig.mode == "float" else "only PyTorch's own int8 quantizes it"
            prepared.plan.append(LayerPlan(path, kind, FLOAT, (), reason))
            prepared.native_only[path] = qconfig
            continue
        weight: Tensor = layer.weight  # type: ignore[assignment]
        reason = "the recipe leaves it float" if qconfig.mode == "float" else ""
        prepared.plan.append(LayerPlan(path, kind, qconfig, tuple(weight.shape), reason))
        if qconfig.mode != "float":
            _make_quantizers(prepared, path, kind, layer, qconfig)
    prepared.attach()
    for path, part in model.module.named_modules():
        if isinstance(part, BatchNorm) and not prepared.norms.holds(part):
            reason = "no layer stands right before it that it could be folded into"
            prepared.plan.append(LayerPlan(path, "batch_norm", FLOAT, (), reason))
    if recipe.attention_products:
        prepared.products = ProductQuantizers(model.module, partial(_operand, prepared))
    return prepared


def _operand(prepared: Prepared, second: bool) -> OperandQuantizer:
    """The quantizer of an operand of an attention product; the second stands where a layer has its weights."""
    qtype, observer = prepared.recipe.defaults.input, prepared.recipe.defaults.input_observer
    narrow = second and prepared.recipe.reduce_range
    operand = OperandQuantizer(qtype.reduced if narrow else qtype, observer_factory(observer), prepared.samples)
    operand.signed = narrow
    return operand


def check_fits(model: AsrModel, recipe: Recipe) -> None:
    """Raise :class:`quantasr.errors.RecipeError` when a recipe does not speak of ``model``; nothing is changed."""
    kinds = {path: kind for path, (kind, _) in find_layers(model.module).items()}
    recipe.check_used(kinds, module_names(model.module))


def _make_quantizers(prepared: Prepared, path: str, kind: str, layer: nn.Module, qconfig: QConfig) -> None:
    if KINDS[kind].has_input and qconfig.mode != "weight_only":
        quantizer = (
            DynamicInputQuantizer(qconfig.input)
            if qconfig.mode == "dynamic"
            else InputQuantizer(qconfig.input, observer_factory(qconfig.input_observer), prepared.samples)
        )
        prepared.inputs[path] = quantizer
    weight = WeightQuantizer(qconfig.weight, observer_factory(qconfig.weight_observer), KINDS[kind].channel_axis)
    weight.check(layer.weight, path)  # type: ignore[arg-type]
    prepared.weights[path] = weight


def _quantize_input(
    quantizer: nn.Module, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook: the first argument of every layer of a kind is its input, which is called ``input``."""
    if args:
        return (quantizer(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "input": quantizer(kwargs["input"])}
