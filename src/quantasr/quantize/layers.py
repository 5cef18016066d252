"""The layers that can be quantized: one table from a recipe's words to PyTorch's classes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from quantasr.recipes.recipe import LAYER_KINDS


@dataclass(frozen=True)
class LayerKind:
    """A kind of layer: the class that its subclasses share, and the axis of its weight that is the output channel."""

    module: type[nn.Module]
    channel_axis: int
    has_input: bool = True  # an embedding's input is indices: there is nothing to quantize


KINDS: dict[str, LayerKind] = {
    "linear": LayerKind(nn.Linear, 0),
    "conv1d": LayerKind(nn.Conv1d, 0),
    "conv2d": LayerKind(nn.Conv2d, 0),
    "conv3d": LayerKind(nn.Conv3d, 0),
    "conv_transpose1d": LayerKind(nn.ConvTranspose1d, 1),
    "embedding": LayerKind(nn.Embedding, 0, has_input=False),
}
assert tuple(KINDS) == LAYER_KINDS


def kind_of(module: nn.Module) -> str | None:
    """The kind of a module, by ``isinstance``, so that a framework's subclasses count; None when it has none."""
    return next((name for name, kind in KINDS.items() if isinstance(module, kind.module)), None)


def find_layers(module: nn.Module) -> dict[str, tuple[str, nn.Module]]:
    """All layers of a kind in :data:`KINDS`: ``{path: (kind, module)}``, in the order of the model."""
    found = {}
    for path, part in module.named_modules():
        kind = kind_of(part)
        if kind is not None:
            found[path] = (kind, part)
    return found
