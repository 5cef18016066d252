"""The transcriber around an acoustic model: batches, order, lengths, bad input, transcripts."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from fake_speech import FRAME_SECONDS, HOP, RATE, TOKENIZER, FakeAcoustic, random_words, speak
from test_tokenizer import pair
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

from quantasr.errors import AudioError, ModelLoadError, RecipeError
from quantasr.speech.ctc import CtcTranscriber
from quantasr.speech.frontend import FbankFrontend, WaveFrontend
from quantasr.speech.tokenizer import Tokenizer
from quantasr.speech.transcript import Transcriber, Word


def transcriber(acoustic: FakeAcoustic, **options: float) -> CtcTranscriber:
    frontend = WaveFrontend(RATE, normalize=False)
    defaults = {"name": "fake", "frame_seconds": FRAME_SECONDS, "min_samples": 4 * HOP}
    return CtcTranscriber(acoustic, frontend, TOKENIZER, **(defaults | options))


def recordings(count: int, seed: int = 0) -> tuple[list[np.ndarray], list[str]]:
    """Short and long ones, some of equal length."""
    rng = np.random.default_rng(seed)
    words = [random_words(rng, int(rng.integers(1, 25))) for _ in range(count)]
    waves = [np.concatenate(list(speak(w, rng))) for w in words]
    for i in range(0, count - 1, 3):
        waves[i + 1], words[i + 1] = waves[i], words[i]
    return waves, [" ".join(w) for w in words]


@pytest.mark.parametrize("padded_batches", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_batch_is_the_same_as_one_at_a_time_and_in_order(padded_batches: bool, batch_size: int) -> None:
    waves, texts = recordings(12)
    acoustic = FakeAcoustic(padded_batches)
    options = {"chunk_seconds": 10.0, "overlap_seconds": 3.0}
    together = transcriber(acoustic, batch_size=batch_size, **options).transcribe(waves)
    alone = [transcriber(FakeAcoustic(padded_batches), **options).transcribe([wave])[0] for wave in waves]
    assert together == alone
    assert [found.text for found in together] == texts
    assert max(map(len, acoustic.calls)) == (batch_size if padded_batches else min(2, batch_size))
    assert {wave.size > 10 * RATE for wave in waves} == {False, True}


def test_padded_batches_are_sorted_by_length() -> None:
    acoustic = FakeAcoustic()
    waves, _ = recordings(12)
    transcriber(acoustic, batch_size=3, chunk_seconds=0).transcribe(waves)
    assert len(acoustic.calls) == 4
    lengths = [length for call in acoustic.calls for length in call]
    assert lengths == sorted(wave.size for wave in waves)


def test_logprobs_are_what_is_decoded() -> None:
    waves, _ = recordings(4, seed=1)
    acoustic = FakeAcoustic()
    found = transcriber(acoustic, batch_size=2).logprobs(waves)
    assert [row.shape for row in found] == [(len(wave) // HOP - 1, len(TOKENIZER)) for wave in waves]
    alone = FakeAcoustic()(waves[0][None], np.array([len(waves[0])]))[0][0]
    np.testing.assert_array_equal(found[0], alone)
    scores = [row.max(1).mean() for row in found]
    assert [t.score for t in transcriber(acoustic).transcribe(waves)] == pytest.approx(scores, abs=1e-5)
    cut = transcriber(acoustic, chunk_seconds=4, overlap_seconds=1).logprobs(waves)
    assert [row.shape for row in cut] == [row.shape for row in found]


def test_words_have_times() -> None:
    waves, _ = recordings(1)
    found = transcriber(FakeAcoustic(edges=False)).transcribe(waves)[0]
    assert found.duration == len(waves[0]) / RATE
    assert " ".join(word.text for word in found.words) == found.text
    first = found.words[0]
    # A letter sounds from the frame after the two of the border.
    assert first.start == pytest.approx(2 * FRAME_SECONDS)
    assert all(a.end <= b.start for a, b in zip(found.words, found.words[1:], strict=False))


def test_a_recording_shorter_than_the_receptive_field_is_filled_up() -> None:
    acoustic = FakeAcoustic(padded_batches=False, edges=False)
    waves = [np.full(1, 0.5, np.float32), np.zeros(3 * HOP, np.float32), np.zeros(4 * HOP, np.float32)]
    found = transcriber(acoustic, batch_size=3).transcribe(waves)
    assert [t.text for t in found] == ["", "", ""]
    assert [t.duration for t in found] == [1 / RATE, 3 * HOP / RATE, 4 * HOP / RATE]
    assert acoustic.calls == [(4 * HOP,) * 3]  # filled up, they are of equal length


def test_words_end_with_the_recording_though_zeros_follow_it() -> None:
    class Late(FakeAcoustic):
        def __call__(self, features: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            logprobs = np.log(np.tile(np.eye(len(TOKENIZER))[2] + 1e-9, (1, 4, 1)))
            return logprobs.astype(np.float32), np.array([4])

    found = transcriber(Late()).transcribe([np.zeros(HOP, np.float32)])[0]
    assert found.words == (Word("a", 0.0, FRAME_SECONDS),)


def test_the_frontend_fits_the_recogniser() -> None:
    """Stacked frames: two windows of a filter bank coincide as those of a wave do."""

    class Counts:
        padded_batches = True
        shapes: list[tuple[int, ...]] = []  # noqa: RUF012

        def __call__(self, features: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            self.shapes.append(features.shape)
            logprobs = np.full((*features.shape[:2], 3), -9, np.float32)
            logprobs[..., 0] = -0.001
            return logprobs, lengths

    frontend = FbankFrontend(padding_value=1.0)
    tokenizer = Tokenizer(("-", "|", "a"), 0)
    options = {"name": "bert", "frame_seconds": 0.02, "min_samples": frontend.min_samples}
    rng = np.random.default_rng(0)
    waves = [rng.normal(size=n).astype(np.float32) for n in (300, 16000, 50_000)]
    one = CtcTranscriber(Counts(), frontend, tokenizer, batch_size=3, **options)
    rows = [row.shape[0] for row in one.logprobs(waves)]
    assert rows == [1, 49, 155]
    assert Counts.shapes[-1] == (3, 155, 160)
    cut = CtcTranscriber(Counts(), frontend, tokenizer, chunk_seconds=1.0, overlap_seconds=0.2, **options)
    assert [row.shape[0] for row in cut.logprobs(waves)] == rows


@pytest.mark.parametrize("masked", [False, True])
def test_text_and_times_equal_transformers_own_way(masked: bool, tmp_path: Path) -> None:
    """A small Wav2Vec2 with random weights: processor, model, argmax, decode, against ours around the same model."""
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGH"]
    original, tokenizer = pair(tmp_path, tokens)
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=masked)
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer" if masked else "group",
        do_stable_layer_norm=masked,
    )
    model = Wav2Vec2ForCTC(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(30)

    class Acoustic:
        padded_batches = masked

        def __call__(self, features: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            mask = torch.arange(features.shape[1]) < torch.from_numpy(lengths)[:, None] if masked else None
            with torch.no_grad():
                logits = model(torch.from_numpy(features), attention_mask=mask).logits
            frames = model._get_feat_extract_output_lengths(torch.from_numpy(lengths))
            return logits.log_softmax(-1).numpy(), frames.numpy()

    ours = CtcTranscriber(
        Acoustic(), WaveFrontend(), tokenizer, name="tiny", frame_seconds=0.02, min_samples=400, batch_size=3
    )
    rng = np.random.default_rng(0)
    waves = [(rng.normal(size=n) * rng.uniform(0.01, 0.3)).astype(np.float32) for n in (400, 9000, 16000, 25000, 31234)]
    for found, wave in zip(ours.transcribe(waves), waves, strict=True):
        inputs = extractor(wave, sampling_rate=16000, return_tensors="pt")
        with torch.no_grad():
            ids = model(**inputs).logits.argmax(-1)
        expected = original.batch_decode(ids, output_word_offsets=True)
        assert found.text == expected.text[0]
        times = [(w["word"], w["start_offset"] * 0.02, w["end_offset"] * 0.02) for w in expected.word_offsets[0]]
        assert [(w.text, w.start, w.end) for w in found.words] == times
    assert len(found.text) > 20


def test_it_is_a_transcriber() -> None:
    found: Transcriber = transcriber(FakeAcoustic())
    assert (found.name, found.sample_rate) == ("fake", RATE)
    assert found.transcribe([]) == []


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (np.zeros(0, np.float32), r"wave 1: shape \[0\]"),
        (np.zeros((100, 2), np.float32), r"wave 1: shape \[100, 2\]"),
        (np.array([0.0, np.nan], np.float32), "wave 1: holds NaN"),
        (np.array([np.inf], np.float32), "wave 1: holds NaN or infinite"),
    ],
)
def test_unusable_waves_are_named(wave: np.ndarray, message: str) -> None:
    good = np.zeros(RATE, np.float32)
    with pytest.raises(AudioError, match=message):
        transcriber(FakeAcoustic()).transcribe([good, wave])
    with pytest.raises(AudioError, match=message):
        transcriber(FakeAcoustic()).logprobs([good, wave])


def test_a_broken_model_is_told() -> None:
    class Broken(FakeAcoustic):
        def _hear(self, wave: np.ndarray) -> np.ndarray:
            return super()._hear(wave) * np.nan

    with pytest.raises(ModelLoadError, match="'fake' gives NaN"):
        transcriber(Broken()).transcribe([np.zeros(RATE, np.float32)])


def test_a_batch_of_none_is_refused() -> None:
    with pytest.raises(RecipeError, match="batch_size is 0"):
        transcriber(FakeAcoustic(), batch_size=0)


def test_a_file_is_transcribed_block_by_block(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    words = random_words(rng, 1100)
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", RATE, 2, subtype="FLOAT") as file:
        for block in speak(words, rng):
            file.write(np.stack([block, block], axis=1))
    recogniser = transcriber(FakeAcoustic())
    tracemalloc.start()
    try:
        found = recogniser.transcribe_file(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.text.split(" ") == words
    whole = found.duration * RATE * 4
    assert found.duration > 560
    assert peak < whole / 2, f"{peak / 1e6:.1f} MB for {whole / 1e6:.0f} MB"
    part = recogniser.transcribe_file(path, start=0.0, duration=found.words[30].end)
    assert part.text.split(" ")[:10] == words[:10]
    with pytest.raises(AudioError, match=r"none\.wav"):
        recogniser.transcribe_file(tmp_path / "none.wav")
