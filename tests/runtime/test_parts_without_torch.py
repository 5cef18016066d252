"""Recognisers in parts: from the original to a folder that needs no framework; folders with parts not their own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_hf
import tiny_whisper
from test_without_torch import BLOCK

import quantasr
from quantasr import sample
from quantasr.artifact import MANIFEST, Artifact
from quantasr.errors import ArtifactError, EngineError
from quantasr.speech.manifest import read_manifest

MODELS = Path(__file__).parents[1] / "data"

_TRANSCRIBE = f"""{BLOCK}
from quantasr.cli import main
for folder, recording in zip(sys.argv[1::2], sys.argv[2::2]):
    assert main(["transcribe", folder, recording, "--json", "--engine", "onnxruntime"]) == 0, folder
assert not {{"torch", "transformers", "onnx", "nemo", "speechbrain"}} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Whisper of random weights, in int8."""
    folder = tmp_path_factory.mktemp("whisper")
    model = tiny_whisper.save("english", folder / "model", d_model=64, init_std=0.1)
    recordings = folder / "speech"
    recordings.mkdir()
    for i, wave in enumerate(tiny_hf.speech(0.9, 1.4)):
        soundfile.write(recordings / f"{i}.wav", wave, 16000)
    quantasr.quantize(model, folder / "int8", calibration=recordings)
    return folder / "int8"


@pytest.fixture(scope="module")
def speechbrain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained attention encoder-decoder of spoken digits, in int8."""
    folder = tmp_path_factory.mktemp("speechbrain") / "int8"
    model = quantasr.load_model(MODELS / "speechbrain" / "crdnn_attention", trust=True)
    quantasr.quantize(model, folder, calibration=sample.calibration(), limit=8)
    return folder


def test_both_are_decoded_without_their_frameworks(whisper: Path, speechbrain: Path) -> None:
    spoken = read_manifest(sample.evaluation())[0]
    tones = whisper.parent / "speech" / "0.wav"
    arguments = [str(whisper), str(tones), str(speechbrain), str(spoken.audio)]
    done = subprocess.run([sys.executable, "-c", _TRANSCRIBE, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for row, (folder, recording) in zip(rows, [(whisper, tones), (speechbrain, spoken.audio)], strict=True):
        assert row["text"] == quantasr.load(folder, engine="onnxruntime").transcribe_file(Path(recording)).text
    assert rows[1]["text"] == spoken.text


def test_the_folder_says_what_its_parts_are(whisper: Path) -> None:
    artifact = Artifact.load(whisper)
    assert list(artifact.graphs) == ["encoder", "decoder"]
    assert artifact.parts["encoder"]["inputs"]["features"]["shape"] == ["batch", "time", 16]
    assert artifact.parity["float"]["largest_difference"] < 1e-3
    assert artifact.parity["quantized_onnxruntime"]["same_argmax"] >= 0.9


def test_a_part_of_another_artifact(whisper: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(whisper, folder)
    decoder = bytearray((folder / "decoder.onnx").read_bytes())
    decoder[len(decoder) // 2] ^= 1
    (folder / "decoder.onnx").write_bytes(decoder)
    with pytest.raises(ArtifactError, match=r"decoder\.onnx: differs from its checksum") as caught:
        quantasr.load(folder)
    assert "\n" not in str(caught.value)


def test_parts_that_do_not_belong_together(whisper: Path, speechbrain: Path, tmp_path: Path) -> None:
    """Unverified, what another encoder gives is not what this decoder takes."""
    folder = tmp_path / "mixed"
    shutil.copytree(whisper, folder)
    row = Artifact.load(folder)
    for path in speechbrain.glob("encoder.onnx*"):
        shutil.copy(path, folder / path.name)
    row.write_manifest()  # as if somebody had put it together so
    with pytest.raises((ArtifactError, EngineError)) as caught:
        quantasr.load(folder, engine="onnxruntime").transcribe([np.ones(16000, np.float32) * 0.1])
    assert "encoder" in str(caught.value) and "\n" not in str(caught.value)


def test_pytorchs_own_int8_is_not_for_them(tmp_path: Path) -> None:
    model = MODELS / "nemo" / "tdt.nemo"
    with pytest.raises(EngineError, match=r"decoder \(transducer\) runs over graphs only: leave --engine torch out"):
        quantasr.quantize(model, tmp_path / "int8", calibration=sample.calibration(), engine="torch", limit=2)
    assert not (tmp_path / "int8").exists()


@pytest.mark.parametrize("missing", ["encoder.onnx", "tokenizer.json"])
def test_a_part_that_is_missing(missing: str, whisper: Path, tmp_path: Path) -> None:
    folder = tmp_path / "less"
    shutil.copytree(whisper, folder)
    (folder / missing).unlink()
    with pytest.raises(ArtifactError, match=f"{missing}: missing"):
        quantasr.load(folder)
    Artifact.load(whisper)
    row = json.loads((folder / MANIFEST).read_text("utf-8"))
    assert missing in row["files"]
