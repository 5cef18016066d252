"""What a Kaldi network reads: context, normalisation, and which frame has which i-vector."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quantasr.errors import ArtifactError, AudioError, ModelLoadError
from quantasr.kaldi.cmvn import OnlineCmvn, apply_cmvn, cmvn_stats
from quantasr.kaldi.ivector import load_extractor
from quantasr.kaldi.ivector_online import ivectors_at
from quantasr.speech.frontend import KaldiFrontend, frontend_from_dict
from quantasr.speech.frontend.kaldi_features import KaldiFeatures

DATA = Path(__file__).parent.parent / "data" / "kaldi" / "ivector"
FEATURES = KaldiFeatures(num_ceps=4, use_energy=False)


def wave(seconds: float = 1.5) -> NDArray[np.float32]:
    rng = np.random.default_rng(2)
    found = rng.normal(0, 0.05, int(16000 * seconds)) * (1.5 + np.sin(np.arange(int(16000 * seconds)) / 3000))
    return found.astype(np.float32)


def looped(**changes: Any) -> KaldiFrontend:
    return replace(
        KaldiFrontend(FEATURES, 3, 5, ivector_mode="looped", extractor=load_extractor(DATA), chunk=24), **changes
    )


def test_the_ends_are_repeated_as_context() -> None:
    frontend = KaldiFrontend(FEATURES, left_context=3, right_context=5)
    features = frontend.features(wave())
    found = frontend(wave())
    assert found.shape == (3 + 148 + 5, 4)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[3:-5], features)
    np.testing.assert_array_equal(found[:3], features[[0, 0, 0]])
    np.testing.assert_array_equal(found[-5:], features[[-1] * 5])
    np.testing.assert_array_equal(frontend.from_features(features), found)
    assert (frontend.feature_dim, frontend.ivector_dim, frontend.sample_rate) == (4, 0, 16000)


def test_features_are_normalised_as_configured() -> None:
    features = FEATURES(wave())
    stats = cmvn_stats(features[:50])
    plain = KaldiFrontend(FEATURES)
    for frontend, expected in (
        (replace(plain, cmvn="global", cmvn_stats=stats, norm_vars=True), apply_cmvn(features, stats, norm_vars=True)),
        (replace(plain, cmvn="utterance"), features - features.mean(axis=0)),
        (replace(plain, cmvn="online", cmvn_stats=stats), OnlineCmvn()(features, stats)),
    ):
        np.testing.assert_allclose(frontend.from_features(features), expected, atol=1e-4)


def test_a_chunk_knows_the_frames_that_came_in_before_it_was_computed() -> None:
    # Pieces of 3200 samples: 18, 38, 58 ... frames are there; the first chunk needs 24 + 5 frames, the second 53, the
    # third 77, and then 101, 125; the last frames come when the end is known. Splicing looks 2 frames ahead.
    frontend = looped()
    assert frontend.frames_known(148, 24000).tolist() == [36, 56, 76, 116, 136, 148, 148]
    assert frontend.frames_known(148).tolist() == [36, 56, 76, 116, 136, 148, 148]
    assert looped(piece=10.0).frames_known(148, 24000).tolist() == [146] * 5 + [148, 148]
    assert looped(chunk=150).frames_known(148, 24000).tolist() == [148]


def test_each_frame_has_the_ivector_of_the_chunk_that_first_needed_its_time() -> None:
    rows = looped().chunk_of_frames(100)  # times -3 ... 104 in chunks of 24, of which the first is computed with 29
    assert rows.tolist() == [0] * (3 + 48) + [1] * 24 + [2] * 24 + [3] * 9
    assert looped(right_context=0).chunk_of_frames(100).tolist() == [0] * 27 + [1] * 24 + [2] * 24 + [3] * 24 + [4] * 4
    assert looped(right_context=25).chunk_of_frames(50).tolist() == [0] * (3 + 72) + [1] * 3


def test_the_ivectors_are_beside_the_frames() -> None:
    frontend = looped()
    found = frontend(wave())
    features = frontend.features(wave())
    assert found.shape == (156, 4 + 5)
    expected = ivectors_at(load_extractor(DATA), features, [36, 56, 76, 116, 136, 148, 148])
    np.testing.assert_array_equal(found[:, 4:], expected[frontend.chunk_of_frames(148)])
    np.testing.assert_array_equal(frontend.ivectors(features), expected)
    np.testing.assert_array_equal(frontend.from_features(features), found)


def test_periodic_ivectors_are_those_of_each_chunks_middle() -> None:
    frontend = looped(ivector_mode="periodic", chunk=51)
    features = frontend.features(wave())
    rows = ivectors_at(load_extractor(DATA), features, np.arange(0, 148, 10) + 1)
    found = frontend(wave())[:, 4:]
    # The chunks begin at 0, 51 and 102 and have 51, 51 and 46 frames; with frames 25, 76 and 124 in their middle.
    np.testing.assert_array_equal(found, rows[[2] * (3 + 51) + [7] * 51 + [12] * (46 + 5)])


def test_ivectors_may_be_given() -> None:
    frontend = KaldiFrontend(FEATURES, 3, 5, ivector_mode="given", given_dim=2, chunk=51)
    features = FEATURES(wave())
    one = frontend.from_features(features, np.array([1.0, 2.0], np.float32))
    np.testing.assert_array_equal(one[:, 4:], np.tile([1.0, 2.0], (156, 1)))
    rows = np.arange(30, dtype=np.float32).reshape(15, 2)
    np.testing.assert_array_equal(frontend.from_features(features, rows)[::51, 4:], rows[[2, 2, 7, 12]])
    # The last i-vector serves where too few were given.
    np.testing.assert_array_equal(frontend.from_features(features, rows[:5])[-1, 4:], rows[4])
    with pytest.raises(AudioError, match="name an archive"):
        frontend(wave())


def test_silence_weighs_less() -> None:
    loud = wave()
    quiet = np.concatenate([np.zeros(16000, np.float32), loud])
    frontend = looped(silence_weight=0.001)
    features = frontend.features(quiet)
    speech = frontend.speech_frames(features)
    assert not speech[:97].any()
    assert speech[100:].all()
    counts, mine = frontend.frames_known(len(features)), load_extractor(DATA)

    def weights(row: int, count: int) -> NDArray[np.float32]:
        decoded = 24 * row
        known = np.where(speech, 1.0, 0.001)[:decoded]
        return np.concatenate([known, [known[-1] if row else 0.001] * count])[:count].astype(np.float32)

    expected = ivectors_at(mine, features, counts, weights)
    np.testing.assert_array_equal(frontend.ivectors(features), expected)
    np.testing.assert_array_equal(frontend(quiet, speech), frontend(quiet))
    assert np.abs(frontend.ivectors(features) - looped().ivectors(features)).max() > 0.1
    everything = np.ones(len(features), bool)
    assert np.abs(frontend.ivectors(features, speech=everything) - expected).max() > 0.1


@pytest.mark.parametrize("mode", ["none", "given", "looped", "periodic"])
def test_the_dictionary_and_the_arrays_are_all_there_is(mode: str) -> None:
    extractor = load_extractor(DATA) if mode in ("looped", "periodic") else None
    stats = cmvn_stats(FEATURES(wave()))
    mine = KaldiFrontend(
        FEATURES,
        left_context=3,
        right_context=5,
        cmvn="online",
        online_cmvn=OnlineCmvn(100, 90, 80),
        norm_vars=True,
        cmvn_stats=stats,
        ivector_mode=mode,
        extractor=extractor,
        given_dim=7,
        chunk=21,
        piece=0.1,
        silence_weight=0.5,
    )
    again = frontend_from_dict(json.loads(json.dumps(mine.to_dict())), mine.arrays())
    assert isinstance(again, KaldiFrontend)
    assert again == mine
    assert all(np.array_equal(array, again.arrays()[name]) for name, array in mine.arrays().items())
    if mode != "given":
        np.testing.assert_array_equal(again(wave()), mine(wave()))


def test_an_artifact_without_the_arrays_is_refused() -> None:
    with pytest.raises(ArtifactError, match="array or parameter 'lda' is missing"):
        frontend_from_dict(looped().to_dict())
    with pytest.raises(ArtifactError, match="colour"):
        frontend_from_dict({**KaldiFrontend().to_dict(), "colour": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ivector_mode": "looped"}, "i-vectors 'looped' and the extractor do not go together"),
        ({"ivector_mode": "often"}, "ivector_mode 'often' is unknown"),
        ({"cmvn": "global"}, r"needs statistics of shape \[2, 5\], got none"),
        ({"cmvn": "online", "cmvn_stats": np.zeros((2, 14))}, r"got \[2, 14\]"),
        ({"left_context": -1}, "cannot be negative"),
        ({"chunk": 0}, "must be positive"),
        ({"silence_weight": 2.0}, "silence_weight is 2; it must be in 0 to 1"),
        (
            {"features": KaldiFeatures(), "ivector_mode": "looped", "extractor": load_extractor(DATA)},
            "the i-vector extractor was made for 4 features a frame, the feature configuration gives 13",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ModelLoadError, ArtifactError), match=message):
        KaldiFrontend(**{"features": FEATURES, **changes})


def test_unusable_input_is_refused() -> None:
    frontend = looped()
    assert frontend.min_samples == 400
    with pytest.raises(AudioError, match="a frame needs 400"):
        frontend(np.zeros(399, np.float32))
    with pytest.raises(AudioError, match=r"features of shape \[10, 13\]: the model reads 4 a frame"):
        frontend.from_features(np.zeros((10, 13), np.float32))
    with pytest.raises(AudioError, match=r"i-vectors of shape \[1, 3\]: the model reads 5 values"):
        frontend.from_features(np.zeros((10, 4), np.float32), np.zeros(3, np.float32))


def test_a_single_frame_is_enough() -> None:
    assert looped()(wave()[:400]).shape == (3 + 1 + 5, 9)
