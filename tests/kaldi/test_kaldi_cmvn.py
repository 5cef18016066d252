"""Normalisation and splicing against loops that follow Kaldi's code line by line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from quantasr.errors import ModelLoadError
from quantasr.kaldi.cmvn import OnlineCmvn, apply_cmvn, cmvn_stats, read_cmvn_stats, splice, transform


def some_features(frames: int = 90, dim: int = 3) -> NDArray[np.float32]:
    rng = np.random.default_rng(5)
    return rng.normal(50, 6, (frames, dim)).astype(np.float32)


STATS = np.array([[5000.0, 4700.0, 5300.0, 100.0], [260000.0, 230000.0, 290000.0, 0.0]])
SPEAKER = np.array([[330.0, 360.0, 340.0, 7.0], [16000.0, 19000.0, 17000.0, 0.0]])


def smoothed(raw: NDArray[np.float64], cmvn: OnlineCmvn, speaker: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """OnlineCmvn::SmoothOnlineCmvnStats."""
    found = raw.copy()
    if found[0, -1] < cmvn.window and speaker is not None:
        count = min(cmvn.window - found[0, -1], cmvn.speaker_frames, speaker[0, -1])
        found += count / speaker[0, -1] * speaker
    if found[0, -1] < cmvn.window:
        found += min(cmvn.window - found[0, -1], cmvn.global_frames) / STATS[0, -1] * STATS
    return found


def naive(
    features: NDArray[np.float32], cmvn: OnlineCmvn, order: list[int], speaker: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """OnlineCmvn::GetFrame of the frames ``order``, one after the other."""
    rows, kept = [], np.zeros_like(STATS)
    for frame in order:
        row = features[frame].astype(np.float64)
        if row[0] > cmvn.min_energy:
            kept = cmvn_stats(features[max(0, frame + 1 - cmvn.window) : frame + 1])
        kept = smoothed(kept, cmvn, speaker)
        mean = kept[0, :-1] / kept[0, -1]
        scale = 1 / np.sqrt(kept[1, :-1] / kept[0, -1] - mean**2) if cmvn.norm_vars else np.ones(len(mean))
        for dim in map(int, filter(None, cmvn.skip_dims.split(":"))):
            mean[dim], scale[dim] = 0, 1
        rows.append((row - mean) * scale)
    return np.array(rows)


@pytest.mark.parametrize(
    "cmvn",
    [
        OnlineCmvn(40, 40, 15),
        OnlineCmvn(40, 30, 0),
        OnlineCmvn(40, 40, 15, norm_vars=True, skip_dims="0:2"),
        OnlineCmvn(40, 40, 15, min_energy=52.0),
        OnlineCmvn(600, 600, 200, min_energy=54.0, norm_vars=True),
    ],
    ids=["plain", "no global", "variance", "quiet frames", "mostly quiet"],
)
@pytest.mark.parametrize("speaker", [None, SPEAKER], ids=["new", "known"])
def test_online_cmvn_is_that_of_kaldi(cmvn: OnlineCmvn, speaker: NDArray[np.float64] | None) -> None:
    features = some_features()
    expected = naive(features, cmvn, list(range(len(features))), speaker)
    np.testing.assert_allclose(cmvn(features, STATS, speaker), expected, atol=2e-5)


def test_a_quiet_frame_is_normalised_by_what_was_asked_for_last() -> None:
    features, cmvn = some_features(), OnlineCmvn(40, 40, 15, min_energy=52.0)
    order = [
        min(max(frame + around, 0), len(features) - 1) for frame in range(len(features)) for around in (-1, 0, 1, 2)
    ]
    expected = naive(features, cmvn, order).reshape(len(features), -1)
    np.testing.assert_allclose(cmvn(features, STATS, left=1, right=2), expected, atol=2e-5)


def test_online_cmvn_knows_the_past_alone() -> None:
    features, cmvn = some_features(), OnlineCmvn(40, 40, 15)
    np.testing.assert_array_equal(cmvn(features[:30], STATS), cmvn(features, STATS)[:30])


def test_cmvn_takes_mean_and_variance_out() -> None:
    features = some_features()
    stats = cmvn_stats(features)
    assert stats[0, -1] == 90
    np.testing.assert_allclose(apply_cmvn(features, stats), features - features.mean(0), atol=1e-4)
    normal = apply_cmvn(features, stats, norm_vars=True)
    np.testing.assert_allclose(normal.std(0), 1.0, atol=1e-4)
    assert apply_cmvn(features, stats, norm_means=False) is features


def test_splicing_repeats_the_ends() -> None:
    rows = np.arange(3, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(splice(rows, 2, 1), [[0, 0, 0, 1], [0, 0, 1, 2], [0, 1, 2, 2]])


def test_a_matrix_may_have_an_offset() -> None:
    rows, matrix = np.array([[1.0, 2.0]], np.float32), np.array([[3.0, 4.0, 5.0]], np.float32)
    np.testing.assert_array_equal(transform(rows, matrix[:, :2]), [[11.0]])
    np.testing.assert_array_equal(transform(rows, matrix), [[16.0]])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"global_frames": 700}, "must not shrink"),
        ({"norm_means": False, "norm_vars": True}, "norm-vars without norm-means"),
        ({"skip_dims": "1,2"}, "no list like 13:14:15"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, bool], message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        OnlineCmvn(**wrong)


def test_statistics_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="do not fit features of 2 columns"):
        apply_cmvn(some_features(dim=2), STATS)
    with pytest.raises(ModelLoadError, match="count no frame"):
        apply_cmvn(some_features(), np.zeros((2, 4)))
    (tmp_path / "stats").write_text(" [ 1 2 3 ]\n")
    with pytest.raises(ModelLoadError, match=r"stats: a matrix of shape \[1, 3\] is no CMVN statistics"):
        read_cmvn_stats(tmp_path / "stats")
