"""MFCC and filter banks against Kaldi's own (``tests/data/kaldi/features``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kaldi_native_fbank
import numpy as np
import pytest
from numpy.typing import NDArray

from quantasr.errors import ArtifactError, AudioError, ModelLoadError
from quantasr.speech.frontend.kaldi_features import KaldiFeatures

DATA = Path(__file__).parent.parent / "data" / "kaldi" / "features"


@pytest.fixture(scope="module")
def golden() -> dict[str, NDArray[Any]]:
    return dict(np.load(DATA / "golden.npz"))


def from_conf(folder: Path, options: list[str], type: str = "mfcc") -> KaldiFeatures:
    (folder / "some.conf").write_text("\n".join(["--dither=0", *options]))
    return KaldiFeatures.from_conf(folder / "some.conf", type)


@pytest.mark.parametrize(
    ("name", "type", "options"),
    [
        ("mfcc", "mfcc", []),
        (
            "vosk",
            "mfcc",
            ["--use-energy=false", "--num-mel-bins=40", "--num-ceps=40", "--low-freq=20", "--high-freq=7600"],
        ),
        ("vtln", "mfcc", ["--vtln-warp=1.1", "--snip-edges=false"]),
        (
            "htk",
            "mfcc",
            [
                *("--use-energy=false", "--htk-compat=true", "--window-type=hamming", "--cepstral-lifter=0"),
                "--round-to-power-of-two=false",
            ],
        ),
        ("floor", "mfcc", ["--energy-floor=1e10", "--raw-energy=false", "--high-freq=-400"]),
        ("fbank", "fbank", ["--num-mel-bins=30", "--use-energy=true", "--frame-shift=12.5"]),
        (
            "fbank_magnitude",
            "fbank",
            [
                *("--use-power=false", "--use-log-fbank=false", "--preemphasis-coefficient=0.5"),
                *("--remove-dc-offset=false", "--window-type=blackman"),
            ],
        ),
    ],
)
def test_features_are_those_of_kaldi(
    golden: dict[str, NDArray[Any]], tmp_path: Path, name: str, type: str, options: list[str]
) -> None:
    mine = from_conf(tmp_path, options, type)
    found = mine((golden["wave"] / 32768.0).astype(np.float32))
    assert found.shape == (mine.frames_of(4000), mine.dim)
    np.testing.assert_allclose(found, golden[name], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("window", ["hanning", "sine", "rectangular"])
@pytest.mark.parametrize("snip", [True, False])
def test_windows_are_those_of_kaldi_native_fbank(
    golden: dict[str, NDArray[Any]], tmp_path: Path, window: str, snip: bool
) -> None:
    options = kaldi_native_fbank.MfccOptions()
    options.frame_opts.dither, options.frame_opts.window_type, options.frame_opts.snip_edges = 0.0, window, snip
    theirs = kaldi_native_fbank.OnlineMfcc(options)
    wave = golden["wave"][:3333]
    theirs.accept_waveform(16000, wave.astype(np.float32).tolist())
    early = theirs.num_frames_ready
    theirs.input_finished()
    expected = np.stack([theirs.get_frame(i) for i in range(theirs.num_frames_ready)])
    mine = from_conf(tmp_path, [f"--window-type={window}", f"--snip-edges={str(snip).lower()}"])
    np.testing.assert_allclose(mine((wave / 32768.0).astype(np.float32)), expected, atol=1e-3)
    assert mine.frames_of(len(wave), finished=False) == early


def test_noise_is_the_same_for_the_same_wave(golden: dict[str, NDArray[Any]]) -> None:
    wave = (golden["wave"] / 32768.0).astype(np.float32)
    noisy = KaldiFeatures()
    assert noisy.dither == 1.0
    np.testing.assert_array_equal(noisy(wave), noisy(wave))
    assert 1e-4 < np.abs(noisy(wave) - KaldiFeatures(dither=0.0)(wave)).max() < 1.0
    silence = np.zeros(4000, np.float32)
    assert KaldiFeatures(dither=0.0)(silence)[:, 0].max() == pytest.approx(np.log(np.finfo(np.float32).eps))
    assert noisy(silence)[:, 0].mean() == pytest.approx(np.log(400), abs=0.1)  # the energy of 400 samples of variance 1


def test_the_shortest_wave_gives_one_frame() -> None:
    for features in (KaldiFeatures(), KaldiFeatures(snip_edges=False)):
        assert features(np.ones(features.min_samples, np.float32)).shape == (1, 13)
        with pytest.raises(AudioError, match=f"a frame needs {features.min_samples}"):
            features(np.ones(features.min_samples - 1, np.float32))


def test_long_waves_are_transformed_in_parts(golden: dict[str, NDArray[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    wave, features = (golden["wave"] / 32768.0).astype(np.float32), KaldiFeatures()
    whole = features(wave)
    monkeypatch.setattr(KaldiFeatures, "chunk_frames", 5)
    np.testing.assert_allclose(features(wave), whole, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-ceps=30"], "num-ceps is 30; it must be 1 to num-mel-bins, 23"),
        (["--high-freq=9000"], "20 to 9000 Hz is no range within 0 to 8000 Hz"),
        (["--window-type=kaiser"], "window-type 'kaiser' is unknown"),
        (["--num-mel-bins=200"], "leaves filters empty"),
        (["--frame-length=0"], "must be positive"),
        (["--frame-length=1e9"], "is too long"),
        (["--use-power=true"], r"some\.conf:2: option --use-power: is unknown here"),
        (["--vtln-warp=1.2", "--vtln-high=8000"], "vtln-low and vtln-high"),
    ],
)
def test_impossible_configurations_are_refused(tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(ModelLoadError, match=message) as found:
        from_conf(tmp_path, options)
    assert "some.conf" in str(found.value)
    assert "\n" not in str(found.value)


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ArtifactError, match="type 'plp' is unknown"):
        KaldiFeatures(type="plp")
