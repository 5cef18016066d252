"""Native artifacts: what is saved comes back bit for bit, and what is not as it was written is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from quantasr import sample
from quantasr.artifact import Artifact
from quantasr.engines.torch_native import folder as native_folder
from quantasr.errors import ArtifactError, EngineError, ManifestError
from quantasr.measure.evaluate import evaluate
from quantasr.pipeline import quantize
from quantasr.recipes import Recipe
from quantasr.runtime import load
from quantasr.sources import load_model
from quantasr.speech.manifest import read_manifest

NEMO = Path(__file__).parents[1] / "data" / "nemo"
DYNAMIC = Recipe.from_dict(
    {"format": 1, "name": "dynamic", "rules": [{"match": "*", "kind": "linear", "mode": "dynamic"}]}
)


@pytest.fixture(scope="module")
def speech() -> list[np.ndarray]:
    return [utterance.load(8000) for utterance in read_manifest(sample.evaluation())[:4]]


def made(where: Path, model: Path | str, **options: Any) -> tuple[Artifact, Any]:
    """An artifact in ``where`` and the live model that it was made from, converted in place."""
    live = load_model(model)
    artifact = quantize(live, where, calibration=sample.calibration(), limit=6, **{"all_layers": True, **options})
    return artifact, live.transcriber(chunk_seconds=0)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("native") / "digits"
    made(where, sample.model(), engine="torch:onednn", recipe="fast")
    return where


@pytest.mark.parametrize(
    "options",
    [
        {"engine": "torch:onednn", "recipe": "fast"},
        {"engine": "torch:fbgemm", "recipe": "default"},
        {"engine": "torch:qnnpack", "recipe": "fast"},
        {"engine": "torch:x86", "recipe": DYNAMIC},
        {"engine": "torch:onednn", "recipe": "fast", "compute": "bf16"},
        {"engine": "torch:float", "compute": "fp16"},
    ],
    ids=["onednn", "fbgemm", "qnnpack", "dynamic", "bf16", "fp16"],
)
def test_reloaded_it_gives_every_bit(options: dict[str, Any], tmp_path: Path, speech: list[np.ndarray]) -> None:
    artifact, live = made(tmp_path / "native", sample.model(), **options)
    again = load(artifact.folder, chunk_seconds=0)
    for left, right in zip(live.logprobs(speech), again.logprobs(speech), strict=True):
        assert left.dtype == right.dtype == np.float32
        assert np.array_equal(left, right)
    assert again.engine.name == options["engine"] and again.engine.compute == options.get("compute", "fp32")
    assert again.transcribe(speech)[0].text == live.transcribe(speech)[0].text


def test_a_nemo_model_comes_back_too(tmp_path: Path) -> None:
    speech = [utterance.load(16000) for utterance in read_manifest(sample.evaluation())[:3]]
    artifact, live = made(tmp_path / "native", NEMO / "quartznet.nemo", engine="torch:onednn", recipe="fast")
    again = load(artifact, chunk_seconds=0)
    assert all(np.array_equal(a, b) for a, b in zip(live.logprobs(speech), again.logprobs(speech), strict=True))
    # A chain of convolutions with residual sums is entered and left once.
    assert (artifact.measured["entries"], artifact.measured["exits"]) == (1, 1)
    assert artifact.measured["int8_share"] == 1.0
    assert artifact.parity["native_to_simulation"]["same_argmax"] >= 0.99


def test_the_folder_holds_numbers_and_text(digits: Path) -> None:
    for path in digits.iterdir():
        assert path.suffix in (".json", ".toml", ".safetensors")
    with safe_open(digits / "model.safetensors", "pt") as tensors:
        names = list(tensors.keys())
        integers = [name for name in names if name.startswith("quantasr.integers.")]
        assert integers and all(str(tensors.get_slice(name).get_dtype()) == "I8" for name in integers)
        for name in integers:  # no float copy of what is in int8
            assert name.removeprefix("quantasr.integers.") + ".weight" not in names


def test_calibration_speech_is_refused(digits: Path) -> None:
    with pytest.raises(ManifestError, match="calibration speech"):
        evaluate(load(digits), sample.calibration())


def test_an_engine_that_it_was_not_made_for(digits: Path) -> None:
    with pytest.raises(EngineError, match=r"was made for engine torch:onednn, not openvino"):
        load(digits, engine="openvino")
    with pytest.raises(EngineError, match=r"was made for compute fp32, not bf16"):
        load(digits, compute="bf16")
    assert load(digits, engine="torch").engine.name == "torch:onednn"


def test_a_backend_that_pytorch_lacks(digits: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", ["fbgemm"])
    with pytest.raises(EngineError, match=r"has no backend onednn; it has fbgemm"):
        load(digits)
    with pytest.raises(EngineError, match=r"has no backend qnnpack"):
        quantize(sample.model(), tmp_path / "out", calibration=sample.calibration(), engine="torch:qnnpack", limit=1)
    assert not (tmp_path / "out").exists()


def test_every_byte_counts(digits: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "native.json", "config.json"):
        copy = tmp_path / name
        shutil.copytree(digits, copy)
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        with pytest.raises(ArtifactError, match=name):
            load(copy)


def _without(row: dict[str, Any]) -> None:
    del row["layers"][0]["geometry"]


def _elsewhere(row: dict[str, Any]) -> None:
    row["layers"][0]["path"] = "no.such.layer"


def _newer(row: dict[str, Any]) -> None:
    row["format"] = 99


def _unfolded(row: dict[str, Any]) -> None:
    row["folded"] = ["no.such.norm"]


@pytest.mark.parametrize("spoil", [_without, _elsewhere, _newer, _unfolded])
def test_a_malformed_description(spoil: Callable[[dict[str, Any]], None], digits: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(digits, copy)
    row = json.loads((copy / "native.json").read_text())
    spoil(row)
    (copy / "native.json").write_text(json.dumps(row))
    Artifact.load(digits).__class__.load(digits)
    replace(Artifact.load(digits), folder=copy).write_manifest()
    with pytest.raises(ArtifactError, match=str(copy)):
        load(copy)


def test_sums_cannot_go_in_circles() -> None:
    row = {
        "sums": [{"name": "a", "scale": 1.0, "zero_point": 0, "relu": False, "into": "a"}],
        "layers": [],
        "dynamic": [],
    }
    with pytest.raises(ValueError, match="goes into itself"):
        native_folder.read_plan(row, native_folder.Backend("onednn"))
