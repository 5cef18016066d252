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

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

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
    final_cost,
    visit,
)

INFINITY = np.float32(np.inf)
STATE, INSIDE, INSIDE_END, OUTWARD, OUTWARD_END, KEY = range(6)
TARGET, TID, WORD = range(3)
GRAPH, ACOUSTIC = range(2)
TOKENS, LINKS, FRAMES, PRUNED, BUCKETS, MARK = range(6)
NUMBERED, FIRST_NUMBER, SEARCHES = range(2, 5)
MOST_NUMBERS = 1 << 30
FIRST_BUCKETS, BUCKETS_OF_TOKEN = 1000, 2
BEAM, LATTICE_BEAM, BEAM_DELTA, PRUNE_DELTA, ACOUSTIC_SCALE = range(5)
MAX_ACTIVE, MIN_ACTIVE, PRUNE_INTERVAL = range(3)
DONE, TABLE_FULL, TOKENS_FULL, BUCKETS_FULL, NO_TOKENS = range(5)


class Work(NamedTuple):
    """What a search holds of one recording.

    ``counts``: tokens, links, frames searched, frames at the last pruning. ``token`` [tokens, 6]: graph state, its two
    ranges of links, the state's number in Kaldi. ``link`` [links, 3]: token that it leads to (-1: pruned),
    transition-id, word. ``frame[f]``: first token of frame ``f``, where 0 is before the first frame. ``dirty[f]``: 1,
    links of the frame are to be pruned. ``order``: tokens of the newest frame, counted from its first, in the order of
    Kaldi's hash table, whose buckets are ``bucket`` [buckets, 3]: mark, first and last token; ``following`` is the next
    token of a token's bucket.
    """

    counts: NDArray[np.int64]
    token: NDArray[np.int32]
    cost: NDArray[np.float32]
    extra: NDArray[np.float32]
    link: NDArray[np.int32]
    link_cost: NDArray[np.float32]
    frame: NDArray[np.int64]
    links_of: NDArray[np.int64]
    dirty: NDArray[np.uint8]
    offset: NDArray[np.float32]
    stack: NDArray[np.int32]
    scratch: NDArray[np.float32]
    beams: NDArray[np.float32]
    limits: NDArray[np.int64]
    order: NDArray[np.int32]
    following: NDArray[np.int32]
    bucket: NDArray[np.int32]
    occupied: NDArray[np.int32]


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


@njit(cache=True)
def _prune_links(work: Any, frame: int, delta: Any, final: Any, best_final: Any) -> bool:
    """Drop links whose best path is beyond the lattice beam; whether costs changed.

    ``final`` holds, of the last frame, what ending in each token costs, and is empty for other frames.
    """
    token, cost, extra, link, link_cost = work.token, work.cost, work.extra, work.link, work.link_cost
    beam = work.beams[LATTICE_BEAM]
    begin, end = work.frame[frame], work.frame[frame + 1]
    any_changed, changed = False, True
    while changed:
        changed = False
        for t in range(end - 1, begin - 1, -1):
            least = INFINITY
            if len(final):
                least = cost[t] + final[t - begin] - best_final
            for part in (INSIDE, OUTWARD):
                for i in range(token[t, part], token[t, part + 1]):
                    to = link[i, TARGET]
                    if to < 0:
                        continue
                    over = extra[to] + ((cost[t] + link_cost[i, ACOUSTIC] + link_cost[i, GRAPH]) - cost[to])
                    if over > beam:
                        link[i, TARGET] = -1
                    else:
                        least = min(least, max(over, np.float32(0)))
            if len(final):
                if least > beam:
                    least = INFINITY
                if extra[t] != least and not (
                    abs(extra[t] - least) <= np.float32(1e-5) * (abs(extra[t]) + abs(least))
                    and abs(extra[t] - least) != INFINITY
                ):
                    changed = True
            elif abs(least - extra[t]) > delta:
                changed = True
            extra[t] = least
        any_changed = any_changed or changed
    return any_changed


@njit(cache=True)
def _pack(work: Any, lowest: int, newest_stays: bool) -> None:
    """Close the gaps that pruned tokens and links leave, from frame ``lowest`` on."""
    counts, token, cost, extra = work.counts, work.token, work.cost, work.extra
    last = counts[FRAMES]
    first_token, first_link = work.frame[lowest], work.links_of[lowest]
    renamed = np.empty(counts[TOKENS] - first_token, np.int32)
    used = first_token
    for frame in range(lowest, last + 1):
        for t in range(work.frame[frame], work.frame[frame + 1]):
            if (
                extra[t] != INFINITY
                or (frame == last and newest_stays)
                or (frame == lowest and (newest_stays or t == 0))
            ):
                renamed[t - first_token] = used
                used += 1
            else:
                renamed[t - first_token] = -1
    links = work.link[first_link : counts[LINKS]].copy()
    costs = work.link_cost[first_link : counts[LINKS]].copy()
    at = first_link
    frame_end = first_token
    for frame in range(lowest, last + 1):
        old_begin, old_end = frame_end, work.frame[frame + 1]
        if frame > lowest:
            work.links_of[frame] = at
        for t in range(old_begin, old_end):
            to = renamed[t - first_token]
            if to < 0:
                continue
            for part in (INSIDE, OUTWARD):
                old, old_stop = token[t, part], token[t, part + 1]
                token[to, part] = at
                for i in range(old - first_link, old_stop - first_link):
                    target = links[i, TARGET]
                    if target >= first_token:
                        target = renamed[target - first_token]
                    if target < 0:
                        continue
                    work.link[at, TARGET] = target
                    work.link[at, TID], work.link[at, WORD] = links[i, TID], links[i, WORD]
                    work.link_cost[at, GRAPH], work.link_cost[at, ACOUSTIC] = costs[i, GRAPH], costs[i, ACOUSTIC]
                    at += 1
                token[to, part + 1] = at
            token[to, STATE], token[to, KEY] = token[t, STATE], token[t, KEY]
            cost[to], extra[to] = cost[t], extra[t]
        frame_end = old_end
        stop = used if frame == last else first_token
        if frame < last:
            stop = work.frame[frame]
            for t in range(old_begin, old_end):
                if renamed[t - first_token] >= 0:
                    stop = renamed[t - first_token] + 1
        work.frame[frame + 1] = stop
    counts[TOKENS], counts[LINKS] = used, at


@njit(cache=True)
def prune(work: Any) -> None:
    """Drop what no path within the lattice beam of the newest tokens uses (Kaldi's PruneActiveTokens)."""
    newest = work.counts[FRAMES]
    lowest = newest
    nothing = np.empty(0, np.float32)
    for frame in range(newest - 1, -1, -1):
        if work.dirty[frame]:
            changed = _prune_links(work, frame, work.beams[PRUNE_DELTA], nothing, np.float32(0))
            if changed and frame > 0:
                work.dirty[frame - 1] = 1
            work.dirty[frame] = 0
            lowest = frame
    if lowest < newest:
        _pack(work, lowest, True)


@njit(cache=True)
def finish(left: Any, right: Any, table: Any, work: Any) -> tuple[Any, Any]:
    """Prune all frames exactly, from the end: final costs of the last frame's tokens, and whether any state was final.

    Where none was final, all tokens count as final at no cost, as in Kaldi.
    """
    newest = work.counts[FRAMES]
    begin, end = work.frame[newest], work.frame[newest + 1]
    final = np.empty(end - begin, np.float32)
    best, best_final = INFINITY, INFINITY
    for t in range(begin, end):
        final[t - begin] = final_cost(left, right, table, work.token[t, STATE])
        best = min(best, work.cost[t])
        best_final = min(best_final, work.cost[t] + final[t - begin])
    reached = best_final != INFINITY
    if not reached:
        final[:] = np.float32(0)
        best_final = best
    _prune_links(work, newest, np.float32(0), final, best_final)
    nothing = np.empty(0, np.float32)
    for frame in range(newest - 1, -1, -1):
        _prune_links(work, frame, np.float32(0), nothing, np.float32(0))
    kept = final[work.extra[begin:end] != INFINITY]
    _pack(work, 0, False)
    return kept, reached


@njit(cache=True)
def lattice_arrays(work: Any, frame_of: Any, order: Any, ends: Any) -> Any:
    """Links as arrays: source, target, transition-id, word, graph cost, acoustic cost without the search's offsets.

    Tokens are renamed so that every link leads to a higher number: ``order[t]`` is the new name of token ``t``, and
    ``frame_of`` the frame of each new name. ``ends`` [1] becomes 1 where links within a frame go round in a circle.
    """
    counts, token, link = work.counts, work.token, work.link
    arcs = counts[LINKS]
    names = np.empty((arcs, 4), np.int32)
    costs = np.empty((arcs, 2), np.float32)
    indegree = np.zeros(counts[TOKENS], np.int32)
    queue = np.empty(counts[TOKENS], np.int32)
    named = 0
    for frame in range(counts[FRAMES] + 1):
        begin, end = work.frame[frame], work.frame[frame + 1]
        for t in range(begin, end):
            for i in range(token[t, INSIDE], token[t, INSIDE_END]):
                indegree[link[i, TARGET]] += 1
        waiting, done = 0, 0
        for t in range(begin, end):
            if indegree[t] == 0:
                queue[waiting] = t
                waiting += 1
        while done < waiting:
            t = queue[done]
            done += 1
            order[t] = named
            frame_of[named] = frame
            named += 1
            for i in range(token[t, INSIDE], token[t, INSIDE_END]):
                to = link[i, TARGET]
                indegree[to] -= 1
                if indegree[to] == 0:
                    queue[waiting] = to
                    waiting += 1
        if waiting < end - begin:
            ends[0] = 1
            return names, costs
    at = 0
    for t in range(counts[TOKENS]):
        frame = frame_of[order[t]]
        for part in (INSIDE, OUTWARD):
            for i in range(token[t, part], token[t, part + 1]):
                names[at, 0], names[at, 1] = order[t], order[link[i, TARGET]]
                names[at, 2], names[at, 3] = link[i, TID], link[i, WORD]
                costs[at, 0] = work.link_cost[i, GRAPH]
                costs[at, 1] = work.link_cost[i, ACOUSTIC] - (work.offset[frame] if part == OUTWARD else np.float32(0))
                at += 1
    return names, costs
