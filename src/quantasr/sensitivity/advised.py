"""The recipe that follows from a table of sensitivity."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from quantasr.measure.sensitivity import Sensitivity
from quantasr.quantize.layers import find_layers
from quantasr.recipes.pattern import Pattern
from quantasr.recipes.recipe import FLOAT, QConfig, Recipe, Rule
from quantasr.sensitivity.groups import PRODUCTS
from quantasr.sensitivity.study import complete, default_qconfig
from quantasr.sources.asr_model import AsrModel


def advised_recipe(found: Sensitivity, model: AsrModel, recipe: Recipe | None = None) -> Recipe | None:
    """Quantize what the table advises to quantize and leave the rest float.

    Layers are quantized as they were measured: as ``recipe`` has it, otherwise by its defaults. Layers that were not
    measured are as ``recipe`` has them, otherwise float. None when nothing would be quantized.
    """
    base = recipe or Recipe("defaults", (), QConfig())
    measured = complete(model, recipe)
    kinds = {path: kind for path, (kind, _) in find_layers(model.module).items()}
    quantized = {path for part in found.parts if not part.leave_float for path in part.layers}
    seen = {path for part in found.parts for path in part.layers}
    wanted = {path: base.qconfig(path, kind) for path, kind in kinds.items()}
    wanted |= {path: measured.qconfig(path, kinds[path]) if path in quantized else FLOAT for path in seen & set(kinds)}
    products = next((not part.leave_float for part in found.parts if part.name == PRODUCTS), base.attention_products)
    if not products and all(qconfig.mode == "float" for qconfig in wanted.values()):
        return None
    names = [part.name for part in found.parts if part.leave_float]
    rules = tuple(_rules(wanted, kinds, base))
    exclude = tuple(_patterns({p for p, q in wanted.items() if q.mode == "float"}, names, list(kinds)))
    limit = f"KL at most {found.max_kl:g} nats a frame for each {found.by}"
    return replace(
        base,
        name=f"{found.model}-advised",
        rules=rules,
        exclude=exclude,
        attention_products=products,
        description=f"from quantasr sensitivity: {limit}",
    )


def _rules(wanted: Mapping[str, QConfig], kinds: Mapping[str, str], base: Recipe) -> list[Rule]:
    """A rule for each kind, and for each layer that differs from its kind."""
    rules: list[Rule] = []
    for kind in dict.fromkeys(kind for path, kind in kinds.items() if wanted[path].mode != "float"):
        usual = default_qconfig(base, kind)
        rules.append(Rule("*", _changes(usual, base.defaults), kind))
        expected = base.in_range(usual, kind)
        for path, qconfig in wanted.items():
            if kinds[path] == kind and qconfig.mode != "float" and qconfig != expected:
                rules.append(Rule(path, qconfig.to_dict(), kind))
    return rules


def _changes(qconfig: QConfig, defaults: QConfig) -> dict[str, object]:
    """The keys of a rule that make ``qconfig`` out of ``defaults``."""
    wanted, has = qconfig.to_dict(), defaults.to_dict()
    return {key: value for key, value in wanted.items() if value != has[key]}


def _patterns(paths: Collection[str], names: Collection[str], known: Collection[str]) -> list[str]:
    """Patterns for exactly ``paths``: names of groups, where they mean nothing else, before single layers."""
    rest = set(paths)
    found = []
    for name in names:
        meant = {path for path in known if Pattern(name).matches(path)}
        if meant and meant <= set(paths):
            found.append(name)
            rest -= meant
    return found + [path for path in known if path in rest]
