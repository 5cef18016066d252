"""Models made again from `CtcModel.files` and somebody's weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_hf
import tiny_nemo

from quantasr.errors import ModelLoadError
from quantasr.sources import CtcModel, load_model, rebuild_model

SPEECH = tiny_hf.speech(1.0, 0.5)


def _again(model: CtcModel, folder: Path) -> CtcModel:
    for name, content in model.files.items():
        (folder / name).write_bytes(content)
    return rebuild_model(model.provenance["source"], folder)


def _check(model: CtcModel, again: CtcModel) -> None:
    again.module.load_state_dict(model.module.state_dict())
    for one, other in zip(model.transcriber().logprobs(SPEECH), again.transcriber().logprobs(SPEECH), strict=True):
        np.testing.assert_array_equal(one, other)
    for field in ("name", "family", "frontend", "tokenizer", "padded_batches", "frame_seconds", "min_samples"):
        assert getattr(again, field) == getattr(model, field)
    assert again.provenance == model.provenance
    assert again.files == model.files


@pytest.mark.parametrize("name", ["wav2vec2-base", "wav2vec2-large", "hubert-batch-norm", "bert-adapter"])
def test_a_hugging_face_model(name: str, tiny_hf_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model = load_model(tiny_hf_folder(name))
    _check(model, _again(model, tmp_path))


@pytest.mark.parametrize("name", ["quartznet", "citrinet", "conformer", "fastconformer-local", "hybrid-bpe"])
def test_a_nemo_model(name: str, tiny_nemo_file: Callable[[str], Path], tmp_path: Path) -> None:
    model = load_model(tiny_nemo.ctc(tiny_nemo_file(name)))
    _check(model, _again(model, tmp_path))


def test_fixed_statistics_of_features_are_kept(tiny_nemo_file: Callable[[str], Path], tmp_path: Path) -> None:
    fixed = {"fixed_mean": [float(i) for i in range(16)], "fixed_std": [2.0] * 16}
    file = tiny_nemo.edited(
        tiny_nemo_file("quartznet"), tmp_path / "model.nemo", lambda row: row["preprocessor"].update(normalize=fixed)
    )
    _check(load_model(file), _again(load_model(file), tmp_path))


@pytest.mark.parametrize("source", ["nemo", "huggingface", "kaldi"])
@pytest.mark.parametrize("content", [None, "{", "{}", "[]"])
def test_a_folder_that_does_not_describe_one(source: str, content: str | None, tmp_path: Path) -> None:
    if content is not None:
        for name in ("nemo.json", "huggingface.json", "config.json", "kaldi.json"):
            (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(ModelLoadError, match=rf"^{tmp_path}: "):
        rebuild_model(source, tmp_path)


def test_an_unknown_source(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="source 'kaldy' is unknown: choose one of nemo, speechbrain, kaldi"):
        rebuild_model("kaldy", tmp_path)
