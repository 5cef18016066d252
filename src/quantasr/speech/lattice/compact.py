"""A compact lattice: each sequence of words once, with its best cost and alignment."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from quantasr.kaldi.fst import SymbolTable
from quantasr.speech.lattice.lattice import EPSILON, Hypothesis


@dataclass(frozen=True)
class CompactLattice:
    """Kaldi's CompactLattice: states in topological order from 0, the start; arcs in the order of their sources.

    The transition-ids of arc ``i`` are ``alignment[begin[i]:begin[i + 1]]``. ``graph_cost`` and ``acoustic_cost``
    [arcs] are unscaled negative log-likelihoods; ``final_graph`` and ``final_acoustic`` [states] likewise, infinity
    where a state is not final; ``final_begin`` into ``final_alignment`` as for arcs. ``frame`` [states]: frames before
    a state. A determinized lattice has each word (never 0) once at most among the arcs of a state.
    """

    source: NDArray[np.int32]
    target: NDArray[np.int32]
    word: NDArray[np.int32]
    graph_cost: NDArray[np.float32]
    acoustic_cost: NDArray[np.float32]
    begin: NDArray[np.int64]
    alignment: NDArray[np.int32]
    final_graph: NDArray[np.float32]
    final_acoustic: NDArray[np.float32]
    final_begin: NDArray[np.int64]
    final_alignment: NDArray[np.int32]
    frame: NDArray[np.int32]
    frames: int
    acoustic_scale: float = 1.0
    words: SymbolTable | None = None

    @classmethod
    def empty(cls, frames: int, words: SymbolTable | None = None) -> CompactLattice:
        """No path at all."""
        ints, floats, begin = np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(1, np.int64)
        return cls(
            ints, ints, ints, floats, floats, begin, ints, floats, floats, begin, ints, ints, frames, words=words
        )

    @property
    def states(self) -> int:
        return len(self.final_graph)

    @cached_property
    def first(self) -> NDArray[np.int64]:
        """Arcs of state ``s`` are ``first[s]`` up to ``first[s + 1]``."""
        return np.searchsorted(self.source, np.arange(self.states + 1))

    def costs(
        self, lm_scale: float = 1.0, acoustic_scale: float | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The costs of arcs and of final states by which paths are compared; see :meth:`Lattice.arc_costs`."""
        scale = self.acoustic_scale if acoustic_scale is None else acoustic_scale
        arcs = lm_scale * self.graph_cost.astype(np.float64) + scale * self.acoustic_cost.astype(np.float64)
        acoustic = np.where(np.isinf(self.final_graph), 0, self.final_acoustic).astype(np.float64)
        return arcs, lm_scale * self.final_graph.astype(np.float64) + scale * acoustic

    def best_path(self, lm_scale: float = 1.0, acoustic_scale: float | None = None) -> Hypothesis:
        """The path of least cost; no words where the lattice is empty."""
        found = self.n_best(1, lm_scale, acoustic_scale)
        return found[0] if found else Hypothesis((), (), (), 0.0, 0.0, float("inf"))

    def n_best(self, n: int, lm_scale: float = 1.0, acoustic_scale: float | None = None) -> list[Hypothesis]:
        """The ``n`` paths of least cost, best first, fewer where there are fewer.

        In a determinized lattice they are different sequences of words. A* search with exact costs to the end.
        """
        if n < 1:
            raise ValueError(f"{n} best paths: ask for 1 or more")
        if not self.states:
            return []
        costs, final = self.costs(lm_scale, acoustic_scale)
        rest = final.copy()
        for i in range(len(costs) - 1, -1, -1):
            rest[self.source[i]] = min(rest[self.source[i]], costs[i] + rest[self.target[i]])
        found: list[Hypothesis] = []
        queue: list[tuple[float, int, float, int, tuple[int, ...]]] = [(float(rest[0]), 0, 0.0, 0, ())]
        made = 0  # of equal costs, the first that was made
        while queue and len(found) < n:
            total, _, cost, state, arcs = heapq.heappop(queue)
            if not np.isfinite(total):
                break
            if state < 0:
                found.append(self._hypothesis(arcs, ~state, total))
                continue
            ends = [(cost + float(final[state]), cost, ~state, arcs)] if np.isfinite(final[state]) else []
            for i in range(self.first[state], self.first[state + 1]):
                to, along = int(self.target[i]), cost + float(costs[i])
                ends.append((along + float(rest[to]), along, to, (*arcs, i)))
            for bound, along, to, path in ends:
                made += 1
                heapq.heappush(queue, (bound, made, along, to, path))
        return found

    def _hypothesis(self, path: tuple[int, ...], end: int, total: float) -> Hypothesis:
        arcs = np.array(path, np.int64)
        spoken = arcs[self.word[arcs] != EPSILON]
        begin = self.frame[self.source[spoken]]
        parts = [self.alignment[self.begin[i] : self.begin[i + 1]] for i in arcs]
        last = self.final_alignment[self.final_begin[end] : self.final_begin[end + 1]]
        return Hypothesis(
            words=tuple(self.word[spoken].tolist()),
            begin=tuple(begin.tolist()),
            end=tuple(self.frame[self.target[spoken]].tolist()),
            graph_cost=float(self.graph_cost[arcs].sum(dtype=np.float64) + self.final_graph[end]),
            acoustic_cost=float(self.acoustic_cost[arcs].sum(dtype=np.float64) + self.final_acoustic[end]),
            total=total,
            alignment=tuple(np.concatenate([*parts, last]).tolist()),
        )
