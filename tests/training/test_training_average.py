"""Means of models' weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from quantasr.errors import TrainingError
from quantasr.training.average import average_checkpoints


def checkpoint(folder: Path, **tensors: Tensor) -> Path:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_floats_are_averaged_in_double_and_whole_numbers_are_the_newest_s(tmp_path: Path) -> None:
    values = [torch.tensor([1.0, 1e8]), torch.tensor([2.0, 1.0]), torch.tensor([4.5, -1e8])]
    folders = [
        checkpoint(tmp_path / str(i), w=value, steps=torch.tensor(i), zero_point=torch.tensor([float(i)]))
        for i, value in enumerate(values)
    ]
    mean = average_checkpoints(folders)
    # In single precision, 1e8 + 1 - 1e8 is 0.
    assert mean["w"].tolist() == pytest.approx([2.5, 1 / 3])
    assert mean["w"].dtype == torch.float32
    assert mean["steps"] == 2
    assert mean["zero_point"].tolist() == [2.0]


def test_half_precision_stays_what_it_is(tmp_path: Path) -> None:
    folders = [checkpoint(tmp_path / str(i), w=torch.tensor([value]).bfloat16()) for i, value in enumerate((1.0, 2.0))]
    assert average_checkpoints(folders)["w"].dtype == torch.bfloat16


def test_of_parallel_jobs_the_newest_checkpoints_are_taken(tmp_path: Path) -> None:
    for job in (0, 1):
        for step in (5, 999_999, 1_000_000):  # as text, the last one comes before the second
            folder = tmp_path / f"job{job}" / "checkpoints" / f"step-{step:06d}"
            checkpoint(folder, w=torch.tensor([job + (step == 1_000_000) * 10.0]))
    assert average_checkpoints([tmp_path / "job0", tmp_path / "job1"])["w"].tolist() == [10.5]


def test_what_cannot_be_averaged_is_said_in_a_line(tmp_path: Path) -> None:
    one = checkpoint(tmp_path / "one", w=torch.zeros(2))
    other = checkpoint(tmp_path / "other", v=torch.zeros(2))
    longer = checkpoint(tmp_path / "longer", w=torch.zeros(3))
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"nothing")
    for folders, words in (
        ([], "there is nothing to average"),
        ([one, tmp_path / "empty"], "empty: neither a checkpoint nor a run with one"),
        ([one, other], "other/model.safetensors: another model than .*one.*: v is only in one of them"),
        ([longer, one], r"longer/model.safetensors: another model: w is \[3\], not \[2\]"),
        ([one, broken], "cannot be averaged"),
    ):
        with pytest.raises(TrainingError, match=words):
            average_checkpoints(folders)
