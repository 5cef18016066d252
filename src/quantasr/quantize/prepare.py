"""Attach quantizers to the layers that a recipe names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from quantasr.numerics.observers import observer_factory
from quantasr.numerics.quantizers import DynamicInputQuantizer, InputQuantizer, Phase, Quantizer, WeightQuantizer
from quantasr.quantize.fold import bake_parametrizations, fold_batch_norms
from quantasr.quantize.functional import ProductQuantizers
from quantasr.quantize.layers import KINDS, find_layers
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
    folded: list[tuple[str, str]] = field(default_factory=list)

    def set_phase(self, phase: Phase) -> None:
        """Put every quantizer into ``phase``."""
        for quantizer in self.quantizers():
            quantizer.phase = phase

    def quantizers(self) -> Iterator[Quantizer]:
        """All quantizers, those of attention products included."""
        yield from self.inputs.values()
        yield from self.weights.values()
        if self.products is not None:
            for pair in self.products.quantizers.values():
                yield from pair

    def leave_float(self, path: str, reason: str) -> None:
        """Take the quantizers off one layer and record why."""
        layer = self.model.module.get_submodule(path)
        self.inputs.pop(path, None)
        if self.weights.pop(path, None) is not None:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        self.plan = [replace(row, qconfig=FLOAT, reason=reason) if row.path == path else row for row in self.plan]

    @contextmanager
    def active(self, phase: Phase) -> Iterator[None]:
        """Run the model in ``phase`` for a while, attention products included, then return to float."""
        self.set_phase(phase)
        try:
            with evaluating(self.model.module):
                if self.products is None:
                    yield
                else:
                    with self.products:
                        yield
        finally:
            self.set_phase(Phase.FLOAT)


def prepare(model: AsrModel, recipe: Recipe) -> Prepared:
    """Fold what can be folded, then attach a quantizer to the weight and the input of every layer that the recipe names.

    Nothing is replaced: an input gets a forward pre-hook, a weight a parametrization. Raises
    :class:`quantasr.errors.RecipeError` when the recipe matches nothing or does not fit a layer.
    """
    layers = find_layers(model.module)
    recipe.check_used({path: kind for path, (kind, _) in layers.items()})
    with evaluating(model.module):
        bake_parametrizations(model.module)
        folded = fold_batch_norms(model.module, model.graph, model.probe())
    prepared = Prepared(model, recipe, [], folded=folded)
    for path, (kind, layer) in layers.items():
        qconfig = recipe.qconfig(path, kind)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        reason = "the recipe leaves it float" if qconfig.mode == "float" else ""
        prepared.plan.append(LayerPlan(path, kind, qconfig, tuple(weight.shape), reason))
        if qconfig.mode != "float":
            _attach(prepared, path, kind, layer, qconfig)
    if recipe.attention_products:
        prepared.products = ProductQuantizers(
            model.module, recipe.defaults, lambda q: InputQuantizer(q.input, observer_factory(q.input_observer))
        )
    return prepared


def _attach(prepared: Prepared, path: str, kind: str, layer: nn.Module, qconfig: QConfig) -> None:
    if KINDS[kind].has_input and qconfig.mode != "weight_only":
        quantizer = (
            DynamicInputQuantizer(qconfig.input)
            if qconfig.mode == "dynamic"
            else InputQuantizer(qconfig.input, observer_factory(qconfig.input_observer))
        )
        # The hook holds the quantizer; as a submodule it would change the paths that recipes speak of.
        layer.register_forward_pre_hook(lambda _, args: (quantizer(args[0]), *args[1:]) if args else None)
        prepared.inputs[path] = quantizer
    weight = WeightQuantizer(qconfig.weight, observer_factory(qconfig.weight_observer), KINDS[kind].channel_axis)
    weight.check(layer.weight, path)  # type: ignore[arg-type]
    parametrize.register_parametrization(layer, "weight", weight, unsafe=True)
    prepared.weights[path] = weight
