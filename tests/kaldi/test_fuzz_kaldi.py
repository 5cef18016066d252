"""Damaged files of every kind: one line for each, and soon. ``benchmarks/fuzz_kaldi.py`` does it a million times."""

import importlib.util
import sys
import time
import warnings
from pathlib import Path

import pytest

from quantasr.errors import KaldiFileError
from quantasr.kaldi.nnet3.model import read_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def fuzzer():
    spec = importlib.util.spec_from_file_location("fuzz_kaldi", ROOT / "benchmarks/fuzz_kaldi.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_kaldi"] = module  # what its dataclasses look themselves up in
    spec.loader.exec_module(module)
    return module


def test_three_thousand_damaged_files(fuzzer, tmp_path):
    with warnings.catch_warnings():
        tally = fuzzer.run(3000, 5, list(fuzzer.READERS), tmp_path)
    assert tally.failures == []
    assert tally.inputs == 3000 and set(tally.kinds) == set(fuzzer.READERS)
    assert 0.6 < tally.refused / tally.inputs < 0.99


def test_what_must_not_happen_is_seen(fuzzer, tmp_path, monkeypatch):
    monkeypatch.setitem(fuzzer.READERS, "mdl", lambda path: 1 / 0)
    monkeypatch.setattr(fuzzer, "SECONDS", 0.05)
    path = tmp_path / "x"
    path.touch()
    assert fuzzer.read_one("mdl", path, fuzzer.Tally()).startswith("ZeroDivisionError")
    monkeypatch.setitem(fuzzer.READERS, "mdl", lambda path: sum(range(10**7)))
    assert fuzzer.read_one("mdl", path, fuzzer.Tally()).endswith(" s")


LONG = 1 << 19


@pytest.mark.parametrize(
    "line",
    [
        "output-node name=a input=Scale(" + "9" * LONG + ", a)",
        "output-node name=a input=Scale(1." + "9" * LONG + "x, a)",
        "output-node" + " " * LONG + "x",
        "output-node name=a" + " a" * LONG + " input=a",
        "output-node name=" + "a" * LONG,
        "output-node " + "a" * LONG,
        "output-node name=a input=" + "(" * LONG,
        "output-node name=a input=" + "Append(" * (LONG // 8),
        "output-node name=a input=Append(" + "a," * (LONG // 2) + "a)",
        "output-node name=a input=a objective=" + "=" * LONG,
    ],
    ids=lambda line: line[:40],
)
def test_long_lines_take_no_longer_than_short_ones(tmp_path, line):
    (tmp_path / "x").write_text(f"<Nnet3> \n{line}\n\n<NumComponents> 0 \n</Nnet3> ")
    begin = time.process_time()
    with pytest.raises(KaldiFileError):
        read_model(tmp_path / "x")
    assert time.process_time() - begin < 2
