"""An artifact as a recogniser."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_hf

import quantasr
from quantasr import sample
from quantasr.artifact import Artifact
from quantasr.engines import ENGINES
from quantasr.errors import ArtifactError, EngineError, RecipeError
from quantasr.recipes import builtin_recipe
from quantasr.runtime import ArtifactTranscriber
from quantasr.sources import load_model
from quantasr.speech.manifest import Utterance, read_manifest
from quantasr.speech.scoring import score


@pytest.fixture
def folder(sample_artifact: Callable[[str], Path]) -> Path:
    return sample_artifact("default")


def test_a_folder_a_path_and_an_artifact_are_the_same(folder: Path) -> None:
    utterance = read_manifest(sample.evaluation())[20]
    wave = utterance.load(8000)
    found = {
        quantasr.load(where, engine="onnxruntime").transcribe([wave])[0].text
        for where in (folder, str(folder), Artifact.load(folder))
    }
    assert found == {utterance.text}


@pytest.mark.parametrize("engine", ENGINES)
def test_it_says_what_the_original_says_with_its_times(engine: str, folder: Path) -> None:
    original = load_model(sample.model()).transcriber()
    recogniser = quantasr.load(folder, engine=engine, compute="fp32")
    assert recogniser.name == f"digits-wav2vec2-default [{engine} fp32]"
    assert recogniser.sample_rate == 8000
    for utterance in read_manifest(sample.evaluation())[30:34]:
        wave = utterance.load(8000)
        (left,), (right,) = original.transcribe([wave]), recogniser.transcribe([wave])
        assert left.text == right.text
        for a, b in zip(left.words, right.words, strict=True):
            assert abs(a.start - b.start) <= 0.04  # two frames
            assert abs(a.end - b.end) <= 0.04


def test_long_recordings_are_cut_and_files_are_streamed(folder: Path, tmp_path: Path) -> None:
    utterances = read_manifest(sample.evaluation())[:12]
    pause = np.zeros(8000, np.float32)
    wave = np.concatenate([part for u in utterances for part in (u.load(8000), pause)])
    soundfile.write(tmp_path / "long.wav", wave, 8000, subtype="FLOAT")
    cut = quantasr.load(folder, engine="onnxruntime", chunk_seconds=10.0, overlap_seconds=3.0, batch_size=2)
    text = cut.transcribe([wave])[0].text
    # In a window that begins within a word the sample may leave a space out; a lost second would cost ten letters.
    assert score([" ".join(str(u.text) for u in utterances)], [text], "character").rate <= 0.05
    assert cut.transcribe_file(tmp_path / "long.wav").text == text


def test_the_recipes_engine_is_the_default(
    tiny_hf_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model without padding, whose graph gives no frame counts, with its weights beside the graph."""
    from dataclasses import replace

    from quantasr.export import graph

    monkeypatch.setattr(graph, "_EXTERNAL_ABOVE", 0)
    soundfile.write(tmp_path / "a.wav", tiny_hf.speech(1.0)[0], 16000)
    speech = [Utterance("a", tmp_path / "a.wav", "x")]
    recipe = replace(builtin_recipe("wav2vec2", "fast"), engine="openvino", compute="fp32")
    model = load_model(tiny_hf_folder("wav2vec2-base"))
    artifact = quantasr.quantize(model, tmp_path / "artifact", calibration=speech, recipe=recipe)
    assert (artifact.engine, artifact.compute, artifact.padded_batches, artifact.round_up) == (
        *("openvino", "fp32"),
        *(False, 1),
    )
    assert artifact.weights() == tmp_path / "artifact" / "graph.onnx.data"

    recogniser = quantasr.load(artifact, threads=1)
    assert (recogniser.engine.name, recogniser.engine.compute) == ("openvino", "fp32")
    other = quantasr.load(artifact, engine="onnxruntime", threads=1)
    waves = [tiny_hf.speech(1.0)[0], tiny_hf.speech(0.7)[0], tiny_hf.speech(0.7)[0][::-1].copy()]
    for left, right in zip(recogniser.logprobs(waves), other.logprobs(waves), strict=True):
        assert left.shape == right.shape
        assert (left.argmax(-1) == right.argmax(-1)).mean() > 0.9

    weights = artifact.weights()
    assert weights is not None
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"graph\.onnx\.data: differs from its checksum"):
        quantasr.load(artifact.folder)


def test_options_of_the_recogniser_are_passed_on(folder: Path) -> None:
    assert quantasr.load(folder, engine="onnxruntime", name="mine").name == "mine"
    with pytest.raises(RecipeError, match="batch_size is 0"):
        quantasr.load(folder, engine="onnxruntime", batch_size=0)
    for options, complaint in (
        ({"engine": "tensorrt"}, "engine 'tensorrt' is unknown"),
        ({"engine": "onnxruntime", "compute": "bf16"}, "CPU kernels have none"),
        ({"threads": -2}, "threads = -2"),
    ):
        with pytest.raises(EngineError, match=complaint):
            quantasr.load(folder, **options)


def test_verification_can_be_left_out(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    text = (copy / "recipe.toml").read_text()
    (copy / "recipe.toml").write_text(text.replace("int8", "INT8"))
    with pytest.raises(ArtifactError, match=r"recipe\.toml"):
        quantasr.load(copy, engine="onnxruntime")
    assert isinstance(quantasr.load(copy, engine="onnxruntime", verify=False), ArtifactTranscriber)
