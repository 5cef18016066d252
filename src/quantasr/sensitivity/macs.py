"""How much of a model's arithmetic each layer does."""

from __future__ import annotations

from collections import Counter

import torch

from quantasr.engines.torch_native.engine import float_products
from quantasr.sources.asr_model import AsrModel, evaluating
from quantasr.speech.transcript import Waveform


def count_macs(model: AsrModel, wave: Waveform) -> Counter[str]:
    """Multiply-accumulates of every module that multiplies itself, by its path, for one wave ``[time]``.

    Products of two activations, as in attention, count for the module that they happen in.
    """
    found: Counter[str] = Counter()
    # Not inference_mode, in which PyTorch does not show its convolutions to whoever counts them.
    with evaluating(model.module), torch.no_grad(), float_products(model.module) as products:
        model.run(wave)
    for op in products:
        found[op.name] += op.macs
    return found
