"""Training of Hugging Face models: loss and gradients are transformers' own, dropout and SpecAugment included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_hf
import torch
import transformers
from torch import Tensor
from torch.nn.functional import ctc_loss, log_softmax

from quantasr import load_model
from quantasr.sources import CtcModel, rebuild_model
from quantasr.speech.frontend import collate

SPEECH = tiny_hf.speech(0.7, 0.5, 0.31)
LABELS = [[6, 7, 8, 4, 9], [10, 11, 5], [12, 12]]

# Where a batch of transformers reads into the padding, so that its own gradients differ from ours.
LEAKY = {"wav2vec2-adapter", "wavlm-adapter", "bert-adapter", "data2vec", "hubert-batch-norm-mask"}


def _batch(model: CtcModel, waves: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    features, lengths = collate([model.frontend(wave) for wave in waves], model.frontend.padding_value)
    return torch.from_numpy(features), torch.from_numpy(lengths)


def _seed() -> None:
    torch.manual_seed(3)
    np.random.seed(3)


def _loss(logprobs: Tensor, counts: Tensor) -> Tensor:
    """As transformers computes it."""
    labels = LABELS[: len(counts)]
    targets = torch.tensor([token for row in labels for token in row])
    sizes = torch.tensor([len(row) for row in labels])
    return ctc_loss(logprobs.transpose(0, 1), targets, counts, sizes, blank=0, reduction="sum", zero_infinity=True)


def _original(folder: Path) -> Any:
    # Other implementations of attention draw their dropout in another order.
    return transformers.AutoModelForCTC.from_pretrained(
        folder, attn_implementation="eager", ctc_loss_reduction="sum", ctc_zero_infinity=True
    )


def _gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def _compare(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys() and len(mine) > 10
    scale = max(float(gradient.abs().max()) for gradient in theirs.values())
    assert scale > 0
    for name, gradient in theirs.items():
        torch.testing.assert_close(
            mine[name], gradient, rtol=1e-3, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def _check(
    folder: Path, waves: list[np.ndarray], *, rewritten: bool = False, masking: tuple[float, int] | None = None
) -> None:
    mine: Any = load_model(folder)
    if masking is not None:
        assert mine.set_time_masking(*masking)
    if rewritten:
        mine.make_exportable()
    features, lengths = _batch(mine, waves)
    mine.module.train()
    _seed()
    logprobs, counts, nothing = mine.train_outputs(features, lengths)
    assert nothing is None
    loss = _loss(logprobs, counts)
    loss.backward()

    original = _original(folder).train()
    if masking is not None:
        original.config.mask_time_prob, original.config.mask_time_length = masking
    name = "input_features" if features.ndim == 3 else "input_values"
    _seed()
    if mine.padded_batches:
        mask = (torch.arange(features.shape[1])[None] < lengths[:, None]).long()
        labels = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row) for row in LABELS[: len(waves)]], True, padding_value=-100
        )
        theirs = original(**{name: features}, attention_mask=mask, labels=labels).loss
    else:  # transformers counts the padding as frames of speech
        theirs = _loss(log_softmax(original(**{name: features}).logits, -1), counts)
    torch.testing.assert_close(loss, theirs, rtol=1e-4, atol=1e-4)
    theirs.backward()
    _compare(_gradients(mine.module), _gradients(original))
    assert mine.module.training


@pytest.mark.parametrize("rewritten", [False, True], ids=["loaded", "rewritten"])
@pytest.mark.parametrize("name", tiny_hf.VARIANTS)
def test_loss_and_gradients_are_transformers_own(
    name: str, rewritten: bool, tiny_hf_folder: Callable[[str], Path]
) -> None:
    alike = [SPEECH[0], SPEECH[0][::-1].copy(), SPEECH[0] ** 2]
    # PyTorch's fused attention leaves the recordings side by side in memory, so that dropout meets them in turns.
    fused = rewritten and name.startswith("wavlm")
    waves = SPEECH[:1] if fused else alike if name in LEAKY else SPEECH
    _check(tiny_hf_folder(name), waves, rewritten=rewritten)


@pytest.mark.parametrize("name", ["wav2vec2-base", "wav2vec2-large", "bert-rotary"])
def test_time_masking_is_transformers_own(name: str, tmp_path: Path) -> None:
    """It hides what numpy's generator says, and its embedding learns; the checkpoint had it switched off."""
    folder = tiny_hf.save(name, tmp_path)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.apply_spec_augment = True
    config.save_pretrained(folder)
    _check(folder, SPEECH, masking=(0.3, 3))


def test_time_masking_of_short_recordings_and_without_an_embedding(tmp_path: Path) -> None:
    tiny_hf.save("wav2vec2-large", tmp_path, mask_time_prob=0.0)
    model: Any = load_model(tmp_path)
    assert not hasattr(model.module.base_model, "masked_spec_embed")
    features, lengths = _batch(model, SPEECH)
    model.module.train()
    assert model.set_time_masking(0.5, 10)
    again = _rebuilt(model, tmp_path / "native")
    again.module.load_state_dict(model.module.state_dict())
    _seed()
    logprobs, *_ = model.train_outputs(features, lengths)
    logprobs.sum().backward()
    assert model.module.base_model.masked_spec_embed.grad.abs().max() > 0
    model.train_outputs(features[:, :200], lengths.clamp(max=200))  # 4 frames, where transformers raises
    assert model.set_time_masking(0.0, 10)
    found = []
    for seed in (1, 2):
        torch.manual_seed(0)
        np.random.seed(seed)
        found.append(model.train_outputs(features, lengths)[0])
    torch.testing.assert_close(*found, rtol=0, atol=0)


def _rebuilt(model: Any, folder: Path) -> Any:
    folder.mkdir()
    for name, content in model.files.items():
        (folder / name).write_bytes(content)
    return rebuild_model("huggingface", folder)


def test_an_embedding_that_a_checkpoint_lacks_is_the_same_every_time(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny_hf.save("wav2vec2-large", tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["wav2vec2.masked_spec_embed"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    models: list[Any] = [load_model(folder) for _ in range(2)]
    torch.testing.assert_close(*(model.module.wav2vec2.masked_spec_embed for model in models), rtol=0, atol=0)
