"""Hybrid models of Kaldi's in PyTorch's own int8: on every backend, on disk and back, they give the same text."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantasr import sample
from quantasr.errors import ArtifactError, ModelLoadError
from quantasr.measure.evaluate import evaluate
from quantasr.pipeline import quantize
from quantasr.recipes import Recipe, Rule
from quantasr.recipes.recipe import QConfig
from quantasr.runtime import load
from quantasr.sources import load_model, rebuild_model
from quantasr.speech.manifest import read_manifest

DIGITS = Path(__file__).parents[1] / "data" / "kaldi" / "digits"
UTTERANCES = read_manifest(sample.evaluation())[20:28]
WAVES = [utterance.load(8000) for utterance in UTTERANCES]
DYNAMIC = Recipe(
    "dynamic", (Rule("*"), Rule("lda", {"mode": "float"}), Rule("tdnn1.affine", {"mode": "float"})), QConfig("dynamic")
)


def made(where: Path, engine: str, recipe: Recipe | str = "default") -> tuple[Any, Any]:
    """The folder read back, and the live model that it was made from."""
    live = load_model(DIGITS)
    quantize(live, where, calibration=sample.calibration(), limit=4, engine=engine, recipe=recipe, all_layers=True)
    return load(where), live


@pytest.mark.parametrize("backend", ["onednn", "x86", "fbgemm", "qnnpack"])
def test_static_scales_on_every_backend(backend: str, tmp_path: Path) -> None:
    original = evaluate(load_model(DIGITS).transcriber(), UTTERANCES)
    again, live = made(tmp_path / "native", f"torch:{backend}")
    for one, other in zip(live.logprobs(WAVES), again.logprobs(WAVES), strict=True):
        assert np.array_equal(one, other)
        assert one.std(0).mean() > 0.5  # outputs without scales of their own would be one and the same everywhere
    artifact = again.artifact
    assert artifact.measured["int8_layers"] == 16 and artifact.measured["int8_share"] > 0.6
    assert artifact.parity["native_to_original"]["same_argmax"] > 0.9
    assert evaluate(again, UTTERANCES).wer.rate == original.wer.rate <= 0.05


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
def test_scales_from_each_call(backend: str, tmp_path: Path) -> None:
    original = evaluate(load_model(DIGITS).transcriber(), UTTERANCES)
    again, live = made(tmp_path / "native", f"torch:{backend}", DYNAMIC)
    for one, other in zip(live.logprobs(WAVES), again.logprobs(WAVES), strict=True):
        assert np.array_equal(one, other)
    assert again.artifact.measured["int8_layers"] == 16 and again.artifact.measured["int8_share"] > 0.6
    assert again.artifact.parity["native_to_original"]["same_argmax"] > 0.9
    assert evaluate(again, UTTERANCES).wer.rate == original.wer.rate


def test_the_folder_tells_the_model_but_for_weights_and_graph(tmp_path: Path) -> None:
    model = load_model(DIGITS)
    for name, content in model.files.items():
        (tmp_path / name).write_bytes(content)
    assert sum(len(content) for content in model.files.values()) < 60_000
    again = rebuild_model("kaldi", tmp_path)
    assert not any(p.any() for name, p in again.module.named_parameters() if name.endswith("weight"))
    again.module.load_state_dict(model.module.state_dict())
    for one, other in zip(model.logprobs(WAVES[:2]), again.logprobs(WAVES[:2]), strict=True):
        assert np.array_equal(one, other)
    for field in ("name", "family", "frontend", "padded_batches", "frame_seconds", "min_samples", "provenance"):
        assert getattr(again, field) == getattr(model, field)
    assert again.files == model.files


@pytest.mark.parametrize("spoilt", ["skeleton.mdl.gz", "kaldi.json"])
def test_a_folder_that_describes_no_model(spoilt: str, tmp_path: Path) -> None:
    for name, content in load_model(DIGITS).files.items():
        (tmp_path / name).write_bytes(content[: len(content) // 2] if name == spoilt else content)
    with pytest.raises(ModelLoadError, match=rf"^{tmp_path}: "):
        rebuild_model("kaldi", tmp_path)
    (tmp_path / spoilt).unlink()
    with pytest.raises(ModelLoadError, match=rf"^{tmp_path}: "):
        rebuild_model("kaldi", tmp_path)


def test_every_byte_counts(tmp_path: Path) -> None:
    again, _ = made(tmp_path / "native", "torch:onednn")
    shutil.copytree(tmp_path / "native", tmp_path / "copy")
    content = bytearray((tmp_path / "copy" / "skeleton.mdl.gz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "copy" / "skeleton.mdl.gz").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"skeleton\.mdl\.gz"):
        load(tmp_path / "copy")
    assert again.transcribe(WAVES[:1])[0].words
