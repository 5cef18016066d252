"""How much of a model's arithmetic each layer does."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from quantasr.engines.torch_native.dynamic import RECURRENT
from quantasr.engines.torch_native.engine import float_products
from quantasr.sources.asr_model import AsrModel, evaluating
from quantasr.speech.transcript import Waveform


def count_macs(model: AsrModel, wave: Waveform) -> Counter[str]:
    """Multiply-accumulates of every module that multiplies itself, by its path, for one wave.

    Products of two activations, as in attention, count for the module that they happen in.
    """
    found: Counter[str] = Counter()
    inside: Counter[str] = Counter()

    def recurrent(path: str, layer: nn.Module) -> Any:
        def hook(_: nn.Module, args: Any, __: Any) -> None:
            data: Tensor = args[0] if isinstance(args[0], Tensor) else args[0].data
            weights = sum(p.numel() for name, p in layer.named_parameters() if name.startswith("weight_"))
            inside[path] += prod(data.shape[:-1]) * weights

        return hook

    layers: dict[str, nn.Module] = dict(model.module.named_modules())
    hooks = [
        layer.register_forward_hook(recurrent(path, layer))
        for path, layer in layers.items()
        if any(isinstance(layer, kind) for kind in RECURRENT)
    ]
    try:
        # Not inference_mode, in which PyTorch does not show its convolutions to whoever counts them.
        with evaluating(model.module), torch.no_grad(), float_products(model.module) as products:
            model.run(wave)
    finally:
        for hook in hooks:
            hook.remove()
    for op in products:
        found[op.name] += op.macs
    # PyTorch shows some of what happens in recurrent layers as products, and some not.
    for path, macs in inside.items():
        found[path] = macs
    return found
