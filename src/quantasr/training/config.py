"""A whole training run in one table: what is trained how, on which data, with which loss."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from quantasr.errors import TrainingError
from quantasr.quantize.training import QatOptions
from quantasr.training.data_options import DataOptions
from quantasr.training.lf_mmi.graphs import GraphChoice
from quantasr.training.lf_mmi.loss import LfMmiOptions
from quantasr.training.options import TrainOptions
from quantasr.training.tables import check_table

LOSSES = ("auto", "ctc", "lf_mmi", "distillation", "ctc+distillation")


@dataclass(frozen=True)
class LossOptions:
    """Which loss: ``auto`` is LF-MMI for Kaldi's models and CTC for all others.

    ``distillation`` needs no transcripts: the float original is the teacher, softened by ``temperature``; with
    ``ctc+distillation`` it has the share ``alpha``. ``graphs`` and ``lf_mmi`` are for LF-MMI. Raises
    :class:`TrainingError`.
    """

    kind: str = "auto"
    temperature: float = 1.0
    alpha: float = 0.5
    graphs: GraphChoice = field(default_factory=GraphChoice)
    lf_mmi: LfMmiOptions = field(default_factory=LfMmiOptions)

    def __post_init__(self) -> None:
        if self.kind not in LOSSES:
            raise TrainingError(f"loss {self.kind!r}: choose one of {', '.join(LOSSES)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and TOML; what is not set is left out."""
        table = {**asdict(self), "graphs": _plain(self.graphs), "lf_mmi": _plain(self.lf_mmi)}
        return table

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], where: str) -> LossOptions:
        """Build from a table as :meth:`to_dict` gives it; raises :class:`TrainingError` naming ``where``."""
        parts = {
            "graphs": _build(GraphChoice, table.get("graphs", {}), f"{where}, graphs"),
            "lf_mmi": _build(LfMmiOptions, table.get("lf_mmi", {}), f"{where}, lf_mmi"),
        }
        return _build(cls, {**table, **parts}, where)


@dataclass(frozen=True)
class TrainingConfig:
    """``train``: length, batches, optimizer; ``data``: which recordings and how they are augmented; ``loss``; ``qat``.

    ``time_masking``: in models that read the wave, the share of frames that is hidden (SpecAugment), None for what the
    checkpoint says; ``time_masking_frames``: how many at a time.
    """

    train: TrainOptions = field(default_factory=TrainOptions)
    data: DataOptions = field(default_factory=DataOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    qat: QatOptions = field(default_factory=QatOptions)
    time_masking: float | None = None
    time_masking_frames: int = 10

    def __post_init__(self) -> None:
        if self.time_masking is not None and not 0 <= self.time_masking < 1:
            raise TrainingError(f"time_masking = {self.time_masking}: give a share of the frames, from 0 to below 1")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and TOML; what is not set is left out."""
        parts = {name: getattr(self, name).to_dict() for name in ("train", "data", "loss", "qat")}
        rest = {"time_masking": self.time_masking, "time_masking_frames": self.time_masking_frames}
        return parts | {name: value for name, value in rest.items() if value is not None}

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], where: str = "configuration") -> TrainingConfig:
        """Build from a table as :meth:`to_dict` gives it; raises :class:`TrainingError` naming ``where``."""
        parts: dict[str, Any] = {
            "train": TrainOptions.from_dict(_table(table, "train", where), f"{where}, train"),
            "data": DataOptions.from_dict(_table(table, "data", where), f"{where}, data"),
            "loss": LossOptions.from_dict(_table(table, "loss", where), f"{where}, loss"),
            "qat": _build(QatOptions, _table(table, "qat", where), f"{where}, qat"),
        }
        return _build(cls, {**table, **parts}, where)

    @classmethod
    def load(cls, path: str | Path) -> TrainingConfig:
        """Read a TOML file; raises :class:`TrainingError`."""
        return cls.from_dict(read_table(path), str(path))


def read_table(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file; raises :class:`TrainingError`."""
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise TrainingError(f"{path}: cannot read the configuration: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TrainingError(f"{path}: not TOML: {error}") from None


_T = TypeVar("_T")


def _build(kind: type[_T], table: Mapping[str, Any], where: str) -> _T:
    check_table(kind, table, where)
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in table.items()})
    except (TypeError, ValueError) as error:
        raise TrainingError(f"{where}: {error}") from None


def _table(table: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    found = table.get(key, {})
    if not isinstance(found, dict):
        raise TrainingError(f"{where}: {key} = {found!r}: write a table, [{key}]")
    return found


def _plain(options: Any) -> dict[str, Any]:
    values = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v is not None}
