"""A trained network written back as Kaldi has it: ``final.mdl`` with other weights, in a copy of its folder."""

from __future__ import annotations

import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantasr.errors import ModelLoadError
from quantasr.kaldi.nnet3.components import Component
from quantasr.kaldi.nnet3.model import AcousticModel, read_model, write_model
from quantasr.sources.kaldi.layers import BatchNorm, Blocks, TimeHeight
from quantasr.sources.kaldi.model import KaldiModel
from quantasr.sources.kaldi.network import KaldiNetwork

_TRAINING = shutil.ignore_patterns("egs*", "decode*", "log", "cache.*", "[0-9]*.mdl")
"""What a training leaves in an experiment's folder and no decoder reads."""


def save(model: KaldiModel, folder: Path) -> None:
    """Fill ``folder`` with the files that ``model`` was loaded from, and its weights of now in ``final.mdl``.

    Kaldi, Vosk and quantasr load it as they load the original. Raises ModelLoadError where the original is not there
    any more, or what was learnt has no place in it.
    """
    path = model.model_path
    trained = updated(read_model(path), model.networks)
    source = Path(model.provenance["model"])
    copy_with(trained, source if source.is_dir() else path.parent, path, folder)


def copy_with(model: AcousticModel, source: Path, path: Path, folder: Path) -> None:
    """Copy ``source``, but for ``path`` in it, in whose place ``model`` is written."""
    shutil.copytree(source, folder, ignore=_TRAINING, dirs_exist_ok=True)
    target = folder / path.relative_to(source)
    target.unlink()  # a copy of a link's target, perhaps read-only
    write_model(model, target)


def updated(model: AcousticModel, networks: list[KaldiNetwork]) -> AcousticModel:
    """``model`` with the weights and statistics of ``networks``, which were made of it; the rest is as it was.

    Raises ModelLoadError for a component that serves several nodes whose weights are not the same any more.
    """
    layers: dict[str, list[nn.Module]] = defaultdict(list)
    by_node = {line.name: line.component for line in model.network.lines if line.component}
    for network in networks:
        for node, path in network.paths.items():
            layers[str(by_node[node])].append(network.get_submodule(path))
    components = dict(model.network.components)
    for name, found in layers.items():
        component, *others = [_with_weights(components[name], layer) for layer in found]
        if any(other != component for other in others):
            raise ModelLoadError(f"component '{name}' serves several nodes, and they have learnt different weights")
        components[name] = component
    return replace(model, network=replace(model.network, components=components))


def _with_weights(component: Component, layer: nn.Module) -> Component:
    fields = component.fields
    if isinstance(layer, BatchNorm):
        return replace(component, fields={**fields, **_statistics(component, layer)})
    if isinstance(layer, Blocks):
        weight, bias = _blocks(component, layer)
    elif isinstance(layer, TimeHeight):
        places = [layer.weight[:, :, *place] for place in layer.places]
        weight, bias = torch.stack(places, 1).flatten(1), layer.bias
    elif isinstance(layer, nn.Conv2d):
        weight, bias = layer.weight.squeeze(2).transpose(1, 2).flatten(1), layer.bias
    elif isinstance(layer, nn.Linear):
        weight, bias = layer.weight, layer.bias
    else:
        return component
    name = "LinearParams" if "LinearParams" in fields else "Params"
    found = {name: _array(weight)}
    if bias is not None and len(fields.get("BiasParams", ())):
        found["BiasParams"] = _array(bias)
    return replace(component, fields={**fields, **found})


def _statistics(component: Component, layer: BatchNorm) -> dict[str, Any]:
    """Mean and variance; as they are in the file where they have not moved, because float32 would round them anew."""
    before = BatchNorm(component)
    assert layer.scale is not None and layer.offset is not None and before.scale is not None
    assert before.offset is not None
    if torch.equal(layer.scale.cpu(), before.scale) and torch.equal(layer.offset.cpu(), before.offset):
        return {}
    mean, var = layer.statistics()
    return {"StatsMean": _array(mean), "StatsVar": _array(var)}


def _blocks(component: Component, layer: Blocks) -> tuple[Tensor, Tensor | None]:
    """The matrices of all blocks, or their mean where the component has one for all."""
    weight, bias = layer.conv.weight.flatten(1), layer.conv.bias
    if "NumRepeats" not in component.fields:
        return weight, bias
    repeats = component.fields["NumRepeats"]
    mean = weight.double().view(repeats, -1, weight.shape[1]).mean(0)
    return mean, None if bias is None else bias.double().view(repeats, -1).mean(0)


def _array(values: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(values.detach().cpu().numpy(), np.float32)
