"""A weighted finite-state transducer as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantasr.kaldi.fst.symbols import SymbolTable

INPUT, OUTPUT, WEIGHT, NEXT = range(4)
"""Columns of ``Fst.arcs``."""


@dataclass(frozen=True)
class LabelReach:
    """Which labels can be reached from a state before any other label: what a lookahead FST adds to its arcs.

    State ``s`` reaches the labels of ``intervals[first[s]:first[s + 1]]``, each from its first number up to, but
    without, its second; ``final_label`` among them means that a final state is reached.
    """

    first: NDArray[np.int32]
    intervals: NDArray[np.int32]
    final_label: int
    of_input: bool


@dataclass(frozen=True)
class Fst:
    """States 0 to ``states`` - 1 of a transducer over the tropical semiring (weights are costs).

    ``arcs``, int32 [arcs, 4]: input label, output label, the bits of the weight (a float32), next state. The arcs of
    state ``s`` are ``arcs[first[s]:first[s + 1]]``. ``final``, float32 [states]: infinity where a state is not final.
    """

    start: int
    first: NDArray[np.int32]
    arcs: NDArray[np.int32]
    final: NDArray[np.float32]
    input_symbols: SymbolTable | None = None
    output_symbols: SymbolTable | None = None
    reach: LabelReach | None = None
    kind: str = "vector"

    @property
    def states(self) -> int:
        return len(self.final)

    @property
    def weights(self) -> NDArray[np.float32]:
        """Costs of the arcs, float32 [arcs]."""
        view: NDArray[Any] = self.arcs.view(np.float32)
        return view[:, WEIGHT]

    def sorted_by(self, column: int) -> bool:
        """Whether the arcs of each state are in order of a label."""
        labels = self.arcs[:, column]
        falls = np.flatnonzero(labels[1:] < labels[:-1]) + 1
        return bool(np.isin(falls, self.first).all())
