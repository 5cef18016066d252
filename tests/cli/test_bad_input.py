"""What a user can get wrong: one line that says what, where and what to do; a non-zero exit; nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from quantasr import sample
from quantasr.cli import main

RATE = 8000
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact") / "digits"
    arguments = ["quantize", str(sample.model()), str(folder), "--calibration", str(sample.calibration())]
    assert main([*arguments, "--limit", "6", "--json"]) == 0
    return folder


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A good recording, under a name of its own."""
    rows = [json.loads(line) for line in sample.evaluation().read_text().splitlines()]
    target = tmp_path / "good.ogg"
    shutil.copy(sample.evaluation().parent / rows[0]["audio_filepath"], target)
    return target


def refused(arguments: list[str], capture: Capture, *words: str, code: int = 1) -> str:
    """Run a command that must fail with one line on standard error, which holds ``words``."""
    capture.readouterr()
    assert main(arguments) == code
    lines = [line for line in capture.readouterr().err.splitlines() if line.startswith("quantasr:")]
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0]
    return lines[0]


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("this is no audio, whatever its name says\n" * 50)


def truncated(path: Path) -> None:
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, RATE), RATE)
    path.write_bytes(path.read_bytes()[:4000])


def no_samples(path: Path) -> None:
    soundfile.write(path, np.zeros(0), RATE)


def not_a_number(path: Path) -> None:
    soundfile.write(path, np.full(RATE, np.nan, np.float32), RATE, subtype="FLOAT")


@pytest.mark.parametrize("spoil", [None, empty, text, truncated, no_samples, not_a_number])
def test_a_bad_file_is_named_and_the_rest_is_transcribed(
    artifact: Path, good: Path, tmp_path: Path, capsys: Capture, spoil: Callable[[Path], None] | None
) -> None:
    bad = tmp_path / "bad.wav"
    if spoil is not None:
        spoil(bad)
    refused(["transcribe", str(artifact), str(bad)], capsys, str(bad))
    capsys.readouterr()
    assert main(["transcribe", str(artifact), str(bad), str(good)]) == 3
    found = capsys.readouterr()
    assert str(bad) in found.err
    assert found.out.startswith(f"{good}\t") and len(found.out.split("\t")[1].split()) > 0


@pytest.mark.parametrize(
    ("wave", "said"),
    [(np.zeros(RATE), "silent"), (np.sign(np.sin(np.arange(RATE) / 9)), "clipped")],
    ids=["silent", "clipped"],
)
def test_suspicious_audio_is_transcribed_and_reported(
    artifact: Path, tmp_path: Path, capsys: Capture, wave: np.ndarray, said: str
) -> None:
    soundfile.write(tmp_path / "odd.wav", wave, RATE)
    capsys.readouterr()
    assert main(["transcribe", str(artifact), str(tmp_path / "odd.wav"), "--json"]) == 3
    found = capsys.readouterr()
    row = json.loads(found.out.splitlines()[0])
    assert row["duration"] == 1.0 and np.isfinite(row["score"])
    assert "odd.wav" in found.err and said in found.err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{not json", "JSON"),
        ('{"text": "one"}', "audio_filepath"),
        ('{"audio_filepath": "nowhere.wav", "text": "one", "duration": 1.0}', "nowhere.wav"),
    ],
)
def test_a_bad_manifest_line_is_named(
    artifact: Path, good: Path, tmp_path: Path, capsys: Capture, line: str, said: str
) -> None:
    manifest = tmp_path / "test.jsonl"
    manifest.write_text(json.dumps({"audio_filepath": str(good), "text": "one"}) + f"\n{line}\n")
    refused(["evaluate", str(artifact), "--manifest", str(manifest)], capsys, f"{manifest}:2", said)


def test_a_recording_that_cannot_be_read_is_left_out_of_an_evaluation(
    artifact: Path, good: Path, tmp_path: Path, capsys: Capture
) -> None:
    truncated(tmp_path / "bad.wav")
    rows = [{"audio_filepath": str(good), "text": "one two"}, {"audio_filepath": "bad.wav", "text": "three"}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["evaluate", str(artifact), "--manifest", str(tmp_path / "test.jsonl"), "--json"]) == 3
    found = capsys.readouterr()
    assert "bad.wav" in found.err
    assert json.loads(found.out)["results"][0]["utterances"] == 1


def test_calibration_speech_is_no_evaluation_speech(artifact: Path, tmp_path: Path, capsys: Capture) -> None:
    refused(["evaluate", str(artifact), "--manifest", str(sample.calibration())], capsys, "calibration speech")
    output = tmp_path / "out"
    both = ["--calibration", str(sample.calibration()), "--evaluation", str(sample.calibration())]
    refused(["quantize", str(sample.model()), str(output), *both], capsys, "calibration")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ('format = 1\n[[rules]]\nmatch = "*.no_such_layer"\n', "no_such_layer"),
        ('format = 1\n[[rules]]\nmatch = "*"\nkind = "linear"\nmode = "float"\n', "float"),
        ('format = 1\n[[rules]]\nmatch = "*"\ninput = { observer = "psychic" }\n', "psychic"),
        ("format = 1\nrules = [", "TOML"),
    ],
)
def test_a_bad_recipe(tmp_path: Path, capsys: Capture, recipe: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(recipe)
    arguments = ["quantize", str(sample.model()), str(tmp_path / "out"), "--calibration", str(sample.calibration())]
    refused([*arguments, "--recipe", str(path)], capsys, said)
    assert list(tmp_path.iterdir()) == [path]


def test_no_calibration_data(tmp_path: Path, capsys: Capture) -> None:
    manifest = tmp_path / "none.jsonl"
    manifest.write_text("")
    refused(
        ["quantize", str(sample.model()), str(tmp_path / "out"), "--calibration", str(manifest)], capsys, str(manifest)
    )
    assert list(tmp_path.iterdir()) == [manifest]


def test_a_model_with_nan_weights(tmp_path: Path, capsys: Capture) -> None:
    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json", "vocab.json"):
        shutil.copy(sample.model() / name, model / name)
    weights = load_file(sample.model() / "model.safetensors")
    weights["lm_head.bias"][3] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    arguments = ["quantize", str(model), str(tmp_path / "out"), "--calibration", str(sample.calibration())]
    refused(arguments, capsys, "lm_head.bias", "NaN")
    assert list(tmp_path.iterdir()) == [model]


def test_a_changed_byte_in_any_file_is_found(artifact: Path, good: Path, tmp_path: Path, capsys: Capture) -> None:
    for name in sorted(path.name for path in artifact.iterdir()):
        copy = tmp_path / f"copy-{name}"
        shutil.copytree(artifact, copy)
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        refused(["transcribe", str(copy), str(good)], capsys, name)


def test_a_missing_file_and_a_newer_version(artifact: Path, good: Path, tmp_path: Path, capsys: Capture) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    (copy / "tokenizer.json").unlink()
    refused(["transcribe", str(copy), str(good)], capsys, "tokenizer.json", "missing")
    row = json.loads((copy / "artifact.json").read_text())
    (copy / "artifact.json").write_text(json.dumps({**row, "format": 99}))
    refused(["transcribe", str(copy), str(good)], capsys, "newer", "upgrade")


def test_what_exists_is_not_overwritten(artifact: Path, tmp_path: Path, capsys: Capture) -> None:
    before = {path.name: path.read_bytes() for path in artifact.iterdir()}
    arguments = ["quantize", str(sample.model()), str(artifact), "--calibration", str(sample.calibration())]
    refused(arguments, capsys, str(artifact), "overwrite")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    arguments[2] = str(tmp_path / "mine")
    refused([*arguments, "--overwrite"], capsys, "no artifact")
    assert {path.name: path.read_bytes() for path in artifact.iterdir()} == before
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


_QUANTIZE = """
import resource, signal, sys
limit = int(sys.argv.pop(1))
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from quantasr.cli import main
sys.exit(main(sys.argv[1:]))
"""


def _start(output: Path, limit: int = 0) -> subprocess.Popen[str]:
    arguments = ["quantize", str(sample.model()), str(output), "--calibration", str(sample.calibration())]
    command = [sys.executable, "-c", _QUANTIZE, str(limit), *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    # Files may grow to 300 kB: less than the graph needs, so that writing fails half way.
    process = _start(tmp_path / "out", limit=300_000)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert "Traceback" not in said and said.splitlines()[-1].startswith("quantasr: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", ["calibrating", "exporting the quantized graph"])
def test_ctrl_c_half_way_leaves_nothing(tmp_path: Path, step: str) -> None:
    process = _start(tmp_path / "out")
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(step):
            break
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    assert process.wait(timeout=60) == 130, said
    assert "Traceback" not in said and "interrupted" in said
    assert not list(tmp_path.iterdir())
