"""The best path of a search that is under way; compiled by numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from quantasr.speech.lattice.work import ACOUSTIC, FRAMES, GRAPH, INSIDE, OUTWARD, STATE, TARGET, TID


@njit(cache=True)
def trace_back(work: Any, tids: Any, states: Any) -> None:
    """The transition-ids of the best path to the newest frame, without final costs, into ``tids`` [frames].

    ``states`` [frames]: the graph state before each, -1 where none is known yet. Both hold an earlier path at first;
    where the new one meets it, the rest is the same.
    """
    token, cost, link, link_cost = work.token, work.cost, work.link, work.link_cost
    frame = work.counts[FRAMES]
    begin, end = work.frame[frame], work.frame[frame + 1]
    if frame == 0 or begin == end:
        return
    t = begin
    for other in range(begin + 1, end):
        if cost[other] < cost[t]:
            t = other
    while frame > 0:
        # The link that made the token as cheap as it is: its sum was computed in this order, so one is exactly equal.
        source, made, nearest = -1, -1, np.float32(np.inf)
        for s in range(work.frame[frame - 1], work.frame[frame]):
            for i in range(token[s, OUTWARD], token[s, OUTWARD + 1]):
                if link[i, TARGET] == t:
                    off = abs(cost[s] + link_cost[i, ACOUSTIC] + link_cost[i, GRAPH] - cost[t])
                    if off < nearest:
                        source, made, nearest = s, i, off
        for s in range(work.frame[frame], work.frame[frame + 1]):
            if nearest == 0:
                break
            for i in range(token[s, INSIDE], token[s, INSIDE + 1]):
                if link[i, TARGET] == t:
                    off = abs(cost[s] + link_cost[i, GRAPH] - cost[t])
                    if off < nearest:
                        source, made, nearest = s, i, off
        if source < 0:
            return
        t = source
        if link[made, TID] == 0:
            continue
        frame -= 1
        if states[frame] == token[t, STATE]:  # Kaldi stops here too, though another arc may have led on from it
            return
        tids[frame], states[frame] = link[made, TID], token[t, STATE]
