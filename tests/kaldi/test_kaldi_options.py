"""Kaldi's configuration files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from quantasr.errors import ModelLoadError
from quantasr.kaldi.options import fill, read_options


@dataclass(frozen=True)
class Settings:
    bins: int = 23
    low: float = 20.0
    energy: bool = True
    window: str = "povey"


NAMES = {"num-mel-bins": "bins", "low-freq": "low", "use-energy": "energy", "window-type": "window"}


def written(folder: Path, text: str, name: str = "mfcc.conf") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_options_are_read_as_kaldi_reads_them(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "# a comment\n\n--num_mel_bins=40  # behind\n --LOW-freq=30 \n--use-energy=F\n--window-type=hamming\n"
        "--num-mel-bins=41\n",
    )
    assert fill(Settings(), read_options(path), NAMES) == Settings(41, 30.0, False, "hamming")


def test_a_flag_without_a_value_is_true(tmp_path: Path) -> None:
    assert fill(Settings(energy=False), read_options(written(tmp_path, "--use-energy\n")), NAMES).energy


def test_a_nested_file_stands_where_it_is_named(tmp_path: Path) -> None:
    written(tmp_path, "--low-freq=50\n--num-mel-bins=30\n", "inner.conf")
    path = written(tmp_path, "--low-freq=10\n--config=/elsewhere/inner.conf\n--num-mel-bins=31\n")
    assert fill(Settings(), read_options(path), NAMES) == Settings(31, 50.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--low-freq=20\nlow-freq=20\n", r"mfcc\.conf:2: 'low-freq=20' is no option"),
        ("--=20\n", r"mfcc\.conf:1: '--=20' is no option"),
        ("--colour=red\n", r"mfcc\.conf:1: option --colour: is unknown here; known are allow, low-freq"),
        ("--num-mel-bins=4.5\n", r"mfcc\.conf:1: option --num-mel-bins: '4\.5' is not an integer"),
        ("\n--low-freq=high\n", r"mfcc\.conf:2: option --low-freq: 'high' is not a number"),
        ("--low-freq=nan\n", "'nan' is not a number"),
        ("--use-energy=perhaps\n", "'perhaps' is neither true nor false"),
        ("--config=nowhere.conf\n", r"mfcc\.conf:1: option --config: there is no file 'nowhere\.conf'"),
        ("--config=mfcc.conf\n", "files name each other more than 10 deep"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ModelLoadError, match=message) as found:
        fill(Settings(), read_options(written(tmp_path, text)), NAMES, ("allow",))
    assert "\n" not in str(found.value)


def test_files_that_are_no_configuration_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"gone\.conf: cannot be read"):
        read_options(tmp_path / "gone.conf")
    (tmp_path / "binary.conf").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelLoadError, match="is not text"):
        read_options(tmp_path / "binary.conf")
    (tmp_path / "large.conf").write_bytes(b"#" * (2 << 20))
    with pytest.raises(ModelLoadError, match="no configuration file"):
        read_options(tmp_path / "large.conf")
