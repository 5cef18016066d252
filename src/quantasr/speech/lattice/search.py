"""Kaldi's lattice-generating beam search (``LatticeFasterDecoder``), frame by frame; compiled by numba.

Tokens and links lie in growing arrays in the order of frames; a token's links within its frame and those to the next
frame are two ranges. Costs are float32. A frame for which an array is too small is undone, so that the caller can make
room and go on.

Where the number of active tokens is limited, which tokens survive depends on the order in which they are taken: a good
one, taken late, has not yet tightened the beam for those before it. Kaldi takes them in the order of its hash table,
which depends on the numbers of the graph's states, and these on the order in which they were composed. Both orders are
kept here, so that the survivors are the same: states of a composed graph are numbered as Kaldi would in this
recording, though their arcs may be known from an earlier one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from quantasr.speech.lattice.compose import (
    ARCS,
    BEGIN,
    EPSILONS,
    INPUT,
    NEXT,
    NUMBER,
    OUTPUT,
    RECORDING,
    TOKEN,
    WEIGHT,
    visit,
)
from quantasr.speech.lattice.pruning import prune
from quantasr.speech.lattice.work import (
    ACOUSTIC,
    ACOUSTIC_SCALE,
    BEAM,
    BEAM_DELTA,
    BUCKETS,
    BUCKETS_FULL,
    BUCKETS_OF_TOKEN,
    DONE,
    FIRST_BUCKETS,
    FIRST_NUMBER,
    FRAMES,
    GRAPH,
    INFINITY,
    INSIDE,
    INSIDE_END,
    KEY,
    LINKS,
    MARK,
    MAX_ACTIVE,
    MIN_ACTIVE,
    MOST_NUMBERS,
    NO_TOKENS,
    NUMBERED,
    OUTWARD,
    OUTWARD_END,
    PRUNE_INTERVAL,
    PRUNED,
    SEARCHES,
    STATE,
    TABLE_FULL,
    TARGET,
    TID,
    TOKENS,
    TOKENS_FULL,
    WORD,
)


@njit(cache=True)
def _enter(left: Any, right: Any, table: Any, work: Any, state: int) -> bool:
    """Know the arcs of a graph state, and number the states behind them as Kaldi would; False: no room."""
    known, counts = table.state, table.counts
    if known[state, BEGIN] == 0 and not visit(left, right, table, state):
        return False
    if len(table.keys) and known[state, RECORDING] != counts[SEARCHES]:
        known[state, RECORDING] = counts[SEARCHES]
        at = known[state, BEGIN] - 1
        for i in range(at, at + known[state, ARCS]):
            to = table.arcs[i, NEXT]
            if known[to, NUMBER] < counts[FIRST_NUMBER]:
                known[to, NUMBER] = counts[FIRST_NUMBER] + counts[NUMBERED]
                counts[NUMBERED] += 1
    return True


@njit(cache=True)
def _sort_by_bucket(work: Any, begin: int) -> int:
    """Fill ``order`` with the tokens from ``begin`` on: bucket by bucket, as they came (Kaldi's HashList)."""
    counts, bucket, occupied, following = work.counts, work.bucket, work.occupied, work.following
    buckets = np.uint32(counts[BUCKETS])
    counts[MARK] += 1
    mark = np.int32(counts[MARK])
    used = 0
    for t in range(begin, counts[TOKENS]):
        b = np.uint32(work.token[t, KEY]) % buckets
        here = t - begin
        following[here] = -1
        if bucket[b, 0] != mark:
            bucket[b, 0], bucket[b, 1] = mark, here
            occupied[used] = b
            used += 1
        else:
            following[bucket[b, 2]] = here
        bucket[b, 2] = here
    at = 0
    for i in range(used):
        here = bucket[occupied[i], 1]
        while here >= 0:
            work.order[at] = here
            at += 1
            here = following[here]
    return at


@njit(cache=True)
def _smallest(values: Any, count: int, rank: int) -> Any:
    """The value of this rank among the first ``count``, which are rearranged (quickselect)."""
    low, high = 0, count - 1
    while low < high:
        pivot = values[(low + high) >> 1]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if rank <= j:
            high = j
        elif rank >= i:
            low = i
        else:
            break
    return values[rank]


@njit(cache=True)
def _cutoff(work: Any, begin: int, end: int) -> tuple[Any, Any, int]:
    """The cost up to which tokens go on, the beam around it, and the best token (Kaldi's GetCutoff)."""
    cost, scratch = work.cost, work.scratch
    beam, max_active, min_active = work.beams[BEAM], work.limits[MAX_ACTIVE], work.limits[MIN_ACTIVE]
    best, best_cost = -1, INFINITY
    for k in range(end - begin):
        t = begin + work.order[k]
        if cost[t] < best_cost:
            best, best_cost = t, cost[t]
    by_beam = best_cost + beam
    within = 0
    for t in range(begin, end):
        if cost[t] <= by_beam:
            within += 1
    count = end - begin
    if count > max_active and within > max_active:
        for t in range(begin, end):
            scratch[t - begin] = cost[t]
        limit = _smallest(scratch, count, max_active)
        if limit < by_beam:
            return limit, (limit - best_cost) + work.beams[BEAM_DELTA], best
    if count <= min_active:
        return INFINITY, INFINITY, best
    if within <= min_active:
        for t in range(begin, end):
            scratch[t - begin] = cost[t]
        limit = _smallest(scratch, count, min_active)
        if limit > by_beam:
            return limit, (limit - best_cost) + work.beams[BEAM_DELTA], best
    return by_beam, beam, best


@njit(cache=True)
def _token_of(table: Any, work: Any, state: int, first: int, cost: Any) -> tuple[Any, bool]:
    """The token of a graph state in the newest frame, made or made cheaper; whether it was; -1 without room."""
    t = table.state[state, TOKEN]
    used = work.counts[TOKENS]
    if first <= t < used and work.token[t, STATE] == state:
        if work.cost[t] > cost:
            work.cost[t] = cost
            return t, True
        return t, False
    if used >= len(work.cost):
        return -1, False
    t = np.int32(used)
    work.counts[TOKENS] = used + 1
    token = work.token
    token[t, STATE] = state
    token[t, INSIDE] = token[t, INSIDE_END] = token[t, OUTWARD] = token[t, OUTWARD_END] = 0
    work.cost[t] = cost
    work.extra[t] = np.float32(0)
    table.state[state, TOKEN] = t
    token[t, KEY] = table.state[state, NUMBER] - table.counts[FIRST_NUMBER] if len(table.keys) else state
    return t, True


@njit(cache=True)
def _emit(left: Any, right: Any, table: Any, work: Any, row: Any, pdf_of_tid: Any) -> tuple[int, Any]:
    """Tokens of the next frame; the cutoff for them (Kaldi's ProcessEmitting)."""
    frame = work.counts[FRAMES]
    begin, end = work.frame[frame], work.frame[frame + 1]
    cutoff, beam, best = _cutoff(work, begin, end)
    token, cost, link, link_cost = work.token, work.cost, work.link, work.link_cost
    scale = work.beams[ACOUSTIC_SCALE]
    next_cutoff, offset = INFINITY, np.float32(0)
    if best >= 0:
        state = token[best, STATE]
        if not _enter(left, right, table, work, state):
            return TABLE_FULL, next_cutoff
        offset = -cost[best]
        at = table.state[state, BEGIN] - 1
        for i in range(at, at + table.state[state, ARCS]):
            tid = table.arcs[i, INPUT]
            if tid != 0:
                new = table.weights[i, WEIGHT] + offset - scale * row[pdf_of_tid[tid]] + cost[best]
                if new + beam < next_cutoff:
                    next_cutoff = new + beam
    work.offset[frame] = offset
    used = work.counts[LINKS]
    for k in range(end - begin):
        t = begin + work.order[k]
        if cost[t] > cutoff:
            token[t, OUTWARD] = token[t, OUTWARD_END] = 0
            continue
        state = token[t, STATE]
        if not _enter(left, right, table, work, state):
            return TABLE_FULL, next_cutoff
        token[t, OUTWARD] = used
        at = table.state[state, BEGIN] - 1
        if used + table.state[state, ARCS] > len(link):
            return TOKENS_FULL, next_cutoff
        for i in range(at, at + table.state[state, ARCS]):
            tid = table.arcs[i, INPUT]
            if tid == 0:
                continue
            acoustic = offset - scale * row[pdf_of_tid[tid]]
            graph = table.weights[i, WEIGHT]
            total = cost[t] + acoustic + graph
            if total >= next_cutoff:
                continue
            if total + beam < next_cutoff:
                next_cutoff = total + beam
            to, _ = _token_of(table, work, table.arcs[i, NEXT], end, total)
            if to < 0:
                return TOKENS_FULL, next_cutoff
            link[used, TARGET], link[used, TID], link[used, WORD] = to, tid, table.arcs[i, OUTPUT]
            link_cost[used, GRAPH], link_cost[used, ACOUSTIC] = graph, acoustic
            used += 1
        token[t, OUTWARD_END] = used
    work.counts[LINKS] = used
    return DONE, next_cutoff


@njit(cache=True)
def _follow_epsilons(left: Any, right: Any, table: Any, work: Any, first: int, cutoff: Any) -> int:
    """Tokens that are reached within the newest frame, which begins at ``first`` (Kaldi's ProcessNonemitting)."""
    token, cost, link, link_cost, stack = work.token, work.cost, work.link, work.link_cost, work.stack
    used = work.counts[LINKS]
    pending = 0
    for k in range(_sort_by_bucket(work, first)):
        t = first + work.order[k]
        state = token[t, STATE]
        if not _enter(left, right, table, work, state):
            return TABLE_FULL
        if table.state[state, EPSILONS] != 0:
            if pending >= len(stack):
                return TOKENS_FULL
            stack[pending] = t
            pending += 1
    while pending:
        pending -= 1
        t = stack[pending]
        total_here = cost[t]
        if total_here >= cutoff:
            continue
        state = token[t, STATE]
        at = table.state[state, BEGIN] - 1
        if used + table.state[state, ARCS] > len(link):
            return TOKENS_FULL
        token[t, INSIDE] = used  # links of an earlier visit are dropped
        for i in range(at, at + table.state[state, ARCS]):
            if table.arcs[i, INPUT] != 0:
                continue
            graph = table.weights[i, WEIGHT]
            total = total_here + graph
            if total >= cutoff:
                continue
            following = table.arcs[i, NEXT]
            to, changed = _token_of(table, work, following, first, total)
            if to < 0:
                return TOKENS_FULL
            link[used, TARGET], link[used, TID], link[used, WORD] = to, 0, table.arcs[i, OUTPUT]
            link_cost[used, GRAPH], link_cost[used, ACOUSTIC] = graph, np.float32(0)
            used += 1
            if changed:
                if not _enter(left, right, table, work, following):
                    return TABLE_FULL
                if table.state[following, EPSILONS] != 0:
                    if pending >= len(stack):
                        return TOKENS_FULL
                    stack[pending] = to
                    pending += 1
        token[t, INSIDE_END] = used
    work.counts[LINKS] = used
    _sort_by_bucket(work, first)
    return DONE


@njit(cache=True)
def begin_search(left: Any, right: Any, table: Any, work: Any, start: int) -> int:
    """The tokens before the first frame; a status."""
    counts = work.counts
    counts[TOKENS] = counts[LINKS] = counts[FRAMES] = counts[PRUNED] = 0
    counts[BUCKETS] = FIRST_BUCKETS
    if len(table.keys):
        known = table.counts
        known[FIRST_NUMBER] += known[NUMBERED] + 1
        known[SEARCHES] += 1
        if known[FIRST_NUMBER] > MOST_NUMBERS:
            known[FIRST_NUMBER] = known[SEARCHES] = 1
            table.state[: known[0], NUMBER] = 0
            table.state[: known[0], RECORDING] = 0
        table.state[start, NUMBER] = known[FIRST_NUMBER]
        known[NUMBERED] = 1
    work.frame[0] = 0
    work.links_of[0] = 0
    _token_of(table, work, start, 0, np.float32(0))
    status = _follow_epsilons(left, right, table, work, 0, work.beams[BEAM])
    work.frame[1] = work.counts[TOKENS]
    work.links_of[1] = 0
    work.dirty[0] = 1
    return status


@njit(cache=True, nogil=True)
def advance(left: Any, right: Any, table: Any, work: Any, scores: Any, pdf_of_tid: Any, begin: int) -> int:
    """Search the frames of ``scores`` [frames, pdfs], whose first is number ``begin``; a status.

    Anything but DONE leaves the frame ``work.counts[FRAMES]`` to be searched again.
    """
    counts = work.counts
    while counts[FRAMES] < begin + len(scores):
        frame = counts[FRAMES]
        if frame % work.limits[PRUNE_INTERVAL] == 0 and counts[PRUNED] != frame:
            prune(work)
            counts[PRUNED] = frame
        tokens, links = counts[TOKENS], counts[LINKS]
        count = BUCKETS_OF_TOKEN * (tokens - work.frame[frame])
        if count > len(work.bucket):
            return BUCKETS_FULL
        counts[BUCKETS] = max(counts[BUCKETS], count)
        status, cutoff = _emit(left, right, table, work, scores[frame - begin], pdf_of_tid)
        inside = counts[LINKS]
        if status == DONE:
            status = _follow_epsilons(left, right, table, work, tokens, cutoff)
        if status == DONE and counts[TOKENS] == tokens:
            status = NO_TOKENS
        if status != DONE:
            counts[TOKENS], counts[LINKS] = tokens, links
            return status
        counts[FRAMES] = frame + 1
        work.frame[frame + 2] = counts[TOKENS]
        work.links_of[frame + 1] = inside
        work.dirty[frame + 1] = 1
    return DONE
