"""A converted model on disk: safetensors and JSON, which hold numbers and names and run nothing."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quantasr.artifact import NATIVE, TENSORS
from quantasr.engines.torch_native.kernels import Geometry, Layer, Output, Weights
from quantasr.engines.torch_native.plan import Plan
from quantasr.engines.torch_native.tensors import QParams, Sum
from quantasr.errors import ArtifactError

FORMAT = 1
_INTEGERS, _SCALE = "quantasr.integers.", "quantasr.scale."


@dataclass(frozen=True)
class Skeleton:
    """What makes the model again: its source, and norms that were folded into the layer before them."""

    source: str
    folded: list[str]


def save(
    folder: Path, module: nn.Module, skeleton: Skeleton, plan: Plan, weights: dict[str, Weights], halves: set[str]
) -> None:
    """Write a converted ``module`` into ``folder``; the float weights named in ``halves`` in float16."""
    tensors = {
        name: (tensor.half() if name in halves else tensor).detach().clone().contiguous()
        for name, tensor in module.state_dict().items()
    }
    for path in plan.layers:
        tensors[_INTEGERS + path] = weights[path].integers.contiguous()
        tensors[_SCALE + path] = weights[path].scale.contiguous()
    save_file(tensors, folder / TENSORS)
    row = {
        "format": FORMAT,
        "torch": torch.__version__,
        "backend": plan.backend.name,
        **asdict(skeleton),
        "halves": sorted(halves),
        "sums": [_sum_row(total) for total in plan.sums.values()],
        "layers": [_layer_row(layer) for layer in plan.layers.values()],
    }
    (folder / NATIVE).write_text(json.dumps(row, indent=1) + "\n", "utf-8")


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``native.json`` and the tensors; raises :class:`ArtifactError` when they cannot be read."""
    try:
        row = json.loads((folder / NATIVE).read_text("utf-8"))
        tensors = load_file(folder / TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(f"{folder}: cannot read the model: {error}: copy the artifact again") from None
    if not isinstance(row, dict) or row.get("format") != FORMAT:
        raise ArtifactError(f"{folder / NATIVE}: not of format {FORMAT}: upgrade quantasr, or make the artifact again")
    return row, tensors


def read_layers(row: dict[str, Any]) -> tuple[dict[str, Layer], dict[str, Sum]]:
    """The planned layers and sums; raises ``KeyError``, ``TypeError`` or ``ValueError`` where they are malformed."""
    rows = {total["name"]: total for total in row["sums"]}
    sums: dict[str, Sum] = {}

    def total(name: str | None, depth: int = 0) -> Sum | None:
        if name is None:
            return None
        if depth > len(rows):
            raise ValueError(f"the sum {name} goes into itself")
        if name not in sums:
            given = rows[name]
            into = total(given["into"], depth + 1)
            sums[name] = Sum(name, _params(given), bool(given["relu"]), into)
        return sums[name]

    for name in rows:
        total(name)
    layers = {}
    for given in row["layers"]:
        shape = given["geometry"]
        sizes = {key: tuple(map(int, shape[key])) for key in ("stride", "padding", "dilation", "output_padding")}
        geometry = Geometry(function=str(shape["function"]), groups=int(shape["groups"]), **sizes)
        out = given["output"]
        params = None if out["params"] is None else _params(out["params"])
        output = Output(bool(out["quantized"]), params, bool(out["relu"]), total(out["into"]), bool(out["contiguous"]))
        layers[str(given["path"])] = Layer(str(given["path"]), geometry, _params(given["input"]), output)
    return layers, sums


def restore(
    module: nn.Module, skeleton: Skeleton, tensors: dict[str, Tensor], layers: dict[str, Layer]
) -> dict[str, Weights]:
    """Give a rebuilt ``module`` its saved values; the packed weights' integers come back.

    Raises :class:`ArtifactError` when names or shapes do not fit.
    """
    for path in skeleton.folded:
        _replace(module, path)
    state = {name: tensor for name, tensor in tensors.items() if not name.startswith((_INTEGERS, _SCALE))}
    state = {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in state.items()}
    for name, tensor in state.items():
        path, _, key = name.rpartition(".")
        part = module.get_submodule(path)
        if key == "bias" and getattr(part, "bias", tensor) is None:
            part.register_parameter("bias", nn.Parameter(torch.empty_like(tensor), requires_grad=False))
    missing, unexpected = module.load_state_dict(state, strict=False)
    wrong = sorted(set(missing) - {f"{path}.weight" for path in layers}) + sorted(unexpected)
    if wrong:
        raise ArtifactError(f"the saved weights do not fit the model: {wrong[0]}: make the artifact again")
    found = {}
    for path in layers:
        bias = getattr(module.get_submodule(path), "bias", None)
        found[path] = Weights(
            tensors[_INTEGERS + path], tensors[_SCALE + path], None if bias is None else bias.detach()
        )
    return found


def _replace(module: nn.Module, path: str) -> None:
    """Put an identity in the place of the norm at ``path``, under all its names."""
    norm = module.get_submodule(path)
    for part in list(module.modules()):
        for name, child in part.named_children():
            if child is norm:
                setattr(part, name, nn.Identity())


def _params(row: dict[str, Any]) -> QParams:
    return QParams(float(row["scale"]), int(row["zero_point"]))


def _sum_row(total: Sum) -> dict[str, Any]:
    into = None if total.into is None else total.into.name
    return {"name": total.name, **asdict(total.params), "relu": total.relu, "into": into}


def _layer_row(layer: Layer) -> dict[str, Any]:
    row = asdict(layer)
    row["output"]["into"] = None if layer.output.into is None else layer.output.into.name
    return row
