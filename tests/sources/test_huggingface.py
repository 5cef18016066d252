"""Hugging Face models loaded by quantasr against the same models run by transformers with its own processor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny_hf
import torch
from torch.nn.functional import log_softmax

from quantasr import load_model
from quantasr.sources import CtcModel

# Where a batch of transformers reads into the padding, so that its own rows differ from the recordings alone.
LEAKY = {"wav2vec2-adapter", "wavlm-adapter", "bert-adapter", "data2vec", "hubert-batch-norm-mask"}

SPEECH = tiny_hf.speech(1.3, 0.8, 0.31)
# transformers computes the filter bank in another precision, which random weights amplify.
TOLERANCE = 1e-3


class Pair(NamedTuple):
    """A model twice."""

    name: str
    mine: CtcModel
    original: Any
    processor: Any

    @property
    def masked(self) -> bool:
        return tiny_hf.VARIANTS[self.name][3]

    def run_original(self, waves: list[np.ndarray]) -> tuple[torch.Tensor, list[int]]:
        """Log-probs of a padded batch, and how many frames of each row come from its recording."""
        batch = self.processor(waves, sampling_rate=16000, return_tensors="pt", padding=True)
        with torch.no_grad():
            logprobs = log_softmax(self.original(**batch).logits, dim=-1)
        if "attention_mask" not in batch:
            return logprobs, [logprobs.shape[1]] * len(waves)
        lengths = batch["attention_mask"].sum(-1)
        if self.original.config.model_type != "wav2vec2-bert" or self.original.config.add_adapter:
            lengths = self.original._get_feat_extract_output_lengths(lengths)
        return logprobs, lengths.tolist()


@pytest.fixture(scope="module", params=[(name, new) for name in tiny_hf.VARIANTS for new in (False, True)], ids=str)
def pair(request: pytest.FixtureRequest, tiny_hf_folder: Callable[[str], Path]) -> Pair:
    """Each model as it is loaded, and rewritten for export."""
    name, rewritten = request.param
    folder = tiny_hf_folder(name)
    mine = load_model(folder)
    if rewritten:
        mine.make_exportable()
    return Pair(name, mine, tiny_hf.original(folder), tiny_hf.processor(folder))


def test_logprobs_frame_counts_and_texts_are_the_originals(pair: Pair) -> None:
    transcriber = pair.mine.transcriber(chunk_seconds=0)
    found = transcriber.logprobs(SPEECH)
    texts = [transcript.text for transcript in transcriber.transcribe(SPEECH)]
    for wave, mine, text in zip(SPEECH, found, texts, strict=True):
        logprobs, (count,) = pair.run_original([wave])
        theirs = logprobs[0, :count].numpy()
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, atol=TOLERANCE)
        assert text == pair.processor.batch_decode(theirs.argmax(-1)[None])[0]
    assert len(set(texts)) == len(texts), "texts that are all alike compare nothing"


def test_a_padded_batch_is_the_originals_batch(pair: Pair) -> None:
    if not pair.masked or pair.name in LEAKY:
        pytest.skip("transformers itself gives other values in a batch of different lengths")
    logprobs, counts = pair.run_original(SPEECH)
    with torch.no_grad():
        mine, frames = pair.mine.graph(*pair.mine.inputs(SPEECH))
    assert frames.tolist() == counts
    for row, expected, count in zip(mine, logprobs, counts, strict=True):
        np.testing.assert_allclose(row[:count], expected[:count], atol=TOLERANCE)


def test_a_batch_gives_each_recording_what_it_gets_alone(pair: Pair) -> None:
    # Odd and even lengths, since strides drop samples and frames, and one recording twice.
    waves = [*SPEECH, SPEECH[0][:11111], SPEECH[0]]
    alone = pair.mine.transcriber(chunk_seconds=0).logprobs(waves)
    together = pair.mine.transcriber(chunk_seconds=0, batch_size=5).logprobs(waves)
    for one, batched in zip(alone, together, strict=True):
        np.testing.assert_allclose(batched, one, atol=2e-5)


def test_what_is_said_of_the_model(pair: Pair) -> None:
    mine, config = pair.mine, pair.original.config
    assert mine.family == ("wav2vec2_bert" if pair.name.startswith("bert") else "wav2vec2")
    assert mine.sample_rate == 16000
    assert mine.padded_batches == pair.masked
    assert mine.provenance["model_type"] == config.model_type
    assert mine.provenance["parameters"] == sum(p.numel() for p in pair.original.parameters())
    assert len(mine.tokenizer) == config.vocab_size
    # A frame more for every frame_seconds of audio.
    a, b = (len(x) for x in mine.transcriber(chunk_seconds=0).logprobs(tiny_hf.speech(1.0, 3.0)))
    assert (b - a) * mine.frame_seconds == pytest.approx(2.0, abs=1.01 * mine.frame_seconds)


def test_the_shortest_recording_gives_two_frames(pair: Pair) -> None:
    """One frame would do for the model, but not for an engine's fused attention."""
    frames = []
    for samples in (pair.mine.min_samples, pair.mine.min_samples - 1):
        with torch.no_grad():
            out = pair.mine.graph(*pair.mine.inputs([SPEECH[0][:samples]]))
        logprobs = out[0] if isinstance(out, tuple) else out
        assert bool(torch.isfinite(logprobs).all())
        frames.append(logprobs.shape[1])
    assert frames == [2, 1]
    assert pair.mine.transcriber().logprobs([SPEECH[0][:10]])[0].shape[0] == 2, "shorter ones are filled up"


def test_layers_keep_the_paths_of_the_original(pair: Pair) -> None:
    mine = {path for path, _ in pair.mine.module.named_modules()}
    assert mine == {path for path, _ in pair.original.named_modules()}


def test_a_model_with_group_norm_gets_no_mask_whatever_its_processor_says(tmp_path: Path) -> None:
    """A norm over time sees the padding, so transformers' own rows change with their neighbours' lengths."""
    tiny_hf.save("wavlm-base", tmp_path)
    tiny_hf.save_processor(tmp_path, bert=False, mask=True)
    model = load_model(tmp_path)
    model.make_exportable()
    assert not model.padded_batches
    original, processor = tiny_hf.original(tmp_path), tiny_hf.processor(tmp_path)
    batch = processor([SPEECH[1]], sampling_rate=16000, return_tensors="pt")
    assert "attention_mask" in batch
    with torch.no_grad():
        theirs = log_softmax(original(**batch).logits, dim=-1)[0].numpy()
    together = model.transcriber(chunk_seconds=0, batch_size=3).logprobs(SPEECH)
    np.testing.assert_allclose(together[1], theirs, atol=TOLERANCE)


def test_positions_end_nowhere(tmp_path: Path) -> None:
    """More frames than max_source_positions, where transformers makes its table longer."""
    tiny_hf.save("bert-relative", tmp_path, max_source_positions=20)
    (wave,) = tiny_hf.speech(1.0)
    original, processor = tiny_hf.original(tmp_path), tiny_hf.processor(tmp_path)
    with torch.no_grad():
        batch = processor([wave], sampling_rate=16000, return_tensors="pt")
        theirs = log_softmax(original(**batch).logits, dim=-1)[0].numpy()
    model = load_model(tmp_path)
    model.make_exportable()
    (mine,) = model.transcriber().logprobs([wave])
    assert len(mine) > 40
    np.testing.assert_allclose(mine, theirs[: len(mine)], atol=TOLERANCE)
