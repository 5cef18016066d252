"""Log-mel features against NeMo's own preprocessor in evaluation mode."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny_nemo
import torch
from soxr import resample

from quantasr.errors import ArtifactError, AudioError
from quantasr.speech.frontend import LogMelFrontend, collate, frontend_from_dict

TOLERANCE = 1e-4


class Options(NamedTuple):
    """The same options, as NeMo and as we call them."""

    nemo: dict[str, Any]
    mine: dict[str, Any]


CASES = {
    "quartznet": Options({"n_fft": 512}, {}),
    "conformer": Options(
        {"window_size": 0.025, "features": 80, "n_fft": 512, "pad_to": 0}, {"window_length": 400, "num_mel_bins": 80}
    ),
    "parakeet": Options(
        {"window_size": 0.025, "features": 128, "n_fft": 512, "log_zero_guard_value": 2**-24},
        {"window_length": 400, "num_mel_bins": 128},
    ),
    "8 kHz": Options(
        {"sample_rate": 8000, "window_size": 0.025, "features": 64},
        {"sample_rate": 8000, "window_length": 200, "hop_length": 80, "fft_length": 256},
    ),
    "22.05 kHz": Options(
        {
            "sample_rate": 22050,
            "n_window_size": 1024,
            "n_window_stride": 256,
            "window_size": None,
            "window_stride": None,
        }
        | {"features": 80, "highfreq": 8000, "exact_pad": True},
        {"sample_rate": 22050, "window_length": 1024, "hop_length": 256, "fft_length": 1024, "num_mel_bins": 80}
        | {"high_frequency": 8000.0, "exact_pad": True},
    ),
    "long FFT": Options({"n_fft": 1024}, {"fft_length": 1024}),
    "hamming": Options({"window": "hamming", "n_fft": 512}, {"window": "hamming"}),
    "blackman": Options({"window": "blackman", "n_fft": 512}, {"window": "blackman"}),
    "bartlett": Options({"window": "bartlett", "n_fft": 512}, {"window": "bartlett"}),
    "all features": Options({"normalize": "all_features"}, {"normalize": "all_features"}),
    "not normalised": Options({"normalize": "NA"}, {"normalize": "none"}),
    "fixed": Options(
        {"normalize": {"fixed_mean": list(range(64)), "fixed_std": [2.0] * 63 + [0.5]}},
        {"normalize": "fixed", "fixed_mean": list(range(64)), "fixed_std": [2.0] * 63 + [0.5]},
    ),
    "no pre-emphasis": Options({"preemph": None}, {"preemphasis": 0.0}),
    "magnitude": Options({"mag_power": 1.0}, {"mag_power": 1.0}),
    "no logarithm": Options({"log": False}, {"log": False}),
    "floor eps": Options(
        {"log_zero_guard_type": "clamp", "log_zero_guard_value": "eps", "normalize": "NA"},
        {"log_guard": "clamp", "log_guard_value": float(np.finfo(np.float32).eps), "normalize": "none"},
    ),
    "tiny": Options(
        {"log_zero_guard_value": "tiny", "normalize": "NA"},
        {"log_guard_value": float(np.finfo(np.float32).tiny), "normalize": "none"},
    ),
    "spliced": Options({"frame_splicing": 3}, {"frame_splicing": 3}),
    "band": Options({"lowfreq": 60, "highfreq": 7600}, {"low_frequency": 60.0, "high_frequency": 7600.0}),
    "peaks of 1": Options({"mel_norm": None}, {"mel_norm": "none"}),
    "exact padding": Options({"exact_pad": True}, {"exact_pad": True}),
    "exact padding alone": Options({"exact_pad": True, "preemph": None}, {"exact_pad": True, "preemphasis": 0.0}),
}

# NeMo reads fixed statistics only for a batch of one.
NO_BATCHES = {"fixed"}


def originals(options: dict[str, Any], waves: list[np.ndarray]) -> list[np.ndarray]:
    """NeMo's features of a batch: the valid frames of each row."""
    from nemo.collections.asr.modules import AudioToMelSpectrogramPreprocessor

    tiny_nemo.silence()
    preprocessor = AudioToMelSpectrogramPreprocessor(**{"dither": 1e-5, **options}).eval()
    batch = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(wave) for wave in waves], batch_first=True)
    lengths = torch.tensor([len(wave) for wave in waves])
    features, frames = preprocessor(input_signal=batch, length=lengths)
    return [row[:, :count].T.numpy() for row, count in zip(features, frames.tolist(), strict=True)]


def recordings(rate: int) -> list[np.ndarray]:
    """Lengths around multiples of the step, and one recording that is silent but for a click."""
    (wave,) = tiny_nemo.speech(1.5, rate=rate)
    quiet = np.zeros(rate // 2, np.float32)
    quiet[rate // 4] = 0.3
    step = rate // 100
    return [wave, wave[: 40 * step], wave[: 40 * step - 1], wave[: 40 * step + 1], wave[: 5 * step + 7], quiet]


@pytest.mark.parametrize("name", CASES)
def test_features_are_nemos_alone_and_in_its_batches(name: str) -> None:
    options, mine = CASES[name].nemo, LogMelFrontend(**CASES[name].mine)
    waves = recordings(mine.sample_rate)
    batched = originals(options, waves) if name not in NO_BATCHES else [None] * len(waves)
    for wave, together in zip(waves, batched, strict=True):
        (alone,) = originals(options, [wave])
        found = mine(wave)
        assert found.dtype == np.float32
        assert found.shape == alone.shape == (mine.frames_of(wave.size), mine.bins)
        np.testing.assert_allclose(found, alone, atol=TOLERANCE, rtol=1e-4)
        if together is not None:
            np.testing.assert_allclose(found, together, atol=TOLERANCE, rtol=1e-4)


def test_a_rectangular_window_is_pytorchs() -> None:
    """NeMo raises on it, in spite of its documentation."""
    (wave,) = tiny_nemo.speech(0.5)
    mine = LogMelFrontend(window="none", normalize="none", preemphasis=0.0, log=False)
    spectrum = torch.stft(
        torch.from_numpy(wave), 512, 160, 320, torch.ones(320), center=True, pad_mode="constant", return_complex=True
    )
    power = spectrum.abs().square().T.numpy()[: mine.frames_of(wave.size)]
    np.testing.assert_allclose(mine(wave), power @ mine.mel_filters, rtol=1e-4, atol=1e-5)


def test_a_single_frame_has_no_variance() -> None:
    wave = tiny_nemo.speech(1.0)[0][:200]
    found, (theirs,) = LogMelFrontend()(wave), originals({}, [wave])
    assert len(found) == 1
    np.testing.assert_allclose(found, theirs, atol=TOLERANCE)


def test_digital_silence_is_zero() -> None:
    """NeMo's is the rounding of its mean, a millionth, over its guard of 1e-5."""
    silence = np.zeros(16000, np.float32)
    assert not LogMelFrontend()(silence).any()
    assert np.abs(originals({}, [silence])[0]).max() * 1e-5 < 4e-6


def test_bins_without_sound_are_nemos() -> None:
    """A recording of 8 kHz at 16 kHz: dividing by tiny deviations magnifies every difference."""
    wave = resample(tiny_nemo.speech(2.0, rate=8000)[0], 8000, 16000).astype(np.float32)
    np.testing.assert_allclose(LogMelFrontend()(wave), originals({}, [wave])[0], atol=TOLERANCE)


@pytest.mark.parametrize("exact_pad", [False, True])
def test_the_shortest_wave_for_a_number_of_frames(exact_pad: bool) -> None:
    mine = LogMelFrontend(exact_pad=exact_pad)
    for frames in (1, 2, 17):
        samples = mine.samples_of(frames)
        assert (mine.frames_of(samples), mine.frames_of(samples - 1)) == (frames, frames - 1)
    with pytest.raises(AudioError, match=f"needs {mine.min_samples}; pad it"):
        mine(np.zeros(mine.min_samples - 1, np.float32))


def test_a_batch_is_filled_up_behind_the_valid_frames() -> None:
    mine = LogMelFrontend()
    waves = recordings(16000)[:3]
    batch, lengths = collate([mine(wave) for wave in waves], mine.padding_value)
    for row, length, theirs in zip(batch, lengths, originals({}, waves), strict=True):
        np.testing.assert_allclose(row[:length], theirs, atol=TOLERANCE)
        assert not row[length:].any()


def test_long_recordings_are_what_their_blocks_are() -> None:
    """Transformed in blocks of frames; none may be lost or wrong at a border."""
    (wave,) = tiny_nemo.speech(12.0)
    mine = LogMelFrontend(normalize="none")
    assert mine.frames_of(wave.size) > 4 * mine.chunk_frames
    np.testing.assert_allclose(mine(wave), originals({"normalize": "NA"}, [wave])[0], atol=TOLERANCE)


def test_the_wave_stays_as_it_was() -> None:
    (wave,) = tiny_nemo.speech(0.5)
    before = wave.copy()
    LogMelFrontend()(wave)
    np.testing.assert_array_equal(wave, before)


@pytest.mark.parametrize("name", CASES)
def test_options_survive_json(name: str) -> None:
    mine = LogMelFrontend(**CASES[name].mine)
    assert frontend_from_dict(json.loads(json.dumps(mine.to_dict()))) == mine
    assert hash(mine) == hash(replace(mine))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": "kaiser"}, "window 'kaiser' is unknown: hann, hamming"),
        ({"normalize": "global"}, "normalize 'global' is unknown"),
        ({"mel_norm": "htk"}, "mel_norm 'htk' is unknown"),
        ({"log_guard": "max"}, "log_guard 'max' is unknown"),
        ({"hop_length": 0}, "hop_length is 0; it must be at least 1"),
        ({"window_length": 600}, "window_length 600 is longer than fft_length 512"),
        ({"high_frequency": 9000.0}, "0 to 9000 Hz is no range within 0 to 8000 Hz"),
        ({"low_frequency": -1.0}, "is no range within"),
        ({"normalize": "fixed"}, "fixed_mean has 0 values for 64 bins"),
        ({"sample_rate": 0}, "sample_rate is 0"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        LogMelFrontend(**options)
