"""What a determinization has found, read off its sets; compiled by numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from quantasr.speech.lattice.subsets import ARCS, BOTTOM, NEXT_BOTTOM, NEXT_TOP, SOURCE, STATES, TARGET, TOP


@njit(cache=True)
def arc_lengths(sets: Any, lengths: Any) -> None:
    """How many transition-ids each arc takes."""
    node = sets.node
    for i in range(sets.counts[ARCS]):
        arc = sets.arc[i]
        lengths[i] = node[arc[BOTTOM], 2] - node[arc[TOP], 2] + node[arc[NEXT_BOTTOM], 2] - node[arc[NEXT_TOP], 2]


@njit(cache=True)
def arc_alignments(sets: Any, arcs: Any, first: Any, out: Any) -> None:
    """The transition-ids of ``arcs``, those of the ``k``-th from ``first[k]`` on."""
    node = sets.node
    for k in range(len(arcs)):
        arc, at = sets.arc[arcs[k]], first[k + 1]
        for pair in (NEXT_TOP, TOP):
            bottom = arc[pair + 1]
            while node[bottom, 2] > node[arc[pair], 2]:
                at -= 1
                out[at] = node[bottom, 1]
                bottom = node[bottom, 0]


@njit(cache=True)
def in_order(sets: Any, order: Any) -> int:
    """Number the states topologically in ``order``, -1 for those from which no end is reached; how many are left."""
    states, arcs, arc = sets.counts[STATES], sets.counts[ARCS], sets.arc
    lively = np.zeros(states, np.bool_)
    waits, following = np.zeros(states, np.int32), np.full(arcs, -1, np.int32)
    last = np.full(states, -1, np.int32)
    for i in range(arcs):
        following[i] = last[arc[i, SOURCE]]
        last[arc[i, SOURCE]] = i
        if arc[i, TARGET] >= 0:
            waits[arc[i, TARGET]] += 1
    queue = np.empty(states, np.int32)
    queue[0] = 0
    done, found = 0, 1
    while done < found:
        i = last[queue[done]]
        done += 1
        while i >= 0:
            to = arc[i, TARGET]
            if to >= 0:
                waits[to] -= 1
                if waits[to] == 0:
                    queue[found] = to
                    found += 1
            i = following[i]
    order[:] = -1
    for k in range(found - 1, -1, -1):
        i = last[queue[k]]
        while i >= 0:
            if arc[i, TARGET] < 0 or lively[arc[i, TARGET]]:
                lively[queue[k]] = True
            i = following[i]
    named = 0
    for k in range(found):
        if lively[queue[k]]:
            order[queue[k]] = named
            named += 1
    return named
