"""What every engine can do."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import EngineError

COMPUTE = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class EngineOptions:
    """``threads`` 0 means all cores of this process; ``compute`` is the type of the float rest."""

    threads: int = 0
    compute: str = "auto"

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise EngineError(f"threads = {self.threads}: give 1 or more, or 0 for all cores")
        if self.compute not in COMPUTE:
            raise EngineError(f"compute = {self.compute!r}: choose one of {', '.join(COMPUTE)}")

    @property
    def thread_count(self) -> int:
        """The number of threads, resolved."""
        return self.threads or len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class ExecutedOp:
    """One kernel as the engine ran it.

    ``covers`` names the graph's nodes that it stands for; ``precision`` is the type that it multiplies in, such as
    ``int8``, ``bf16`` or ``fp32``; ``macs`` counts its multiply-accumulates; ``seconds`` is the time of one run.
    """

    name: str
    kind: str
    covers: tuple[str, ...]
    precision: str
    macs: int
    seconds: float


class Engine(Protocol):
    """A loaded graph."""

    @property
    def name(self) -> str:
        """The engine's name in :data:`quantasr.engines.ENGINES`."""
        ...

    @property
    def compute(self) -> str:
        """The type in which the float rest runs: ``fp32`` or ``bf16``."""
        ...

    def run(
        self, features: NDArray[np.float32], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """Log-probs ``[batch, frames, vocabulary]`` and, where the graph gives them, frame counts ``[batch]``."""
        ...

    def executed(self, features: NDArray[np.float32], lengths: NDArray[np.int64]) -> list[ExecutedOp]:
        """Run once and report every kernel that the engine really executed."""
        ...
