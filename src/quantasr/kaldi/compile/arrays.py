"""FSTs as arrays, made arc by arc, and passed to kaldifst (OpenFst) and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import MissingExtraError
from quantasr.kaldi.fst import Fst


def import_kaldifst() -> Any:
    """The module ``kaldifst``; MissingExtraError where it is not installed."""
    try:
        import kaldifst
    except ImportError:
        raise MissingExtraError("compiling graphs needs kaldifst: pip install 'quantasr[kaldi]'") from None
    return kaldifst


class FstBuilder:
    """States and arcs, one after another; weights are costs."""

    def __init__(self) -> None:
        self._final: list[float] = []
        self._from: list[int] = []
        self._arcs: list[tuple[int, int, float, int]] = []

    def state(self) -> int:
        """A new state, not final."""
        self._final.append(np.inf)
        return len(self._final) - 1

    def end(self, state: int, cost: float = 0.0) -> None:
        """Let paths end in ``state``."""
        self._final[state] = cost

    def arc(self, start: int, ilabel: int, olabel: int, cost: float, end: int) -> None:
        """An arc from ``start`` to ``end``."""
        self._from.append(start)
        self._arcs.append((ilabel, olabel, cost, end))

    def fst(self, start: int = 0) -> Fst:
        """What was built; the arcs of a state keep their order."""
        rows: NDArray[Any] = np.array(self._arcs, np.float64).reshape(-1, 4)  # exact up to labels of 2^53
        ilabels, olabels, ends = (rows[:, column].astype(np.int64) for column in (0, 1, 3))
        sources = np.array(self._from, np.int64)
        return assemble(start, sources, ilabels, olabels, rows[:, 2], ends, np.array(self._final))


def assemble(
    start: int,
    sources: NDArray[Any],
    ilabels: NDArray[Any],
    olabels: NDArray[Any],
    costs: NDArray[Any],
    ends: NDArray[Any],
    final: NDArray[Any],
) -> Fst:
    """An Fst from its arcs in any order: each of the five arrays has one entry an arc, ``final`` one a state."""
    order = np.argsort(sources, kind="stable")
    bits = costs.astype(np.float32).view(np.int32)
    arcs = np.stack([ilabels, olabels, bits, ends], axis=1).astype(np.int32)[order]
    first = np.searchsorted(sources[order], np.arange(len(final) + 1)).astype(np.int32)
    return Fst(start, first, np.ascontiguousarray(arcs), final.astype(np.float32))


def to_kaldifst(fst: Fst) -> Any:
    """The same as kaldifst's vector FST."""
    k = import_kaldifst()
    made = k.StdVectorFst()
    for _ in range(fst.states):
        made.add_state()
    made.start = fst.start
    arcs, weights = fst.arcs.tolist(), fst.weights.tolist()
    first = fst.first.tolist()
    for state, cost in enumerate(fst.final.tolist()):
        if cost < np.inf:
            made.set_final(state, cost)
        for at in range(first[state], first[state + 1]):
            ilabel, olabel, _, end = arcs[at]
            made.add_arc(state, k.StdArc(ilabel, olabel, weights[at], end))
    return made


def from_kaldifst(fst: Any) -> Fst:
    """Arrays of kaldifst's FST."""
    k = import_kaldifst()
    builder = FstBuilder()
    for _ in range(fst.num_states):
        builder.state()
    for state in k.StateIterator(fst):
        cost = float(fst.final(state).value)
        if cost < np.inf:
            builder.end(state, cost)
        for arc in k.ArcIterator(fst, state):
            builder.arc(state, arc.ilabel, arc.olabel, float(arc.weight.value), arc.nextstate)
    return builder.fst(fst.start)
