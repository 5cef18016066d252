"""Lattices determinized over words: of each sequence of words the best path, as Kaldi's lattice-determinize-pruned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quantasr.speech.lattice.compact import CompactLattice
from quantasr.speech.lattice.lattice import Lattice

if TYPE_CHECKING:
    from quantasr.speech.lattice.subsets import Sets

ROOM = 1 << 20
"""Elements of sets, and transition-ids, that may be held; a lattice that needs more is pruned more."""


def determinize(lattice: Lattice, beam: float, room: int = ROOM) -> CompactLattice:
    """The paths of a lattice within ``beam`` of its best path, each sequence of words once with its best path.

    ``beam`` is of costs with the search's acoustic scale. Paths are found best first: where a lattice does not fit into
    ``room``, the worst ones are left out. Raises ValueError for a beam that is not positive.
    """
    from quantasr.speech.lattice.subsets import ARCS, Graph, construct, costs_to_end

    if not beam > 0:
        raise ValueError(f"a lattice beam of {beam}: it must be above 0")
    scale = lattice.acoustic_scale
    cost = np.stack((lattice.graph_cost.astype(np.float64), scale * lattice.acoustic_cost.astype(np.float64)), axis=1)
    graph = Graph(
        lattice.first, lattice.target, lattice.transition_id, lattice.word, cost,
        lattice.final_cost.astype(np.float64), np.empty(lattice.states), np.empty(lattice.states, np.bool_),
    )  # fmt: skip
    costs_to_end(graph)
    if not lattice.states or not np.isfinite(graph.rest[0]):
        return CompactLattice.empty(lattice.frames, lattice.words)
    sets = _room(lattice, max(room, 4 * (lattice.states + 2 * len(cost))))
    construct(graph, sets, beam)
    return _collected(lattice, sets, int(sets.counts[ARCS]))


def _room(lattice: Lattice, room: int) -> Sets:
    """Arrays that the system gives memory for when they are written to."""
    from quantasr.speech.lattice.subsets import Sets

    slots = 1 << (room // 8).bit_length()
    ints, floats = np.int32, np.float64
    return Sets(
        counts=np.zeros(8, np.int64),
        node=np.empty((room, 3), ints), sum=np.empty(room, np.uint64), power=np.empty(lattice.states + 1, np.uint64),
        element=np.empty((room, 2), ints), element_cost=np.empty((room, 2), floats),
        state=np.empty((slots, 3), ints), forward=np.empty(slots, floats),
        arc=np.empty((slots, 7), ints), arc_cost=np.empty((slots, 2), floats),
        task=np.empty((room, 4), ints), priority=np.empty(room, floats), heap=np.empty(room, ints),
        initial=np.empty((slots, 5), ints), initial_cost=np.empty((slots, 2), floats),
        state_slots=np.zeros(slots, ints), initial_slots=np.zeros(slots, ints),
        mark=np.zeros(lattice.states, np.int64), here=np.empty(lattice.states, ints),
        here_cost=np.empty((lattice.states, 2), floats), waiting=np.empty(lattice.states, ints),
        number=np.arange(lattice.states, dtype=ints),
    )  # fmt: skip


def _collected(lattice: Lattice, sets: Sets, count: int) -> CompactLattice:
    """The states that lead to an end, in topological order, and their arcs."""
    from quantasr.speech.lattice.subset_arcs import arc_alignments, arc_lengths, in_order
    from quantasr.speech.lattice.subsets import SOURCE, STATES, TARGET, WORD

    order, lengths = np.empty(int(sets.counts[STATES]), np.int32), np.empty(count, np.int32)
    states = in_order(sets, order)
    arc_lengths(sets, lengths)
    arc = sets.arc[:count]
    source, target = order[arc[:, SOURCE]], np.where(arc[:, TARGET] < 0, 0, order[arc[:, TARGET]])
    used = (source >= 0) & (target >= 0)
    at_end = arc[:, TARGET] < 0

    def part(chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32], Any]:
        begin = np.concatenate(([0], np.cumsum(lengths[chosen], dtype=np.int64)))
        tids = np.empty(int(begin[-1]), np.int32)
        arc_alignments(sets, chosen, begin, tids)
        costs = sets.arc_cost[chosen] / (1.0, lattice.acoustic_scale)
        return begin, tids, costs.astype(np.float32)

    inner = np.flatnonzero(used & ~at_end)
    inner = inner[np.argsort(source[inner], kind="stable")]
    begin, tids, costs = part(inner)
    ends = np.flatnonzero(used & at_end)
    ends = ends[np.argsort(source[ends], kind="stable")]
    end_begin, end_tids, end_costs = part(ends)
    final = np.full((states, 2), np.inf, np.float32)
    final[source[ends]] = end_costs
    final_lengths = np.zeros(states, np.int64)
    final_lengths[source[ends]] = np.diff(end_begin)
    frame = np.zeros(states, np.int32)
    for i, length in zip(inner.tolist(), np.diff(begin).tolist(), strict=True):
        frame[target[i]] = frame[source[i]] + length
    return CompactLattice(
        source=source[inner], target=target[inner].astype(np.int32), word=arc[inner, WORD].copy(),
        graph_cost=np.ascontiguousarray(costs[:, 0]), acoustic_cost=np.ascontiguousarray(costs[:, 1]),
        begin=begin, alignment=tids,
        final_graph=np.ascontiguousarray(final[:, 0]), final_acoustic=np.ascontiguousarray(final[:, 1]),
        final_begin=np.concatenate(([0], np.cumsum(final_lengths))), final_alignment=end_tids,
        frame=frame, frames=lattice.frames, acoustic_scale=lattice.acoustic_scale, words=lattice.words,
    )  # fmt: skip
