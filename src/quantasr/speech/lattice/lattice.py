"""A lattice: the paths that a search kept, and what can be read off them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from quantasr.kaldi.fst import SymbolTable

EPSILON = 0


@dataclass(frozen=True)
class Hypothesis:
    """One path: words (integers), the frames [first, last) of each, the costs; ``alignment``: its transition-ids.

    ``total`` is what paths are compared by: scaled graph and acoustic cost and word penalties. ``graph_cost`` and
    ``acoustic_cost`` are unscaled.
    """

    words: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    graph_cost: float
    acoustic_cost: float
    total: float
    alignment: tuple[int, ...] = ()


@dataclass(frozen=True)
class Lattice:
    """States in topological order from 0, the start; arcs in the order of their sources, one array a property.

    ``transition_id`` is 0 where an arc takes no frame, ``word`` 0 where it gives no word. ``graph_cost`` and
    ``acoustic_cost`` [arcs] are unscaled negative log-likelihoods; ``acoustic_scale`` is what the search multiplied the
    latter with. ``final_cost`` [states]: infinity where a state is not final. ``frame`` [states]: frames before a
    state. ``reached_final``: whether the search ended in a final state; if not, all states of the last frame are final.
    """

    source: NDArray[np.int32]
    target: NDArray[np.int32]
    transition_id: NDArray[np.int32]
    word: NDArray[np.int32]
    graph_cost: NDArray[np.float32]
    acoustic_cost: NDArray[np.float32]
    final_cost: NDArray[np.float32]
    frame: NDArray[np.int32]
    frames: int
    acoustic_scale: float = 1.0
    reached_final: bool = True
    words: SymbolTable | None = None

    @classmethod
    def empty(cls, frames: int, words: SymbolTable | None = None) -> Lattice:
        """No path at all: what is left where nothing survived the beam."""
        ints, floats = np.zeros(0, np.int32), np.zeros(0, np.float32)
        return cls(ints, ints, ints, ints, floats, floats, floats, ints, frames, reached_final=False, words=words)

    @property
    def states(self) -> int:
        return len(self.final_cost)

    @cached_property
    def first(self) -> NDArray[np.int64]:
        """Arcs of state ``s`` are ``first[s]`` up to ``first[s + 1]``."""
        return np.searchsorted(self.source, np.arange(self.states + 1))

    def arc_costs(
        self, lm_scale: float = 1.0, acoustic_scale: float | None = None, word_penalty: float = 0.0
    ) -> NDArray[np.float64]:
        """The cost of each arc by which paths are compared; ``word_penalty`` is added for each word."""
        scale = self.acoustic_scale if acoustic_scale is None else acoustic_scale
        costs = lm_scale * self.graph_cost.astype(np.float64) + scale * self.acoustic_cost.astype(np.float64)
        if word_penalty:
            costs += word_penalty * (self.word != EPSILON)
        return costs

    def best_path(
        self, lm_scale: float = 1.0, acoustic_scale: float | None = None, word_penalty: float = 0.0
    ) -> Hypothesis:
        """The path of least cost; no words where the lattice is empty. ``acoustic_scale``: the search's, if None."""
        if not self.states:
            return Hypothesis((), (), (), 0.0, 0.0, float("inf"))
        from quantasr.speech.lattice.paths import shortest

        costs = self.arc_costs(lm_scale, acoustic_scale, word_penalty)
        final = lm_scale * self.final_cost.astype(np.float64)
        arcs, end, total = shortest(self.source, self.target, costs, final)
        return self._hypothesis(arcs, end, total)

    def _hypothesis(self, arcs: NDArray[np.int32], end: int, total: float) -> Hypothesis:
        spoken = arcs[self.word[arcs] != EPSILON]
        begin = self.frame[self.source[spoken]]
        last = np.append(begin[1:], self.frame[end]) if len(begin) else begin
        tids = self.transition_id[arcs]
        return Hypothesis(
            words=tuple(self.word[spoken].tolist()),
            begin=tuple(begin.tolist()),
            end=tuple(last.tolist()),
            graph_cost=float(self.graph_cost[arcs].sum(dtype=np.float64) + self.final_cost[end]),
            acoustic_cost=float(self.acoustic_cost[arcs].sum(dtype=np.float64)),
            total=float(total),
            alignment=tuple(tids[tids != EPSILON].tolist()),
        )

    def text(self, words: tuple[int, ...]) -> str:
        """Integers as words, by the table; integers where there is none."""
        if self.words is None:
            return " ".join(str(word) for word in words)
        return " ".join(self.words.words[word] or f"<{word}>" for word in words)
