"""Batch norms that are trained while the layer before them rounds the weight that inference will have.

In inference a batch norm is folded into its layer, so what is rounded is the weight times the norm's gain. In training
with the statistics of each batch the same product is rounded, and the gain taken out again behind the layer (Jacob et
al., arXiv 1712.05877, section 3.2; Krishnamoorthi, arXiv 1806.08342, section 3.2.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from quantasr.quantize.fold import batch_norm_pairs, fold_pair, replace_module, scaled
from quantasr.quantize.layers import KINDS, kind_of

_LEAST_GAIN = 1e-6


class LiveNorm(nn.Module):
    """A batch norm behind a layer whose weight is multiplied by the norm's gain already."""

    def __init__(self, norm: Any, layer: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.frozen = False
        self._layer: Any
        self.__dict__["_layer"] = layer  # no child: the layer keeps its one path

    def gain(self) -> Tensor:
        """``[channels]``: what folding multiplies the weight by; never zero."""
        norm = self.norm
        gain: Tensor = torch.rsqrt(norm.running_var + norm.eps)
        if norm.affine:
            gain = gain * norm.weight
        return torch.where(gain.abs() < _LEAST_GAIN, torch.full_like(gain, _LEAST_GAIN), gain)

    def forward(self, x: Tensor) -> Tensor:
        norm, layer = self.norm, self._layer
        gain = self.gain()
        bias = torch.zeros_like(gain) if layer.bias is None else layer.bias
        shape = (-1, *[1] * (x.ndim - 2))
        if self.training and not self.frozen:
            plain = (x - bias.reshape(shape)) / gain.reshape(shape) + bias.reshape(shape)
            found: Tensor = norm(plain)
            return found
        shift: Tensor = (norm.bias if norm.affine else 0.0) + (bias - norm.running_mean) * gain - bias
        return x + shift.reshape(shape)


class _Gain(nn.Module):
    """Parametrization: the weight times the gain of the norm behind it."""

    def __init__(self, norm: LiveNorm, axis: int, layer: nn.Module) -> None:
        super().__init__()
        self._norm: Any
        self._layer: Any
        self.__dict__ |= {"_norm": norm, "_layer": layer}  # no children: each has a path of its own
        self._axis = axis

    def forward(self, weight: Tensor) -> Tensor:
        return scaled(weight, self._norm.gain(), self._axis, self._layer)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Assigning to the weight stores it as it is."""
        return weight


class LiveNorms:
    """The batch norms of a model that are trained with the statistics of each batch: ``(layer, norm, module)``."""

    def __init__(self, pairs: Sequence[tuple[str, str, LiveNorm]] = ()) -> None:
        self._pairs = list(pairs)

    @classmethod
    def attach(cls, module: nn.Module, graph: nn.Module, inputs: Sequence[Tensor]) -> LiveNorms:
        """Make every batch norm that could be folded a live one; before quantizers are attached."""
        found = []
        for layer_path, norm_path in batch_norm_pairs(module, graph, inputs):
            layer, norm = module.get_submodule(layer_path), module.get_submodule(norm_path)
            live = LiveNorm(norm, layer)
            axis = KINDS[str(kind_of(layer))].channel_axis
            replace_module(module, norm, live)
            parametrize.register_parametrization(layer, "weight", _Gain(live, axis, layer), unsafe=True)
            found.append((layer_path, norm_path, live))
        return cls(found)

    def holds(self, norm: nn.Module) -> bool:
        """Whether a batch norm is one of them."""
        return any(live.norm is norm for _, _, live in self._pairs)

    def freeze(self) -> None:
        """From now on the statistics are those so far, as in inference."""
        for _, _, live in self._pairs:
            live.frozen = True

    @contextmanager
    def as_in_inference(self) -> Iterator[None]:
        """Use the statistics so far while the block lasts."""
        before = [live.frozen for _, _, live in self._pairs]
        for _, _, live in self._pairs:
            live.frozen = True
        try:
            yield
        finally:
            for (_, _, live), frozen in zip(self._pairs, before, strict=True):
                live.frozen = frozen

    @torch.no_grad()
    def fold(self, module: nn.Module) -> list[tuple[str, str]]:
        """Fold all norms into their layers, in place, and be empty; the pairs that were folded."""
        folded = []
        for layer_path, norm_path, live in self._pairs:
            layer = module.get_submodule(layer_path)
            _remove_gain(layer)
            replace_module(module, live, live.norm)
            fold_pair(module, layer_path, norm_path)
            folded.append((layer_path, norm_path))
        self._pairs = []
        return folded


def _remove_gain(layer: Any) -> None:
    """Take the gain out of a layer's parametrizations, and leave the others."""
    steps = layer.parametrizations.weight
    if len(steps) == 1:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        return
    rest = list(steps)[1:]
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    for step in rest:
        parametrize.register_parametrization(layer, "weight", step, unsafe=True)
