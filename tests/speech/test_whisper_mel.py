"""Whisper's features: those of transformers' own extractor."""

import numpy as np
import pytest
from transformers import WhisperFeatureExtractor

from quantasr.errors import ArtifactError, AudioError
from quantasr.speech.frontend import WhisperMelFrontend, frontend_from_dict

RANDOM = np.random.default_rng(7)


def _chirp(samples: int) -> np.ndarray:
    time = np.arange(samples) / 16000
    noise = 1e-4 * RANDOM.normal(size=samples)
    return (0.3 * np.sin(2 * np.pi * (100 + 300 * time) * time) * np.hanning(samples + 2)[1:-1] + noise).astype(
        np.float32
    )


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("samples", [1, 199, 401, 16000, 64123, 479900, 480000, 500017])
def test_features_are_transformers_own(bins: int, samples: int) -> None:
    wave = _chirp(samples)
    extractor = WhisperFeatureExtractor(feature_size=bins)
    padding = "max_length" if samples <= 480000 else "longest"
    theirs = extractor(wave, sampling_rate=16000, truncation=False, return_tensors="np", padding=padding)
    exact = extractor._np_extract_fbank_features([np.pad(wave, (0, max(0, 480000 - samples)))], "cpu")[0]
    ours = WhisperMelFrontend(num_mel_bins=bins)(wave)
    assert ours.shape == exact.T.shape and ours.dtype == np.float32
    np.testing.assert_allclose(ours, exact.T, atol=1e-5)
    # With PyTorch installed it transforms in float32, which shows where a loud tone is beside silence.
    np.testing.assert_allclose(ours, theirs.input_features[0].T, atol=1e-3)


def test_silence_is_what_transformers_gives() -> None:
    wave = np.zeros(8000, np.float32)
    theirs = WhisperFeatureExtractor()(wave, sampling_rate=16000, return_tensors="np").input_features[0]
    np.testing.assert_allclose(WhisperMelFrontend()(wave), theirs.T, atol=1e-6)


def test_it_comes_back_from_its_dictionary() -> None:
    frontend = WhisperMelFrontend(num_mel_bins=128, chunk_seconds=15.0)
    assert frontend_from_dict(frontend.to_dict()) == frontend
    assert frontend(_chirp(100)).shape == (1500, 128)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(AudioError, match="at least one sample"):
        WhisperMelFrontend()(np.zeros(0, np.float32))
    for wrong in ({"hop_length": 0}, {"fft_length": 401}, {"chunk_seconds": 0.01}, {"num_mel_bins": 0}):
        with pytest.raises(ArtifactError, match="whisper_mel"):
            WhisperMelFrontend(**wrong)
