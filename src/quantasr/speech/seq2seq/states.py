"""The states of a part that is called step by step: a row for each hypothesis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import ArtifactError
from quantasr.speech.parts import Part

FRAMES = "frames"


@dataclass(frozen=True)
class StateSpec:
    """What a state is before the first step: ``[rows, *shape]`` of zeros, or of 1 / frames where ``uniform``.

    An axis may be ``frames``, those of the encoder; one of length 0 grows with every step.
    """

    shape: tuple[int | str, ...]
    uniform: bool = False

    def __post_init__(self) -> None:
        if any(not (axis == FRAMES or (isinstance(axis, int) and axis >= 0)) for axis in self.shape):
            raise ArtifactError(f"decoding: a state of shape {list(self.shape)} is none")

    def initial(self, rows: int, frames: int) -> NDArray[np.float32]:
        """The state of so many hypotheses."""
        shape = [frames if axis == FRAMES else int(axis) for axis in self.shape]
        return np.full((rows, *shape), 1 / frames if self.uniform else 0, np.float32)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {"shape": list(self.shape), "uniform": self.uniform}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any] | StateSpec) -> StateSpec:
        """The one that :meth:`to_dict` described."""
        return row if isinstance(row, StateSpec) else cls(tuple(row["shape"]), bool(row["uniform"]))


class Stepper:
    """A part with its states: tokens in, what it says of the next ones out.

    The part is fed ``tokens`` ``[rows]``, ``memory`` (what the encoder gave) and each state by its name, and gives
    ``logprobs`` ``[rows, vocabulary]``, each state as ``next_<name>``, and perhaps ``attention`` ``[rows, frames]``,
    where that is not a state.
    """

    def __init__(
        self,
        part: Part,
        specs: Mapping[str, StateSpec],
        memory: Mapping[str, NDArray[Any]],
        rows: int,
        frames: int,
    ) -> None:
        self._part, self._memory = part, memory
        self._states = {name: spec.initial(rows, frames) for name, spec in specs.items()}

    def __call__(self, tokens: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """One step; the states move on."""
        found = self._part({"tokens": tokens, **self._memory, **self._states})
        self._states = {name: found[f"next_{name}"] for name in self._states}
        return found

    def reorder(self, rows: NDArray[np.int64]) -> None:
        """Go on with the states of these rows."""
        self._states = {name: state[rows] for name, state in self._states.items()}
