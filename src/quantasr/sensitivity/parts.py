"""Which part of a recogniser that decodes step by step a layer belongs to: the one whose graph calls it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from quantasr.quantize.layers import find_layers
from quantasr.sources.asr_model import AsrModel, evaluating
from quantasr.sources.parts_model import PartsModel, TorchPart


def parts_of(model: AsrModel) -> dict[str, str]:
    """The part of each layer, by its path: the first whose graph calls it; none for models that are one graph.

    Paths say less: Whisper projects what the encoder heard in layers of ``model.decoder``, but once for each recording,
    in the encoder's graph. Of what none calls, as an embedding whose weight alone is read, the nearest layers decide.
    """
    if not isinstance(model, PartsModel):
        return {}
    found: dict[str, str] = {}
    for name, part in model.parts().items():
        for path in _called(model, part):
            found.setdefault(path, name)
    return {path: found[path] if path in found else _nearest(path, found) for path in find_layers(model.module)}


def _nearest(path: str, found: Mapping[str, str]) -> str:
    """The part that most layers belong to of those that share the longest beginning of their paths with ``path``."""
    names = path.split(".")
    for length in range(len(names) - 1, 0, -1):
        above = ".".join(names[:length]) + "."
        if near := Counter(part for other, part in found.items() if other.startswith(above)):
            return near.most_common(1)[0][0]
    return names[0]


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
