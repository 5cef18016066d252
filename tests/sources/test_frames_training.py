"""How many frames a training batch gives, of every source: counted without running, as when each is run alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_hf
import tiny_nemo
import tiny_speechbrain
import torch
from tiny_nets import asr_model

from quantasr import load_model
from quantasr.speech.frontend import collate

VARIANTS = [
    *("wav2vec2-base", "wav2vec2-adapter", "wavlm-large", "bert-adapter"),
    *("quartznet", "citrinet", "conformer-stacking", "conformer-reduction", "conformer-reduction-striding"),
    *("conformer-full-rate", "fastconformer", "fastconformer-streaming"),
    *("sb-wav2vec2-large", "sb-crdnn", "sb-crdnn-gru"),
]


@pytest.mark.parametrize("name", VARIANTS)
def test_counts_are_those_of_each_recording_alone(name: str, tiny_model: Callable[[str], Path]) -> None:
    assert name in {*tiny_hf.VARIANTS, *tiny_nemo.VARIANTS, *tiny_speechbrain.VARIANTS}
    model: Any = load_model(tiny_model(name), trust=True)
    (wave,) = tiny_hf.speech(1.0)
    samples = [model.min_samples, *np.random.default_rng(0).integers(model.min_samples, len(wave), 7)]
    alone = []
    for count in samples:
        (found,) = model.transcriber(chunk_seconds=0).logprobs([wave[:count]])
        alone.append(len(found))
    features, lengths = collate([model.frontend(wave[:count]) for count in samples], model.frontend.padding_value)
    batch = (torch.from_numpy(features), torch.from_numpy(lengths))
    assert model.frame_counts(batch[1]).tolist() == alone
    with torch.no_grad():
        logprobs, counts, _ = model.train_outputs(*batch)
    assert counts.tolist() == alone and logprobs.shape[1] >= max(alone)
    assert counts.dtype == torch.int64
    assert not bool((model.frame_counts(torch.tensor([0, 1])) < 0).any())


def test_a_vgg_has_frames_too(tmp_path: Path) -> None:
    """Which NeMo itself cannot run."""
    model: Any = load_model(tiny_nemo.save("conformer-vggnet", tmp_path))
    lengths = torch.arange(20, 60)
    _, counts = model.graph(torch.zeros(len(lengths), 60, 16), lengths)
    assert model.frame_counts(lengths).tolist() == counts.tolist()


def test_what_has_no_masking_of_its_own_says_so(tiny_model: Callable[[str], Path]) -> None:
    for name in ("quartznet", "sb-crdnn"):
        model: Any = load_model(tiny_model(name), trust=True)
        assert model.set_time_masking(0.1, 5) is False
    model = load_model(tiny_model("sb-wav2vec2"), trust=True)
    assert model.set_time_masking(0.1, 5) is True
    assert asr_model(torch.nn.Linear(2, 2)).set_time_masking(0.1, 5) is False  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["wavlm-large", "bert-relative-key", "citrinet", "fastconformer-local", "sb-wav2vec2"])
def test_nothing_is_made_on_another_device_than_the_features(name: str, tiny_model: Callable[[str], Path]) -> None:
    """What is made with no device in mind lands on one here with which nothing can be computed."""
    model: Any = load_model(tiny_model(name), trust=True)
    model.make_exportable()
    for part in model.module.modules():
        if hasattr(getattr(part, "config", None), "layerdrop"):
            part.config.layerdrop = 0.0  # whose number is drawn on the processor, whatever the device
    features, lengths = collate([model.frontend(wave) for wave in tiny_hf.speech(0.5, 0.3)])
    model.module.train()
    model.set_time_masking(0.0, 5)
    with torch.device("meta"):
        logprobs, counts, _ = model.train_outputs(torch.from_numpy(features), torch.from_numpy(lengths))
    assert str(logprobs.device) == str(counts.device) == "cpu"


@pytest.mark.parametrize("name", ["wav2vec2-base", "quartznet", "fastconformer", "sb-crdnn"])
def test_log_probs_are_in_float32_whatever_the_layers_compute_in(name: str, tiny_model: Callable[[str], Path]) -> None:
    model: Any = load_model(tiny_model(name), trust=True)
    features, lengths = collate([model.frontend(wave) for wave in tiny_hf.speech(0.5, 0.3)])
    with torch.autocast("cpu", torch.bfloat16):
        logprobs, *_ = model.train_outputs(torch.from_numpy(features), torch.from_numpy(lengths))
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs.exp().sum(-1), torch.ones(logprobs.shape[:2]), rtol=0, atol=1e-5)
    logprobs.sum().backward()
