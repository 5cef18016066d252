"""Make weights plain before they are quantized: weight norm computed once, batch norm folded into its layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from quantasr.quantize.layers import KINDS, find_layers, kind_of

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d

# The axis of an output that is the layer's output channel, and the dimensions of the output; any, where none are
# given. A source may compute 1-d convolutions as 2-d ones of height 1.
_CHANNELS = {
    "linear": (-1, ()),
    "conv1d": (1, (3, 4)),
    "depthwise_conv1d": (1, (3, 4)),
    "conv2d": (1, (4,)),
    "depthwise_conv2d": (1, (4,)),
    "conv3d": (1, (5,)),
    "conv_transpose1d": (1, (3,)),
}

# Questions about a tensor that do not read its values.
_METADATA = {"__get__", "dim", "size", "stride", "numel", "ndimension", "is_floating_point", "is_contiguous", "__len__"}


def bake_parametrizations(module: nn.Module) -> list[str]:
    """Replace every parametrized weight (weight norm, spectral norm) of a layer by its value; the paths of those.

    What is quantized is then the weight that the layer really multiplies by. Both of PyTorch's weight norms are
    known: the parametrization, and the older forward hook.
    """
    baked = []
    for path, (_, layer) in find_layers(module).items():
        if is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
            baked.append(path)
        elif hasattr(layer, "weight_g") and hasattr(layer, "weight_v"):
            nn.utils.remove_weight_norm(layer)
            baked.append(path)
    return baked


@dataclass(frozen=True)
class _Origin:
    """Which layer a tensor's values come from, the axis of the layer's output channels, and the tensors on the way."""

    layer: str
    axis: int
    way: tuple[int, ...] = ()


class _Uses(TorchFunctionMode):
    """Counts how many operations read each tensor that it was told of, and follows those that only move values."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()
        self.origins: dict[int, _Origin] = {}
        self._kept: list[Tensor] = []  # keeping a tensor keeps its id from being used again

    def watch(self, tensor: Tensor, origin: _Origin) -> None:
        """Count the uses of ``tensor`` from here on."""
        self._kept.append(tensor)
        self.origins[id(tensor)] = replace(origin, way=(*origin.way, id(tensor)))
        self.counts[id(tensor)] = 0

    def count(self, tree: Any) -> None:
        """One use more of every tensor in ``tree``."""
        self.counts.update(id(leaf) for leaf in tree_leaves(tree) if id(leaf) in self.origins)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name not in _METADATA:
            self.count((args, kwargs))
        out = func(*args, **(kwargs or {}))
        origin = self.origins.get(id(args[0])) if name in _MOVES else None
        axis = None if origin is None else _moved_axis(name, args[0], out, args[1:], origin.axis)
        if origin is not None and axis is not None and out is not args[0]:
            self.watch(out, replace(origin, axis=axis))
        return out


_MOVES = {"transpose", "reshape", "view"}


def _moved_axis(name: str, x: Tensor, out: Tensor, args: tuple[Any, ...], axis: int) -> int | None:
    """Where the axis of the channels is after a move; None when it is not one any more."""
    if name == "transpose":
        if len(args) != 2:
            return None
        one, other = (int(a) % x.ndim for a in args)
        return {one: other, other: one}.get(axis, axis)
    # Reshaping keeps the last axis if it keeps its size: SpeechBrain's norms see [batch * time, channels].
    return out.ndim - 1 if axis == x.ndim - 1 and out.shape[-1] == x.shape[-1] else None


@dataclass(frozen=True)
class _Pair:
    layer: str
    norm: str
    way: tuple[int, ...]


def batch_norm_pairs(module: nn.Module, graph: nn.Module, inputs: Sequence[Tensor]) -> list[tuple[str, str]]:
    """Paths ``(layer, batch norm)`` where the norm reads what the layer gave, perhaps moved, and nothing else does.

    Found by running ``graph(*inputs)`` once and watching which tensor goes where, so no assumption is made about
    how the model's ``forward`` is written.
    """
    calls: Counter[str] = Counter()
    pairs: list[_Pair] = []
    uses = _Uses()

    def after_layer(path: str, kind: str) -> Any:
        def hook(_: nn.Module, __: Any, out: Any) -> None:
            calls[path] += 1
            axis, dimensions = _CHANNELS[kind]
            if isinstance(out, Tensor) and out.ndim in (dimensions or (out.ndim,)):
                uses.watch(out, _Origin(path, axis % out.ndim))

        return hook

    def before_norm(path: str) -> Any:
        def hook(_: nn.Module, args: Any) -> None:
            calls[path] += 1
            origin = uses.origins.get(id(args[0])) if args else None
            if origin is not None and origin.axis == 1:
                pairs.append(_Pair(origin.layer, path, origin.way))

        return hook

    handles = []
    for path, part in module.named_modules():
        kind = kind_of(part)
        if isinstance(part, BatchNorm):
            if part.track_running_stats and part.running_mean is not None:
                handles.append(part.register_forward_pre_hook(before_norm(path)))
        elif kind in _CHANNELS:
            handles.append(part.register_forward_hook(after_layer(path, kind)))
    try:
        with torch.inference_mode(), uses:
            out = graph(*inputs)
        uses.count(out)  # what the model gives away has a reader outside
    finally:
        for handle in handles:
            handle.remove()
    tied = _tied(module)
    return [
        (pair.layer, pair.norm)
        for pair in pairs
        if all(uses.counts[tensor] == 1 for tensor in pair.way)
        and calls[pair.layer] == calls[pair.norm] == 1
        and pair.layer not in tied
    ]


def _tied(module: nn.Module) -> set[str]:
    """Layers that share a parameter with another module: changing one would change both."""
    owners: dict[int, list[str]] = {}
    for path, part in module.named_modules():
        for parameter in part.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(path)
    return {path for paths in owners.values() if len(paths) > 1 for path in paths}


@torch.no_grad()
def fold_batch_norms(module: nn.Module, graph: nn.Module, inputs: Sequence[Tensor]) -> list[tuple[str, str]]:
    """Fold every batch norm into the layer before it, in place; the pairs that were folded.

    ``y = gamma * (w x + b - mean) / sqrt(var + eps) + beta`` becomes one layer with scaled weight and shifted bias
    (Jacob et al., arXiv 1712.05877, section 3.2); the norm itself becomes the identity.
    """
    pairs = batch_norm_pairs(module, graph, inputs)
    for layer_path, norm_path in pairs:
        fold_pair(module, layer_path, norm_path)
    return pairs


@torch.no_grad()
def fold_pair(module: nn.Module, layer_path: str, norm_path: str) -> None:
    """Fold one batch norm into the layer that it reads, in place."""
    layer: Any = module.get_submodule(layer_path)
    norm: Any = module.get_submodule(norm_path)
    gain = torch.rsqrt(norm.running_var + norm.eps) * (norm.weight if norm.affine else 1.0)
    shift = (norm.bias if norm.affine else 0.0) - norm.running_mean * gain
    # New storage: whoever wants the model back as it was holds the old. A quantizer may be attached already.
    weight = layer.parametrizations.weight.original if is_parametrized(layer, "weight") else layer.weight
    weight.data = scaled(weight, gain, KINDS[str(kind_of(layer))].channel_axis, layer)
    bias = shift + (layer.bias * gain if layer.bias is not None else 0.0)
    layer.bias = nn.Parameter(bias, requires_grad=weight.requires_grad)
    replace_module(module, norm, nn.Identity())


def scaled(weight: Tensor, gain: Tensor, axis: int, layer: Any) -> Tensor:
    """``weight`` with each output channel multiplied by its ``gain``."""
    rest = [1] * (weight.ndim - 2)
    if axis == 0:
        return weight * gain.reshape(-1, 1, *rest)
    # A transposed convolution keeps [inputs, outputs / groups], the inputs of the first group first.
    groups = layer.groups
    split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return (split * gain.reshape(groups, 1, -1, *rest)).reshape(weight.shape)


def replace_module(module: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` is registered; a module may have several names."""
    for part in list(module.modules()):
        for name, child in part.named_children():
            if child is old:
                setattr(part, name, new)
