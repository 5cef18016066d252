"""The command line with PyTorch's own int8: made, transcribed, evaluated, timed and inspected like any artifact."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quantasr import sample

EVALUATION = ("--manifest", sample.evaluation(), "--limit", "6")


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from quantasr.cli import main

    where = tmp_path_factory.mktemp("native") / "digits"
    made = ["quantize", str(sample.model()), str(where), "--calibration", str(sample.calibration()), "--limit", "4"]
    assert main([*made, "--engine", "torch:onednn", "--recipe", "fast", "--all-layers"]) == 0
    return where


def recording() -> Path:
    row = json.loads(sample.evaluation().read_text().splitlines()[0])
    return sample.evaluation().parent / row["audio_filepath"]


def test_the_fastest_backend_is_measured_and_everything_said(tmp_path: Path, quantasr_cli: Any) -> None:
    made = ["quantize", sample.model(), tmp_path / "out", "--calibration", sample.calibration(), "--limit", "3"]
    ran = quantasr_cli(*made, "--engine", "torch", "--json")
    assert ran.code == 0
    row = json.loads(ran.out)
    measured = row["measured"]
    times = measured["milliseconds"]
    assert {"float", "original"} < set(times)
    backend = json.loads((tmp_path / "out" / "native.json").read_text())["backend"]
    # One whose inputs have 7 bits must be faster by a twentieth.
    assert times[backend] <= 1.05 * min(value for name, value in times.items() if name not in ("float", "original"))
    assert 0 < measured["int8_share"] < 1 and measured["entries"] == measured["exits"]
    assert row["parity"]["native_to_simulation"]["same_argmax"] >= 0.99
    # A model that gains nothing is made all the same, and said to gain nothing.
    slower = times[backend] >= min(times["float"], times["original"])
    assert bool(measured["slower_than_float"]) == slower == ("no faster than" in ran.err)


def test_a_native_folder_goes_wherever_an_artifact_goes(native: Path, quantasr_cli: Any) -> None:
    said = quantasr_cli("transcribe", native, recording())
    assert said.code == 0 and said.out == quantasr_cli("transcribe", sample.model(), recording()).out

    ran = quantasr_cli("evaluate", sample.model(), native, *EVALUATION, "--json")
    original, int8 = json.loads(ran.out)["results"]
    assert "torch:onednn" in int8["system"]
    assert abs(int8["wer"]["rate"] - original["wer"]["rate"]) <= 0.1

    audit = json.loads(quantasr_cli("inspect", native, "--json").out)["audit"]
    assert audit["engine"] == "torch:onednn" and audit["int8_share"] > 0.6
    executed = {row["path"]: row["executed"] for row in audit["layers"]}
    assert executed["wav2vec2.encoder.layers.0.feed_forward.output_dense"] == "int8"
    assert executed["lm_head"] == "fp32"


def test_the_table_says_what_runs_in_int8_and_what_does_not(native: Path, quantasr_cli: Any) -> None:
    ran = quantasr_cli("inspect", native)
    assert "the recipe leaves it float" in ran.out and "int8" in ran.out


def test_one_table_for_original_native_and_graphs(native: Path, sample_artifact: Any, quantasr_cli: Any) -> None:
    options = ["--original", sample.model(), "--rounds", "2", "--seconds", "1", *EVALUATION, "--json"]
    ran = quantasr_cli("bench", native, sample_artifact("default"), "--no-memory", *options)
    rows = json.loads(ran.out)
    labels = [row["label"] for row in rows]
    assert labels[0].startswith("original") and labels[1].endswith("torch:onednn fp32")
    assert any("onnxruntime" in label for label in labels) and any("openvino" in label for label in labels)
    for row in rows:
        assert row["p50_seconds"] > 0 and row["p95_seconds"] >= row["p50_seconds"] and row["rtf"] > 0
        assert row["wer"]["rate"] <= 0.3 and row["size_bytes"] > 0
    assert rows[0]["int8_share"] is None and rows[1]["int8_share"] > 0.6


def test_an_engine_that_it_was_not_made_for(native: Path, quantasr_cli: Any) -> None:
    ran = quantasr_cli("transcribe", native, recording(), "--engine", "onnxruntime")
    assert ran.code == 1 and "was made for engine torch:onednn" in ran.err and len(ran.complaints) == 1


def test_without_pytorch_a_native_folder_says_what_it_needs(native: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from quantasr.cli import main\n"
        f"sys.exit(main(['transcribe', {str(native)!r}, {str(recording())!r}]))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.strip().endswith("runs in PyTorch, which lacks torch: pip install 'quantasr[quantize]'")
    assert len(ran.stderr.strip().splitlines()) == 1


def test_options_that_make_no_sense(tmp_path: Path, quantasr_cli: Any) -> None:
    made = ["quantize", sample.model(), tmp_path / "out", "--calibration", sample.calibration()]
    ran = quantasr_cli(*made, "--compute", "bf16")
    assert ran.code == 1 and "--engine" in ran.err
    assert not (tmp_path / "out").exists()
