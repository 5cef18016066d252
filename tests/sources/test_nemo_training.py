"""Training of NeMo models: log-probs and gradients are those of NeMo's own encoder and decoder, dropout included."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_nemo
import torch
from torch import Tensor
from torch.nn.functional import ctc_loss

from quantasr import load_model
from quantasr.speech.frontend import collate

SPEECH = tiny_nemo.speech(1.4, 1.1, 0.8)
LABELS = torch.tensor([[6, 7, 4], [10, 11, 5], [12, 12, 3]])

VARIANTS = (
    *("quartznet", "jasper", "citrinet", "citrinet-context", "quartznet-rarities"),
    *("conformer", "conformer-abs-pos", "conformer-layer-norm", "conformer-reduction", "conformer-limited"),
    *("fastconformer", "fastconformer-local", "fastconformer-lookaheads", "hybrid"),
)
# What is drawn is another thing: chunks of local attention, a window of the squeeze, dropout of pooled frames.
DRAWN_OTHERWISE = {"fastconformer-local", "citrinet-context", "conformer-reduction"}
# Batch norms after batch norms amplify what floats round.
IN_DOUBLE = {"quartznet", "jasper", "quartznet-rarities"}


def _features(model: Any) -> tuple[Tensor, Tensor]:
    features, lengths = collate([model.frontend(wave) for wave in SPEECH], model.frontend.padding_value)
    return torch.from_numpy(features), torch.from_numpy(lengths)


def _seed() -> None:
    torch.manual_seed(3)
    random.seed(3)


def _loss(logprobs: Tensor, counts: Tensor) -> Tensor:
    sizes = torch.full((len(LABELS),), LABELS.shape[1])
    blank = logprobs.shape[-1] - 1
    return ctc_loss(logprobs.transpose(0, 1), LABELS, counts, sizes, blank, reduction="sum", zero_infinity=True)


def _original(file: Path, features: Tensor, lengths: Tensor) -> tuple[Any, Tensor, Tensor]:
    original = tiny_nemo.original(file).train().to(features.dtype)
    _seed()
    encoded, counts = original.encoder(audio_signal=features.transpose(1, 2), length=lengths)
    head = original.ctc_decoder if hasattr(original, "ctc_decoder") else original.decoder
    return original, head(encoder_output=encoded), counts


def _gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("rewritten", [False, True], ids=["loaded", "rewritten"])
@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_gradients_are_nemos_own(name: str, rewritten: bool, tiny_nemo_file: Callable[[str], Path]) -> None:
    file = tiny_nemo_file(name)
    mine: Any = load_model(tiny_nemo.ctc(file))
    if rewritten:
        mine.make_exportable()
    features, lengths = _features(mine)
    if name in IN_DOUBLE:
        mine.module.double()
        features = features.double()
    mine.module.train()
    _seed()
    logprobs, counts, _ = mine.train_outputs(features, lengths)
    assert counts.tolist() == mine.frame_counts(lengths).tolist()
    loss = _loss(logprobs, counts)
    loss.backward()
    gradients = _gradients(mine.module)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values())
    if rewritten and name in DRAWN_OTHERWISE:
        return
    original, theirs, their_counts = _original(file, features, lengths)
    assert counts.tolist() == their_counts.tolist()
    their_loss = _loss(theirs, their_counts)
    torch.testing.assert_close(loss, their_loss, rtol=1e-4, atol=1e-4)
    their_loss.backward()
    expected = {key: value for key, value in _gradients(original).items() if key in gradients}
    assert gradients.keys() == expected.keys() == {name for name, _ in mine.module.named_parameters()}
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for key, gradient in expected.items():
        away = float((gradients[key] - gradient).norm())
        assert away < (1e-6 if name in IN_DOUBLE else 5e-3) * (float(gradient.norm()) + 1e-3 * scale), key
    for key, buffer in original.state_dict().items():
        if "running_" in key and key in mine.module.state_dict():
            torch.testing.assert_close(mine.module.state_dict()[key], buffer, rtol=1e-4, atol=1e-5)
