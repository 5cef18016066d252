"""``quantize --engine kaldi``: the copy is the one that ``requantize`` makes, and what makes no sense is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_kaldi

from quantasr import load_model, sample
from quantasr.kaldi.nnet3 import read_model
from quantasr.pipeline_kaldi import requantize

DIGITS = tiny_kaldi.DIGITS


def test_a_copy_by_bits(tmp_path: Path, quantasr_cli: Any) -> None:
    ran = quantasr_cli(
        *("quantize", DIGITS, tmp_path / "copy", "--engine", "kaldi", "--bits", "5", "--granularity", "per_tensor"),
        "--json",
    )
    assert ran.code == 0 and not ran.err
    row = json.loads(ran.out)
    assert row["path"] == str(tmp_path / "copy") and {layer["bits"] for layer in row["layers"]} == {5}
    requantize(DIGITS, tmp_path / "same", 5, granularity="per_tensor")
    assert (tmp_path / "copy" / "final.mdl").read_bytes() == (tmp_path / "same" / "final.mdl").read_bytes()


def test_a_copy_of_a_file_by_recipe(tmp_path: Path, quantasr_cli: Any) -> None:
    ran = quantasr_cli("quantize", DIGITS / "final.mdl", tmp_path / "new.mdl", "--engine", "kaldi")
    assert ran.code == 0 and "kaldi-default" in ran.out and "tdnnf7.affine" in ran.out
    assert "float as they were: lda, tdnn1.affine" in ran.out
    old, new = read_model(DIGITS / "final.mdl"), read_model(tmp_path / "new.mdl")
    assert len(new.network.components) == len(old.network.components)


def test_a_copy_of_a_vosk_folder(tmp_path: Path, quantasr_cli: Any) -> None:
    folder = tiny_kaldi.with_ivectors(tmp_path / "vosk")
    (folder / "am").mkdir()
    (folder / "final.mdl").rename(folder / "am" / "final.mdl")
    (folder / "frame_subsampling_factor").unlink()
    ran = quantasr_cli("quantize", folder, tmp_path / "copy", "--engine", "kaldi", "--bits", "7")
    assert ran.code == 0 and "per_channel" in ran.out
    changed = [
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.is_file() and path.read_bytes() != (tmp_path / "copy" / path.relative_to(folder)).read_bytes()
    ]
    assert changed == [Path("am/final.mdl")]
    assert load_model(tmp_path / "copy").frontend == load_model(folder).frontend


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--engine", "kaldi", "--bits", "8", "--recipe", "default"), "--bits is for all weights"),
        (("--engine", "kaldi", "--granularity", "per_tensor"), "--granularity is for --bits"),
        (("--engine", "kaldi", "--bits", "17"), "bits = 17: give 2 to 16"),
        (("--engine", "kaldi", "--recipe", "fp16"), "no rule for any weight"),
        (("--engine", "kaldi", "--calibration", sample.calibration()), "leave out --calibration"),
        (("--engine", "kaldi", "--overwrite"), "leave out --overwrite"),
        (("--engine", "kaldi", "--compute", "bf16"), "leave out --compute"),
        (("--bits", "8"), "--bits is for --engine kaldi"),
        ((), "--calibration is missing"),
    ],
)
def test_options_that_make_no_sense(
    options: tuple[object, ...], problem: str, tmp_path: Path, quantasr_cli: Any
) -> None:
    ran = quantasr_cli("quantize", DIGITS, tmp_path / "out", *options)
    assert ran.code == 1 and problem in ran.err and len(ran.complaints) == 1
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_kaldi_s(tmp_path: Path, quantasr_cli: Any) -> None:
    ran = quantasr_cli("quantize", sample.model(), tmp_path / "out", "--engine", "kaldi")
    assert ran.code == 1 and "has no final.mdl" in ran.err and len(ran.complaints) == 1
