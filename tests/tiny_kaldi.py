"""Kaldi folders made of the recogniser of digits in ``tests/data/kaldi``: copies, and one that reads i-vectors."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quantasr.kaldi.nnet3 import read_model, write_model
from quantasr.kaldi.nnet3.config import ConfigLine, parse_line
from quantasr.kaldi.nnet3.model import AcousticModel

KALDI = Path(__file__).parent / "data" / "kaldi"
DIGITS = KALDI / "digits"
EXTRACTOR = KALDI / "ivector"
"""Reads 4 features a frame, gives 5 numbers."""


def copy(folder: Path) -> Path:
    """The recogniser of digits in ``folder``, to be changed."""
    shutil.copytree(DIGITS, folder)
    return folder


def edit(folder: Path, *lines: str, **fields: Any) -> None:
    """Put ``lines`` into ``final.mdl`` in the place of those of the same nodes, and fields of the component ``lda``."""
    write_model(edited(read_model(folder / "final.mdl"), *lines, **fields), folder / "final.mdl")


def edited(model: AcousticModel, *lines: str, **fields: Any) -> AcousticModel:
    """As :func:`edit`, of a model; nodes that are new come first."""
    given = {line.name: line for line in map(parse_line, lines)}
    old = {line.name for line in model.network.lines}
    new: list[ConfigLine] = [line for name, line in given.items() if name not in old]
    new += [given.get(line.name, line) for line in model.network.lines]
    components = dict(model.network.components)
    components["lda"] = replace(components["lda"], fields={**components["lda"].fields, **fields})
    return replace(model, network=replace(model.network, lines=tuple(new), components=components))


def set_option(folder: Path, **options: Any) -> None:
    """Change options of ``conf/mfcc.conf``."""
    path = folder / "conf" / "mfcc.conf"
    rows = dict(line.removeprefix("--").split("=") for line in path.read_text().split())
    rows |= {name.replace("_", "-"): str(value) for name, value in options.items()}
    path.write_text("".join(f"--{name}={value}\n" for name, value in rows.items()))


def with_ivectors(folder: Path) -> Path:
    """A recogniser whose first matrix, of random numbers, reads 3 frames of 4 features and an i-vector of 5."""
    copy(folder)
    shutil.copytree(EXTRACTOR, folder / "ivector")
    set_option(folder, num_ceps=4)
    weight = np.random.default_rng(0).normal(0, 0.1, (120, 17)).astype(np.float32)
    edit(
        folder,
        "input-node name=ivector dim=5",
        "input-node name=input dim=4",
        "component-node name=lda component=lda "
        "input=Append(Offset(input, -1), input, Offset(input, 1), ReplaceIndex(ivector, t, 0))",
        LinearParams=weight,
    )
    return folder
