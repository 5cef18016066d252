"""The mel filter bank in decibels against SpeechBrain's own modules, on speech."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from speechbrain.lobes.features import MFCC, Fbank
from speechbrain.processing.features import InputNormalization

from quantasr import sample
from quantasr.errors import ArtifactError, AudioError, ModelLoadError
from quantasr.sources.speechbrain.features import read_frontend
from quantasr.speech.frontend import MelDecibelFrontend, frontend_from_dict
from quantasr.speech.manifest import read_manifest

Normalization = Callable[[int], InputNormalization] | None


def _global(columns: int) -> InputNormalization:
    norm = InputNormalization(norm_type="global")
    generator = torch.Generator().manual_seed(0)
    norm.glob_mean = torch.randn(columns, generator=generator) * 10 - 20
    norm.glob_std = torch.rand(columns, generator=generator) * 10 + 1
    return norm


@pytest.fixture(scope="module")
def speech() -> list[NDArray[np.float32]]:
    return [utterance.load(16000) for utterance in read_manifest(sample.evaluation())[:4]]


@pytest.mark.parametrize(
    ("features", "normalization"),
    [
        (Fbank(n_mels=40), None),
        (Fbank(n_mels=80, n_fft=512), lambda _: InputNormalization(norm_type="sentence")),
        (Fbank(n_mels=80), _global),
        (Fbank(filter_shape="rectangular"), None),
        (Fbank(filter_shape="gaussian", f_min=20, f_max=7600), lambda _: InputNormalization(norm_type="batch")),
        (Fbank(deltas=True, context=True, left_frames=2, right_frames=3), _global),
        (Fbank(context=True, left_frames=4, right_frames=1), None),
        (
            Fbank(n_fft=513, win_length=32, hop_length=8),
            lambda _: InputNormalization(norm_type="sentence", std_norm=False),
        ),
        (Fbank(requires_grad=True, sample_rate=8000, n_fft=256), None),
        (MFCC(), None),
        (MFCC(deltas=False, context=False, n_mels=40, n_mfcc=13), lambda _: InputNormalization(norm_type="sentence")),
    ],
)
@torch.no_grad()
def test_features_are_speechbrains(features: Any, normalization: Normalization, speech: list[Any]) -> None:
    columns = features(torch.zeros(1, 16000)).shape[-1]
    layers = [features] if normalization is None else [features, normalization(columns)]
    layers = [layer.eval() for layer in layers]
    frontend = read_frontend("here", layers, 16000)
    assert frontend_from_dict(json.loads(json.dumps(frontend.to_dict()))) == frontend
    for wave in speech:
        expected = torch.from_numpy(wave)[None]
        for layer in layers:
            expected = layer(expected)
        np.testing.assert_allclose(frontend(wave), expected[0].numpy(), atol=1e-3, rtol=0)


def test_silence_and_the_shortest_waves() -> None:
    features = Fbank().eval()
    frontend = read_frontend("here", [features], 16000)
    assert isinstance(frontend, MelDecibelFrontend)
    for samples in (1, 159, 160, 161, 5000):
        expected = features(torch.zeros(1, samples))[0]
        np.testing.assert_allclose(frontend(np.zeros(samples, np.float32)), expected, atol=1e-4)
    for frames in (1, 2, 7):
        least = frontend.samples_of(frames)
        assert len(frontend(np.zeros(least, np.float32))) == frames
        assert least == 1 or len(frontend(np.zeros(least - 1, np.float32))) < frames
    with pytest.raises(AudioError, match="at least one sample"):
        frontend(np.zeros(0, np.float32))


def test_what_numpy_does_not_do_is_refused() -> None:
    class Louder(Fbank):
        def forward(self, wav: Any) -> Any:
            return super().forward(wav) + 3.0

    with pytest.raises(ModelLoadError, match="here: Louder are set up in a way that is not supported"):
        read_frontend("here", [Louder()], 16000)
    with pytest.raises(ModelLoadError, match="statistics of its InputNormalization are not loaded"):
        read_frontend("here", [Fbank(), InputNormalization()], 16000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window_length": 500}, "longer than fft_length"),
        ({"hop_length": 0}, "hop_length is 0"),
        ({"bandwidths": (100.0,)}, "need as many bandwidths"),
        ({"filter_shape": "round"}, "filter_shape 'round' is unknown"),
        ({"normalize": "speaker"}, "normalize 'speaker' is unknown"),
        ({"normalize": "fixed", "fixed_mean": (1.0,)}, "fixed_mean has 1 values for 2 columns"),
        ({"num_ceps": 3}, "3 cepstra of 2 filters"),
    ],
)
def test_unusable_options(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        MelDecibelFrontend(**{"centres": (300.0, 900.0), "bandwidths": (200.0, 300.0), **changes})
