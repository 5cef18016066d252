"""Features against transformers' own feature extractors."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2FeatureExtractor

from quantasr.errors import ArtifactError, AudioError
from quantasr.speech.frontend import FRONTENDS, FbankFrontend, WaveFrontend, collate, frontend_from_dict


def speechlike(samples: int, seed: int) -> np.ndarray:
    """Tones with pauses and a little noise: bins from loud to near-silent."""
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / 16000
    wave = sum(0.2 * np.sin(2 * np.pi * f * t + f) for f in rng.uniform(80, 5000, 5))
    return (wave * (np.sin(2 * np.pi * 1.3 * t) > 0) + 1e-4 * rng.normal(size=samples) + 0.01).astype(np.float32)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("samples", [1, 400, 16001])
def test_wave_equals_transformers(normalize: bool, samples: int) -> None:
    wave = speechlike(samples, samples)
    theirs = Wav2Vec2FeatureExtractor(do_normalize=normalize)(wave, sampling_rate=16000, return_tensors="np")
    ours = WaveFrontend(16000, normalize)(wave)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs.input_values[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("samples", [720, 879, 880, 16000, 16161, 200_000])
@pytest.mark.parametrize(("bins", "stride"), [(80, 2), (40, 3)])
def test_fbank_equals_transformers(samples: int, bins: int, stride: int) -> None:
    wave = speechlike(samples, samples)
    extractor = SeamlessM4TFeatureExtractor(
        feature_size=bins, num_mel_bins=bins, stride=stride, padding_value=1.0, sampling_rate=16000
    )
    frames = 1 + (samples - 400) // 160
    theirs = extractor(wave, sampling_rate=16000, return_tensors="np", pad_to_multiple_of=stride)
    valid = frames // stride  # the original pads the rest of a row and, with stride 2, masks it
    if stride == 2:
        assert valid == int(theirs.attention_mask.sum())
    ours = FbankFrontend(16000, bins, stride)(wave)
    assert ours.shape == (valid, bins * stride)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs.input_features[0, :valid], atol=1e-4, rtol=0)


def test_fbank_of_silence_equals_transformers() -> None:
    silence = np.zeros(16000, np.float32)
    theirs = SeamlessM4TFeatureExtractor()(silence, sampling_rate=16000, return_tensors="np").input_features[0]
    np.testing.assert_allclose(FbankFrontend()(silence), theirs, atol=1e-4)


def test_fbank_does_not_change_its_input() -> None:
    wave = speechlike(5000, 0)
    before = wave.copy()
    FbankFrontend()(wave)
    np.testing.assert_array_equal(wave, before)


def test_unusable_waves_are_refused() -> None:
    with pytest.raises(AudioError, match="at least one sample"):
        WaveFrontend(16000, True)(np.zeros(0, np.float32))
    with pytest.raises(AudioError, match="one channel"):
        WaveFrontend(16000, True)(np.zeros((2, 100), np.float32))
    with pytest.raises(AudioError, match="needs 560"):
        FbankFrontend()(np.zeros(559, np.float32))


@pytest.mark.parametrize("kind", sorted({*FRONTENDS} - {"kaldi"}))  # has arrays, too, and a test of its own
def test_round_trip_through_json(kind: str) -> None:
    needed: dict[str, Any] = {"centres": (300.0, 900.0), "bandwidths": (250.0, 300.0)} if kind == "mel_db" else {}
    frontend = replace(FRONTENDS[kind](**needed), sample_rate=8000, padding_value=1.5)
    assert frontend_from_dict(json.loads(json.dumps(frontend.to_dict()))) == frontend


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"kind": "mfcc"}, "kind 'mfcc' is unknown"),
        ({"sample_rate": 16000}, "kind None is unknown"),
        ({"kind": "wave", "sample_rate": 16000, "dither": 1}, "dither"),
        ({"kind": "fbank", "sample_rate": 0}, "sample_rate is 0"),
        ({"kind": "fbank", "stride": 0}, "stride is 0"),
    ],
)
def test_a_foreign_frontend_is_refused(row: dict, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        frontend_from_dict(row)


def test_collate_pads_with_the_value() -> None:
    batch, lengths = collate([np.ones(3, np.float32), np.ones(1, np.float32)], padding_value=-2.0)
    assert batch.tolist() == [[1, 1, 1], [1, -2, -2]]
    assert lengths.tolist() == [3, 1]
    assert lengths.dtype == np.int64
    batch, _ = collate([np.ones((2, 4), np.float32), np.ones((3, 4), np.float32)])
    assert batch.shape == (2, 3, 4)
    assert batch[0, 2].tolist() == [0, 0, 0, 0]


def test_speech_imports_nothing_heavy() -> None:
    names = "frontend tokenizer decoding beam long_form ctc"
    code = "import sys\n" + "".join(f"import quantasr.speech.{name}\n" for name in names.split())
    code += "heavy = {'torch', 'transformers', 'kaldi_native_fbank', 'pyctcdecode', 'kenlm', 'soundfile', 'soxr'}\n"
    code += "print(sorted(heavy & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
