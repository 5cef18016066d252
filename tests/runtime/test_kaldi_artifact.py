"""Artifacts of Kaldi models: graph, features and decoding graph in one folder, on every engine, by every command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_kaldi

from quantasr import sample
from quantasr.artifact import Artifact
from quantasr.engines import ENGINES
from quantasr.errors import ArtifactError
from quantasr.pipeline import quantize
from quantasr.runtime import load
from quantasr.sources import load_model
from quantasr.speech.manifest import read_manifest
from quantasr.speech.transcript import Transcript

DIGITS = tiny_kaldi.DIGITS
UTTERANCES = read_manifest(sample.evaluation())[20:30]
WAVES = [utterance.load(8000) for utterance in UTTERANCES]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    where = tmp_path_factory.mktemp("kaldi") / "digits"
    return quantize(DIGITS, where, calibration=sample.calibration(), limit=16)


@pytest.fixture(scope="module")
def original() -> list[Transcript]:
    return load_model(DIGITS).transcriber().transcribe(WAVES)


def test_it_holds_all_that_decodes(artifact: Artifact) -> None:
    files = {path.name for path in artifact.folder.iterdir()}
    assert {"graph.onnx", "HCLG.fst", "words.txt", "transitions.npy"} <= files
    assert artifact.decoder == "lattice" and artifact.tokenizer is None and artifact.family == "kaldi"
    for name in ("HCLG.fst", "words.txt"):
        assert (artifact.folder / name).read_bytes() == (DIGITS / "graph" / name).read_bytes()
    assert artifact.parity["float"]["largest_difference"] < 1e-3


@pytest.mark.parametrize("engine", list(ENGINES))
def test_the_same_words_on_every_engine(engine: str, artifact: Artifact, original: list[Transcript]) -> None:
    recogniser = load(artifact.folder, engine=engine, compute="fp32", threads=1)
    for found, expected, utterance in zip(recogniser.transcribe(WAVES), original, UTTERANCES, strict=True):
        assert found.text == expected.text == utterance.text
        assert [word.text for word in found.words] == [word.text for word in expected.words]
        for one, other in zip(found.words, expected.words, strict=True):
            assert abs(one.start - other.start) < 0.1 and abs(one.end - other.end) < 0.1


def test_extractors_of_i_vectors_go_along(tmp_path: Path) -> None:
    where = tiny_kaldi.with_ivectors(tmp_path / "model")
    model = load_model(where)
    assert model.frontend.ivector_dim == 5
    expected = model.logprobs(WAVES[:2])
    graph = quantize(load_model(where), tmp_path / "graph", calibration=sample.calibration(), limit=2)
    native = quantize(model, tmp_path / "native", calibration=sample.calibration(), limit=2, engine="torch:float")
    shutil.rmtree(where)
    for artifact in (graph, native):
        assert "frontend.npz" in artifact.files
        again = load(artifact.folder)
        assert again.frontend == model.frontend and again.frontend.extractor == model.frontend.extractor
        assert again.transcribe(WAVES[:1])[0].duration > 0
    for one, other in zip(load(native.folder).logprobs(WAVES[:2]), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert graph.parity["float"]["largest_difference"] < 1e-3


def recording() -> Path:
    row = json.loads(sample.evaluation().read_text().splitlines()[20])
    return sample.evaluation().parent / row["audio_filepath"]


def test_by_every_command(artifact: Artifact, original: list[Transcript], quantasr_cli: Any) -> None:
    said = quantasr_cli("transcribe", artifact.folder, recording(), "--json", "--engine", "onnxruntime")
    row = json.loads(said.out)
    assert row["text"] == original[0].text and len(row["words"]) == len(row["text"].split())

    manifest = ("--manifest", sample.evaluation(), "--limit", "8", "--engine", "onnxruntime")
    ran = quantasr_cli("evaluate", DIGITS, artifact.folder, *manifest, "--json")
    results = json.loads(ran.out)["results"]
    assert results[0]["wer"]["rate"] == results[1]["wer"]["rate"] < 0.05

    ran = quantasr_cli("inspect", artifact.folder, "--engine", "onnxruntime", "--json")
    layers = {layer["path"]: layer for layer in json.loads(ran.out)["audit"]["layers"]}
    # Every product is found in the layer that it belongs to, though ``tdnnf4`` is no module that is ever called.
    assert {path: row["kind"] for path, row in layers.items() if row["kind"] not in ("conv2d", "linear")} == {}
    assert layers["tdnnf4.linear"]["executed"] == "int8" and layers["lda"]["executed"] == "fp32"
    assert "tdnnf4.affine" in quantasr_cli("inspect", artifact.folder, "--engine", "onnxruntime").out


def test_without_pytorch(artifact: Artifact, original: list[Transcript]) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['onnx'] = None\n"
        "from quantasr.cli import main\n"
        f"sys.exit(main(['transcribe', {str(artifact.folder)!r}, {str(recording())!r}, '--engine', 'onnxruntime']))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (0, original[0].text), ran.stderr


def test_a_decoding_graph_that_was_changed(artifact: Artifact, tmp_path: Path) -> None:
    shutil.copytree(artifact.folder, tmp_path / "copy")
    with (tmp_path / "copy" / "words.txt").open("a") as file:
        file.write("eleven 99\n")
    with pytest.raises(ArtifactError, match=r"words\.txt: differs from its checksum"):
        load(tmp_path / "copy")
    (tmp_path / "copy" / "HCLG.fst").unlink()
    with pytest.raises(ArtifactError, match=r"HCLG\.fst"):
        load(tmp_path / "copy")
