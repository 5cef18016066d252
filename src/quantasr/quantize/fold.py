"""Make weights plain before they are quantized: weight norm computed once, batch norm folded into its layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from quantasr.quantize.layers import KINDS, find_layers, kind_of

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def bake_parametrizations(module: nn.Module) -> list[str]:
    """Replace every parametrized weight (weight norm, spectral norm) of a layer by its value; the paths of those.

    What is quantized is then the weight that the layer really multiplies by. Both of PyTorch's weight norms are
    known: the parametrization, and the older forward hook.
    """
    baked = []
    for path, (_, layer) in find_layers(module).items():
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
            baked.append(path)
        elif hasattr(layer, "weight_g") and hasattr(layer, "weight_v"):
            nn.utils.remove_weight_norm(layer)
            baked.append(path)
    return baked


class _Uses(TorchFunctionMode):
    """Counts how many operations read each tensor that a foldable layer gave."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[int, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for leaf in tree_leaves((args, kwargs)):
            # Reading .shape and the like is no use of the values.
            if isinstance(leaf, Tensor) and id(leaf) in self.counts and not getattr(func, "__name__", "") == "__get__":
                self.counts[id(leaf)] += 1
        return func(*args, **kwargs)


def batch_norm_pairs(module: nn.Module, graph: nn.Module, inputs: Sequence[Tensor]) -> list[tuple[str, str]]:
    """Paths ``(layer, batch norm)`` where the norm reads exactly what the layer gave, and nothing else does.

    Found by running ``graph(*inputs)`` once and watching which tensor goes where, so no assumption is made about
    how the model's ``forward`` is written.
    """
    produced: dict[int, tuple[str, Tensor]] = {}
    calls: dict[str, int] = {}
    pairs: list[tuple[str, str, int]] = []
    uses = _Uses()

    def after_layer(path: str) -> Any:
        def hook(_: nn.Module, __: Any, out: Any) -> None:
            calls[path] = calls.get(path, 0) + 1
            if isinstance(out, Tensor):
                produced[id(out)] = (path, out)  # keeping the tensor keeps its id from being used again
                uses.counts[id(out)] = 0

        return hook

    def before_norm(path: str) -> Any:
        def hook(_: nn.Module, args: Any) -> None:
            if args and id(args[0]) in produced:
                pairs.append((produced[id(args[0])][0], path, id(args[0])))

        return hook

    handles = []
    for path, part in module.named_modules():
        if isinstance(part, BatchNorm):
            if part.track_running_stats and part.running_mean is not None:
                handles.append(part.register_forward_pre_hook(before_norm(path)))
        elif kind_of(part) not in (None, "embedding"):
            handles.append(part.register_forward_hook(after_layer(path)))
    try:
        with torch.inference_mode(), uses:
            graph(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [(layer, norm) for layer, norm, key in pairs if uses.counts[key] == 1 and calls[layer] == 1]


@torch.no_grad()
def fold_batch_norms(module: nn.Module, graph: nn.Module, inputs: Sequence[Tensor]) -> list[tuple[str, str]]:
    """Fold every batch norm into the layer before it, in place; the pairs that were folded.

    ``y = gamma * (w x + b - mean) / sqrt(var + eps) + beta`` becomes one layer with scaled weight and shifted bias
    (Jacob et al., arXiv 1712.05877, section 3.2); the norm itself becomes the identity.
    """
    pairs = batch_norm_pairs(module, graph, inputs)
    for layer_path, norm_path in pairs:
        layer: Any = module.get_submodule(layer_path)
        norm: Any = module.get_submodule(norm_path)
        gain = torch.rsqrt(norm.running_var + norm.eps) * (norm.weight if norm.affine else 1.0)
        shift = (norm.bias if norm.affine else 0.0) - norm.running_mean * gain
        axis = KINDS[str(kind_of(layer))].channel_axis
        groups = getattr(layer, "groups", 1)
        rows = gain.reshape([-1 if d == axis else 1 for d in range(layer.weight.ndim)])
        if axis == 1 and groups > 1:
            # A grouped transposed convolution keeps its output channels as [inputs, outputs / groups].
            rows = gain.reshape(groups, 1, -1, *[1] * (layer.weight.ndim - 2)).repeat_interleave(
                layer.weight.shape[0] // groups, 1
            )
            layer.weight.copy_(
                (layer.weight.reshape(rows.shape[0], rows.shape[1], *layer.weight.shape[1:]) * rows).reshape(
                    layer.weight.shape
                )
            )
        else:
            layer.weight.copy_(layer.weight * rows)
        bias = shift + (layer.bias * gain if layer.bias is not None else 0.0)
        layer.bias = nn.Parameter(bias, requires_grad=layer.weight.requires_grad)
        parent, _, name = norm_path.rpartition(".")
        setattr(module.get_submodule(parent), name, nn.Identity())
    return pairs
