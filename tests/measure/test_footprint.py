"""Memory and load time of a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from quantasr import sample
from quantasr.errors import EngineError
from quantasr.measure.footprint import footprint, peak_memory

MIB = 1 << 20


def test_the_peak_is_what_was_taken_at_most_and_not_what_the_parent_had() -> None:
    ballast = np.ones(300 * MIB // 8)  # of this process, which the children do not have
    code = (
        "import sys; from quantasr.measure.footprint import peak_memory; before = peak_memory();"
        "block = bytearray(b'x') * int(sys.argv[1]); del block; print(before, peak_memory())"
    )
    out = subprocess.run([sys.executable, "-c", code, str(200 * MIB)], capture_output=True, text=True, check=True)
    before, peak = map(int, out.stdout.split())
    assert before < 150 * MIB < ballast.nbytes
    assert 195 * MIB < peak - before < 215 * MIB
    assert peak_memory() > ballast.nbytes


def test_a_process_reports_itself(sample_artifact: Callable[[str], Path]) -> None:
    recording = sample.folder() / "evaluation" / "000-george.ogg"
    found = footprint([str(sample_artifact("default")), str(recording), "--engine", "onnxruntime", "--threads", "1"])
    assert 30 * MIB < found.peak_bytes < 250 * MIB  # PyTorch alone would take more
    assert 0 < found.load_seconds < found.process_seconds < 30


def test_a_silent_recording_is_no_reason_to_fail(sample_artifact: Callable[[str], Path], tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros(8000), 8000)
    arguments = [str(sample_artifact("default")), str(tmp_path / "silence.wav"), "--engine", "onnxruntime"]
    assert footprint(arguments).peak_bytes > 30 * MIB


def test_a_failure_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"measuring memory with 'transcribe .*no such file or folder") as caught:
        footprint([str(tmp_path / "nothing" / "here"), "x.wav"])
    assert "\n" not in str(caught.value)
