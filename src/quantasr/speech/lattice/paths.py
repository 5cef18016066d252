"""Shortest paths through lattices; compiled by numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit


@njit(cache=True)
def shortest(source: Any, target: Any, costs: Any, final: Any) -> tuple[Any, int, float]:
    """Arcs of the path of least cost, the state that it ends in (-1: there is none), and its cost."""
    states = len(final)
    best = np.full(states, np.inf)
    back = np.full(states, -1, np.int32)
    best[0] = 0.0
    for i in range(len(source)):
        total = best[source[i]] + costs[i]
        if total < best[target[i]]:
            best[target[i]] = total
            back[target[i]] = i
    end, least = -1, np.inf
    for s in range(states):
        if best[s] + final[s] < least:
            end, least = s, best[s] + final[s]
    length = 0
    s = end
    while s > 0:
        length += 1
        s = source[back[s]]
    arcs = np.empty(length, np.int32)
    s = end
    for i in range(length - 1, -1, -1):
        arcs[i] = back[s]
        s = source[back[s]]
    return arcs, end, least
