"""A quantized model that Kaldi itself runs: a copy of its folder, with weights that integers of a few bits can hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantasr.atomic import create
from quantasr.errors import ArtifactError, ModelLoadError, RecipeError
from quantasr.kaldi.nnet3.model import AcousticModel, read_model, write_model
from quantasr.numerics.qtypes import QType
from quantasr.pipeline import find_recipe
from quantasr.quantize.layers import find_layers, module_names
from quantasr.recipes import Recipe
from quantasr.recipes.recipe import QConfig, Rule
from quantasr.sources.kaldi.build import build_network
from quantasr.sources.kaldi.folder import find_model
from quantasr.sources.kaldi.requantize import Rounded, requantized, weight_field
from quantasr.sources.kaldi.save import copy_with


@dataclass(frozen=True)
class Requantized:
    """What :func:`requantize` wrote: ``path`` is the folder or file, ``layers`` what became of each weight.

    ``left_float`` are the components that have a weight and kept it.
    """

    path: Path
    recipe: str
    layers: tuple[Rounded, ...]
    left_float: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "path": str(self.path),
            "recipe": self.recipe,
            "layers": [layer.to_dict() for layer in self.layers],
            "left_float": list(self.left_float),
        }


def requantize(
    source: str | Path, target: str | Path, recipe: Recipe | str | Path | int, *, granularity: str = "per_channel"
) -> Requantized:
    """Copy a model of Kaldi's, its weights rounded to integers times their scale; all else is the same, byte for byte.

    ``source`` is a folder of Vosk's or of an experiment, of which ``target`` becomes a copy, written at once and only
    if it is not there; or a ``final.mdl``, and ``target`` the new file. ``recipe``, as in :func:`quantasr.quantize`,
    says which components, by their names, and how their weights; a number of bits means all of them: one scale a row,
    symmetric, or with ``granularity`` ``per_tensor`` one scale, affine. Kaldi multiplies floats, so inputs are not
    rounded whatever the recipe says.

    Raises :class:`RecipeError` for a recipe that does not fit, :class:`ModelLoadError` for a model that cannot be read
    and :class:`ArtifactError` when ``target`` cannot be written.
    """
    source, target = Path(source), Path(target)
    path = find_model(source)
    if path is None:
        raise ModelLoadError(f"{source}: has no final.mdl and no am/final.mdl")
    model = read_model(path)
    chosen = _everywhere(recipe, granularity) if isinstance(recipe, int) else find_recipe(recipe, "kaldi")
    qconfigs = _choose(model, chosen, str(path))
    if not qconfigs:
        raise RecipeError(f"recipe {chosen.name!r}: has no rule for any weight of {path}")
    new, rows = requantized(model, qconfigs)
    left = [name for name, c in model.network.components.items() if name not in qconfigs and weight_field(c)]
    if source.is_dir():

        def fill(folder: Path) -> None:
            copy_with(new, source, path, folder)

        create(target, fill)
    else:
        if target.exists():
            raise ArtifactError(f"{target}: exists already: choose another name")
        write_model(new, target)
    return Requantized(target, chosen.name, tuple(rows), tuple(left))


def _everywhere(bits: int, granularity: str) -> Recipe:
    weight = QType(bits, symmetric=granularity != "per_tensor", granularity=granularity)
    return Recipe(f"w{bits}", (Rule("*"),), QConfig("weight_only", weight))


def _choose(model: AcousticModel, recipe: Recipe, where: str) -> dict[str, QConfig]:
    """How the recipe has each component that it does not leave float; components are named as in a loaded model."""
    module = build_network(model.network, model.left_context, model.right_context, where=where)
    kinds = {path: kind for path, (kind, _) in find_layers(module).items()}
    recipe.check_used(kinds, module_names(module))
    found: dict[str, QConfig] = {}
    for path, kind in kinds.items():
        name = _component(path, model)
        qconfig = recipe.qconfig(path, kind)
        if name is None or qconfig.mode == "float":
            continue
        if qconfig.weight.granularity == "per_group":
            raise RecipeError(
                f"recipe {recipe.name!r}: {name}: scales of Kaldi's weights are per_tensor or per_channel"
            )
        found[name] = qconfig
    return found


def _component(path: str, model: AcousticModel) -> str | None:
    """The component whose weight the layer at ``path`` multiplies by."""
    by_node = {line.name: line.component for line in model.network.lines if line.component}
    for name in (path, path.rpartition(".")[0]):  # a layer in blocks is one level below
        name = name if name in model.network.components else by_node.get(name, "")
        if name in model.network.components and weight_field(model.network.components[name]):
            return name
    return None
