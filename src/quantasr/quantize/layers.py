"""The layers that can be quantized: one table from a recipe's words to PyTorch's classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from quantasr.recipes.recipe import LAYER_KINDS


@dataclass(frozen=True)
class LayerKind:
    """A kind of layer: the class that its subclasses share, and the axis of its weight that is the output channel.

    ``depthwise`` kinds are convolutions in which each channel has a kernel of its own. They do little arithmetic for
    the memory that they move, so int8 does not gain there what it gains in other convolutions.
    """

    module: type[nn.Module]
    channel_axis: int
    has_input: bool = True  # an embedding's input is indices: there is nothing to quantize
    depthwise: bool = False
    native_only: bool = False  # no graph: only PyTorch's own engine quantizes it

    def includes(self, module: nn.Module) -> bool:
        """Whether ``module`` is of this kind."""
        if not isinstance(module, self.module):
            return False
        conv: Any = module
        return not self.depthwise or 1 < conv.groups == conv.in_channels


KINDS: dict[str, LayerKind] = {
    "linear": LayerKind(nn.Linear, 0),
    "depthwise_conv1d": LayerKind(nn.Conv1d, 0, depthwise=True),
    "conv1d": LayerKind(nn.Conv1d, 0),
    "depthwise_conv2d": LayerKind(nn.Conv2d, 0, depthwise=True),
    "conv2d": LayerKind(nn.Conv2d, 0),
    "conv3d": LayerKind(nn.Conv3d, 0),
    "conv_transpose1d": LayerKind(nn.ConvTranspose1d, 1),
    "embedding": LayerKind(nn.Embedding, 0, has_input=False),
    "embedding_bag": LayerKind(nn.EmbeddingBag, 0, has_input=False, native_only=True),
    "lstm": LayerKind(nn.LSTM, 0, native_only=True),
    "gru": LayerKind(nn.GRU, 0, native_only=True),
    "lstm_cell": LayerKind(nn.LSTMCell, 0, native_only=True),
    "gru_cell": LayerKind(nn.GRUCell, 0, native_only=True),
    "rnn_cell": LayerKind(nn.RNNCell, 0, native_only=True),
}
assert tuple(KINDS) == LAYER_KINDS


def kind_of(module: nn.Module) -> str | None:
    """The first kind that includes a module, so that a framework's subclasses count; None when there is none."""
    return next((name for name, kind in KINDS.items() if kind.includes(module)), None)


def find_layers(module: nn.Module) -> dict[str, tuple[str, nn.Module]]:
    """All layers of a kind in :data:`KINDS`: ``{path: (kind, module)}``, in the order of the model."""
    found = {}
    for path, part in module.named_modules():
        kind = kind_of(part)
        if kind is not None:
            found[path] = (kind, part)
    return found


def module_names(module: nn.Module) -> dict[str, str]:
    """All modules: ``{path: name of the class}``."""
    return {path: type(part).__name__ for path, part in module.named_modules() if path}
