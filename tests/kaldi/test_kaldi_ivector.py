"""I-vectors against Kaldi's own (``tests/data/kaldi/ivector``), and extractors that are not what they should be."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quantasr.errors import ModelLoadError
from quantasr.kaldi.cmvn import NO_MIN_ENERGY, OnlineCmvn
from quantasr.kaldi.ivector import IvectorExtractor, IvectorOptions, load_extractor
from quantasr.kaldi.ivector_online import OnlineIvectors, ivectors_at

DATA = Path(__file__).parent.parent / "data" / "kaldi" / "ivector"
KALDI: dict[str, Any] = {"options": {"max_count": 0.0}, "cmvn": {"min_energy": NO_MIN_ENERGY}}


@pytest.fixture(scope="module")
def golden() -> dict[str, NDArray[np.float32]]:
    return dict(np.load(DATA / "golden.npz"))


def extractor(options: dict[str, Any], cmvn: dict[str, Any]) -> IvectorExtractor:
    found = load_extractor(DATA)
    return replace(found, options=replace(found.options, **options), cmvn=replace(found.cmvn, **cmvn))


@pytest.mark.parametrize(
    ("name", "options", "cmvn"),
    [
        ("kaldi", {}, {}),
        ("vosk", {"max_count": 100.0}, {"min_energy": 50.0}),
        (
            "max_count",
            {"max_count": 3.0, "num_gselect": 2, "min_post": 0.1, "posterior_scale": 0.5, "ivector_period": 7},
            {},
        ),
        ("online_cmvn", {"online_cmvn_iextractor": True, "min_post": 0.0}, {"norm_vars": True, "skip_dims": "1"}),
        ("weighted", {}, {}),
    ],
)
def test_ivectors_are_those_of_kaldi(
    golden: dict[str, NDArray[np.float32]], name: str, options: dict[str, Any], cmvn: dict[str, Any]
) -> None:
    mine = extractor(KALDI["options"] | options, KALDI["cmvn"] | cmvn)
    features = golden["features"]
    counts = np.arange(0, len(features), mine.options.ivector_period) + 1
    weights = (lambda row, count: golden["weights"][:count]) if name == "weighted" else None
    np.testing.assert_allclose(ivectors_at(mine, features, counts, weights), golden[name], atol=1e-5)


def test_what_vosk_sets_is_known_by_its_splice_conf(tmp_path: Path) -> None:
    vosk = load_extractor(DATA)
    assert (vosk.options.max_count, vosk.cmvn.min_energy) == (100.0, 50.0)
    folder = shutil.copytree(DATA, tmp_path / "extractor")
    (folder / "splice.conf").unlink()
    (folder / "splice_opts").write_text("--left-context=1 --right-context=2\n")
    kaldi = load_extractor(folder)
    assert kaldi.options == IvectorOptions(1, 2)
    assert kaldi.cmvn == OnlineCmvn(40, 40, 15)
    assert load_extractor(folder, max_count=7.0).options.max_count == 7.0


def test_a_configuration_names_the_files(tmp_path: Path) -> None:
    folder = shutil.copytree(DATA, tmp_path / "extractor")
    (tmp_path / "conf").mkdir()
    lines = [
        *("--lda-matrix=extractor/final.mat", "--global-cmvn-stats=/where/it/was/made/global_cmvn.stats"),
        *("--cmvn-config=online_cmvn.conf", "--splice-config=extractor/splice.conf", "--ivector-period=7"),
        *("--diag-ubm=extractor/final.dubm", f"--ivector-extractor={folder}/final.ie", "--max-count=3"),
    ]
    shutil.move(folder / "online_cmvn.conf", tmp_path / "conf")
    shutil.move(folder / "global_cmvn.stats", tmp_path / "conf")
    (tmp_path / "conf" / "ivector_extractor.conf").write_text("\n".join(lines))
    found = load_extractor(tmp_path)
    assert (found.options.ivector_period, found.options.max_count, found.options.splice_right) == (7, 3.0, 2)
    assert found.cmvn.min_energy == NO_MIN_ENERGY
    assert found.feature_dim == 4
    assert found.ivector_dim == 5
    (tmp_path / "conf" / "ivector_extractor.conf").write_text("\n".join(lines[1:]))
    with pytest.raises(ModelLoadError, match=r"ivector_extractor\.conf: option --lda-matrix is missing"):
        load_extractor(tmp_path)


def test_frames_are_taken_back_by_negative_weights(golden: dict[str, NDArray[np.float32]]) -> None:
    mine, features = extractor(**KALDI), golden["features"]
    plain, changed = OnlineIvectors(mine, features), OnlineIvectors(mine, features)
    plain.add(np.arange(20, 60), np.ones(40, np.float32))
    changed.add(np.arange(60), np.ones(60, np.float32))
    changed.add(np.arange(20), -np.ones(20, np.float32))
    np.testing.assert_allclose(changed.ivector(), plain.ivector(), atol=1e-4)


def test_without_frames_there_is_the_prior(golden: dict[str, NDArray[np.float32]]) -> None:
    np.testing.assert_array_equal(OnlineIvectors(extractor(**KALDI), golden["features"]).ivector(), np.zeros(5))


def test_the_dictionary_and_the_arrays_are_all_there_is() -> None:
    mine = load_extractor(DATA)
    again = IvectorExtractor.from_dict(mine.to_dict(), mine.arrays())
    assert again == mine
    assert again != replace(mine, prior_offset=1.0)


def wide(values: NDArray[np.float32], axis: int = 0) -> NDArray[np.float32]:
    return np.concatenate([values, values], axis=axis)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: {"options": replace(e.options, splice_left=3)}, "the matrix takes 17 values, but 4 features of"),
        (lambda e: {"lda": e.lda[1:]}, "the matrix gives 5 values, the UBM has 6"),
        (lambda e: {"means": e.means[1:]}, r"extractor of \[7, 6, 5\], UBM 8 x 6"),
        (lambda e: {"ubm_weights": wide(e.ubm_weights)}, "16 weights of 8 Gaussians"),
        (lambda e: {"ubm_inv_vars": wide(e.ubm_inv_vars)}, "means and variances differ in shape"),
        (lambda e: {"ubm_inv_vars": -e.ubm_inv_vars}, "impossible values"),
        (lambda e: {"inverse_variances": wide(e.inverse_variances, 1)}, "variances and means do not fit"),
    ],
)
def test_parts_of_different_sizes_are_refused(
    change: Callable[[IvectorExtractor], dict[str, Any]], message: str
) -> None:
    mine = load_extractor(DATA)
    with pytest.raises(ModelLoadError, match=message):
        replace(mine, **change(mine))


@pytest.mark.parametrize("field", ["min_post", "posterior_scale", "num_gselect", "ivector_period", "max_count"])
def test_impossible_options_are_refused(field: str) -> None:
    with pytest.raises(ModelLoadError, match=field.replace("_", "-")):
        IvectorOptions(**{field: -1})


def test_features_of_another_model_are_refused() -> None:
    with pytest.raises(ModelLoadError, match=r"made for 4 features a frame, these are of shape \[3, 7\]"):
        OnlineIvectors(load_extractor(DATA), np.zeros((3, 7), np.float32))


@pytest.mark.parametrize("name", ["final.ie", "final.dubm", "final.mat", "global_cmvn.stats", "splice.conf"])
def test_missing_and_damaged_files_are_refused(tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(DATA, tmp_path / "ivector")
    path = folder / name
    whole = path.read_bytes()
    for size in (0, len(whole) // 3, len(whole) - 12):
        path.write_bytes(whole[:size])
        if name == "splice.conf" and size in (0, len(whole) - 12):
            continue  # lacks an option, which then has its default, and does not fit
        with pytest.raises(ModelLoadError) as found:
            load_extractor(folder)
        assert name in str(found.value)
        assert "\n" not in str(found.value)
    path.unlink()
    with pytest.raises(ModelLoadError, match="there is no such file"):
        load_extractor(folder)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(DATA, tmp_path / "ivector")
    (folder / "final.mat").write_text(" [ 1 nan 3 ]\n")
    with pytest.raises(ModelLoadError, match=r"final\.mat: holds values that are not finite"):
        load_extractor(folder)
