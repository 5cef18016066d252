"""Which part of a recogniser that decodes step by step a layer belongs to: the one whose graph calls it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from quantasr.quantize.layers import find_layers
from quantasr.sources.asr_model import AsrModel, evaluating
from quantasr.sources.parts_model import PartsModel, TorchPart


def parts_of(model: AsrModel) -> dict[str, str]:
    """The part of each layer, by its path: the first whose graph calls it; none for models that are one graph.

    Paths say less: Whisper projects what the encoder heard in layers of ``model.decoder``, but once for each recording,
    in the encoder's graph.
    """
    if not isinstance(model, PartsModel):
        return {}
    found: dict[str, str] = {}
    for name, part in model.parts().items():
        for path in _called(model, part):
            found.setdefault(path, name)
    return found


def _called(model: AsrModel, part: TorchPart) -> list[str]:
    """The layers that a part's graph calls."""
    called: list[str] = []

    def note(path: str, *_: Any) -> None:
        called.append(path)

    layers = find_layers(model.module).items()
    hooks = [layer.register_forward_pre_hook(partial(note, path)) for path, (_, layer) in layers]
    try:
        with evaluating(model.module), torch.no_grad():
            part.graph(*part.example())
    finally:
        for hook in hooks:
            hook.remove()
    return called
