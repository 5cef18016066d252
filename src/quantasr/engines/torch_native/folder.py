"""A converted model on disk: safetensors and JSON, which hold numbers and names and run nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quantasr.artifact import NATIVE, TENSORS
from quantasr.engines.torch_native.backends import Backend
from quantasr.engines.torch_native.convert import replace_module
from quantasr.engines.torch_native.dynamic import DynamicLayer
from quantasr.engines.torch_native.kernels import Geometry, Layer, Output, Weights
from quantasr.engines.torch_native.plan import Plan
from quantasr.engines.torch_native.tensors import QParams, Sum
from quantasr.errors import ArtifactError

FORMAT = 1
_INTEGERS, _SCALE, _BIAS = "quantasr.integers.", "quantasr.scale.", "quantasr.bias."


@dataclass(frozen=True)
class Skeleton:
    """What makes the model again: its source, norms that were folded, float weights that are stored in 16 bits."""

    source: str
    folded: list[str]
    halves: list[str] = field(default_factory=list)


def save(
    folder: Path,
    module: nn.Module,
    skeleton: Skeleton,
    plan: Plan,
    weights: Mapping[str, Weights],
    stored: Mapping[str, Tensor],
) -> None:
    """Write a converted ``module`` into ``folder``; weights that ``skeleton.halves`` names as ``stored`` has them."""
    halves = set(skeleton.halves)
    names = {same[0] for same in _aliases(module)}  # modules and parameters may have several
    tensors = {
        name: (stored[name] if name in halves else tensor).detach().clone().contiguous()
        for name, tensor in module.state_dict().items()
        if name in names
    }
    for name in weight_names(plan, weights):
        tensors[_INTEGERS + name] = weights[name].integers.contiguous()
        tensors[_SCALE + name] = weights[name].scale.contiguous()
        bias = weights[name].bias
        if bias is not None:
            tensors[_BIAS + name] = bias.contiguous()
    save_file(tensors, folder / TENSORS)
    (folder / TENSORS).chmod(0o644)  # it is made for its owner alone
    row = {
        "format": FORMAT,
        "torch": torch.__version__,
        "backend": plan.backend.name,
        **asdict(skeleton),
        "sums": [_sum_row(total) for total in plan.sums.values()],
        "layers": [_layer_row(layer) for layer in plan.layers.values()],
        "dynamic": [asdict(layer) for layer in plan.dynamic.values()],
    }
    (folder / NATIVE).write_text(json.dumps(row, indent=1) + "\n", "utf-8")


def weight_names(plan: Plan, weights: Mapping[str, Weights]) -> list[str]:
    """Names in ``weights`` of what ``plan`` packs: a static layer's path, or a dynamic one's with the weight's name."""
    return [*plan.layers, *(name for name in weights if name.rpartition(".")[0] in plan.dynamic)]


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


def read_plan(row: dict[str, Any], backend: Backend) -> Plan:
    """The plan as it was saved; raises ``KeyError``, ``TypeError`` or ``ValueError`` where they are malformed."""
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
        called = given["geometry"]
        sizes = {key: tuple(map(int, called[key])) for key in ("stride", "padding", "dilation", "output_padding")}
        geometry = Geometry(function=str(called["function"]), groups=int(called["groups"]), **sizes)
        out = given["output"]
        params = None if out["params"] is None else _params(out["params"])
        output = Output(bool(out["quantized"]), params, bool(out["relu"]), total(out["into"]), bool(out["contiguous"]))
        path, shape = str(given["path"]), tuple(map(int, given["shape"]))
        layers[path] = Layer(path, geometry, _params(given["input"]), output, shape)
    dynamic = {d["path"]: DynamicLayer(str(d["path"]), str(d["kind"]), int(d["bits"])) for d in row["dynamic"]}
    return Plan(backend, layers, sums, dynamic)


def restore(module: nn.Module, skeleton: Skeleton, tensors: dict[str, Tensor], plan: Plan) -> dict[str, Weights]:
    """Give a rebuilt ``module`` its saved values; the packed weights' integers come back.

    Raises :class:`ArtifactError` when names or shapes do not fit.
    """
    for path in skeleton.folded:
        replace_module(module, module.get_submodule(path), nn.Identity())
    state = {name: tensor for name, tensor in tensors.items() if not name.startswith((_INTEGERS, _SCALE, _BIAS))}
    halves = set(skeleton.halves)
    state = {name: tensor.float() if name in halves else tensor for name, tensor in state.items()}
    for name, tensor in state.items():
        path, _, key = name.rpartition(".")
        part = module.get_submodule(path)
        if key == "bias" and getattr(part, "bias", tensor) is None:
            part.register_parameter("bias", nn.Parameter(torch.empty_like(tensor), requires_grad=False))
    missing, unexpected = module.load_state_dict(state, strict=False)
    given = set(state) | {f"{path}.weight" for path in plan.layers} | {n.removeprefix(_INTEGERS) for n in tensors}
    given |= {name for same in _aliases(module) if not given.isdisjoint(same) for name in same}
    wrong = sorted(set(missing) - given) + sorted(unexpected)
    if wrong:
        raise ArtifactError(f"the saved weights do not fit the model: {wrong[0]}: make the artifact again")
    found = {}
    for name in (key.removeprefix(_INTEGERS) for key in tensors if key.startswith(_INTEGERS)):
        found[name] = Weights(tensors[_INTEGERS + name], tensors[_SCALE + name], tensors.get(_BIAS + name))
    return found


def _aliases(module: nn.Module) -> list[list[str]]:
    """The names of each parameter and buffer, in the order of the model."""
    found: dict[int, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), []).append(name)
    return list(found.values())


def _params(row: dict[str, Any]) -> QParams:
    return QParams(float(row["scale"]), int(row["zero_point"]))


def _sum_row(total: Sum) -> dict[str, Any]:
    into = None if total.into is None else total.into.name
    return {"name": total.name, **asdict(total.params), "relu": total.relu, "into": into}


def _layer_row(layer: Layer) -> dict[str, Any]:
    row = asdict(layer)
    row["output"]["into"] = None if layer.output.into is None else layer.output.into.name
    return row
