"""Models with quantizers attached and in their float phase train as they did without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_hf
import torch
from torch import Tensor

from quantasr import load_model
from quantasr.quantize.prepare import prepare
from quantasr.recipes.builtin import builtin_recipe
from quantasr.speech.frontend import collate

SPEECH = tiny_hf.speech(0.7, 0.5, 0.31)


def _gradients(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    features, lengths = collate([model.frontend(wave) for wave in SPEECH], model.frontend.padding_value)
    model.module.train()
    for part in model.module.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.eval()  # which is folded
        if isinstance(part, torch.nn.modules.dropout._DropoutNd):
            part.p = 0.0  # a folded norm leaves another layout in memory, by which frames are drawn
    torch.manual_seed(3)
    np.random.seed(3)
    logprobs, counts, _ = model.train_outputs(torch.from_numpy(features), torch.from_numpy(lengths))
    rows = torch.cat([row[:count] for row, count in zip(logprobs, counts.tolist(), strict=True)])
    (rows * torch.linspace(-1, 1, rows.shape[1])).sum().backward()
    return rows.detach(), {
        name.replace(".parametrizations.weight.original", ".weight"): parameter.grad
        for name, parameter in model.module.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize(
    "name",
    [
        *("wav2vec2-base", "wav2vec2-large", "wavlm-large", "bert-relative-key", "bert-rotary"),
        *("quartznet", "citrinet", "conformer", "fastconformer-local", "sb-wav2vec2", "sb-crdnn"),
    ],
)
def test_quantizers_in_their_float_phase_change_nothing(name: str, tiny_model: Callable[[str], Path]) -> None:
    original: Any = load_model(tiny_model(name), trust=True)
    original.make_exportable()
    rows, expected = _gradients(original)
    model: Any = load_model(tiny_model(name), trust=True)
    folded = tuple(f"{layer}." for layer, _ in prepare(model, builtin_recipe(model.family)).folded)
    mine, gradients = _gradients(model)
    torch.testing.assert_close(mine, rows, rtol=1e-3, atol=1e-3)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values())
    # With a norm folded into it a layer's weight is another one.
    shared = {key for key in gradients if key in expected and not key.startswith(folded)}
    assert len(shared) > (1 if folded else 0.9 * len(expected))
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for key in shared:
        away = float((gradients[key] - expected[key]).norm())
        assert away < 2e-3 * (float(expected[key].norm()) + 1e-3 * scale), key
