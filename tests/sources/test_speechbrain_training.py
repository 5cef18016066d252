"""Training of SpeechBrain models: log-probs and gradients are those of SpeechBrain's own encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_hf
import tiny_speechbrain
import torch
from torch import Tensor
from torch.nn.functional import ctc_loss

from quantasr import load_model
from quantasr.speech.frontend import collate

SPEECH = tiny_hf.speech(0.6, 0.5, 0.31)
LABELS = torch.tensor([[6, 7, 4], [10, 11, 5], [12, 12, 3]])


def _features(model: Any, waves: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    features, lengths = collate([model.frontend(wave) for wave in waves], model.frontend.padding_value)
    return torch.from_numpy(features), torch.from_numpy(lengths)


def _seed() -> None:
    torch.manual_seed(3)
    np.random.seed(3)


def _loss(logprobs: Tensor, counts: Tensor) -> Tensor:
    labels = LABELS[: len(counts)]
    sizes = torch.full((len(labels),), labels.shape[1])
    return ctc_loss(logprobs.transpose(0, 1), labels, counts, sizes, 0, reduction="sum", zero_infinity=True)


def _encode(original: Any, waves: list[np.ndarray], features: Tensor) -> Tensor:
    encoder = original.mods["encoder"]
    if hasattr(encoder, "wav2vec2"):
        encoder.wav2vec2.freeze = False  # which is only said of inference
        encoder.wav2vec2.model.set_attn_implementation("eager")
        found: Tensor = encoder(torch.from_numpy(np.stack(waves)), torch.ones(len(waves)))
        return found
    # What is before is the frontend; its statistics stay as they are.
    found = encoder.log_softmax(encoder.ctc_lin(encoder.model(features)))
    return found


@pytest.mark.parametrize("rewritten", [False, True], ids=["loaded", "rewritten"])
@pytest.mark.parametrize("name", tiny_speechbrain.VARIANTS)
def test_loss_and_gradients_are_speechbrains_own(
    name: str, rewritten: bool, tiny_speechbrain_folder: Callable[[str], Path]
) -> None:
    folder = tiny_speechbrain_folder(name)
    mine: Any = load_model(folder, trust=True)
    lobe = "crdnn" not in name
    if rewritten:
        mine.make_exportable()
    elif lobe:
        mine.module["encoder"].wav2vec2.model.set_attn_implementation("eager")  # which draws in another order
    # SpeechBrain's lobes normalise a wave with its padding, and ours without.
    waves = [SPEECH[0], SPEECH[0][::-1].copy(), SPEECH[0] ** 2] if lobe else SPEECH
    if name == "sb-wavlm" and rewritten:
        waves = waves[:1]  # PyTorch's fused attention leaves recordings side by side: dropout meets them in turns
    features, lengths = _features(mine, waves)
    mine.module.train()
    _seed()
    logprobs, counts, _ = mine.train_outputs(features, lengths)
    loss = _loss(logprobs, counts)
    loss.backward()

    original = tiny_speechbrain.original(folder)
    original.mods.train().requires_grad_(True)
    _seed()
    theirs = _loss(_encode(original, waves, features), counts)
    torch.testing.assert_close(loss, theirs, rtol=1e-4, atol=1e-4)
    theirs.backward()
    gradients = {key: p.grad for key, p in mine.module.named_parameters() if p.grad is not None}
    expected = {key: p.grad for key, p in original.mods.named_parameters() if p.grad is not None}
    assert gradients.keys() == expected.keys() and len(expected) > 10
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for key, gradient in expected.items():
        away = float((gradients[key] - gradient).norm())
        assert away < 1e-3 * (float(gradient.norm()) + 1e-3 * scale), key
