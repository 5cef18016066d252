"""Which recordings are trained on: :class:`DataOptions`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from quantasr.errors import TrainingError
from quantasr.training.augment import AugmentOptions
from quantasr.training.subset import seconds_asked
from quantasr.training.tables import check_table


@dataclass(frozen=True)
class DataOptions:
    """Which recordings are trained on, and how they are put together.

    ``hours``: so many, drawn at random (None: all). ``holdout``: how much is kept back for validation where there is no
    manifest of it: "5%", "90s", "10min" or "1h", whole speakers where they are known. Utterances shorter than
    ``min_seconds`` or longer than ``max_seconds`` are left out. ``max_batch_seconds`` makes batches of long recordings
    smaller (None: all have as many recordings). ``buckets``: how many lengths are told apart.

    Raises:
        TrainingError: a number is out of its range.
    """

    hours: float | None = None
    holdout: str = ""
    min_seconds: float = 0.1
    max_seconds: float = 30.0
    max_batch_seconds: float | None = None
    buckets: int = 30
    augment: AugmentOptions = field(default_factory=AugmentOptions)

    def __post_init__(self) -> None:
        for name in ("hours", "max_seconds", "max_batch_seconds"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise TrainingError(f"data: {name} is {value}: give more than 0")
        if not 0 <= self.min_seconds < self.max_seconds:
            raise TrainingError(f"data: min_seconds is {self.min_seconds}: give 0 or more, below max_seconds")
        if not isinstance(self.buckets, int) or self.buckets < 1:
            raise TrainingError(f"data: buckets is {self.buckets}: give a whole number from 1 on")
        if self.holdout:
            seconds_asked(self.holdout, 100.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and TOML; what is not set is left out."""
        values = {**asdict(self), "augment": self.augment.to_dict()}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], where: str = "data options") -> DataOptions:
        """Build from a table as :meth:`to_dict` gives it; raises :class:`TrainingError` naming ``where``."""
        check_table(cls, table, where)
        values = {**table, "augment": AugmentOptions.from_dict(table.get("augment", {}), f"{where}, augment")}
        return cls(**values)
