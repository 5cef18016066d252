"""Dropping what no good path uses, as Kaldi's ``LatticeFasterDecoder`` does, and reading what is left; by numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from quantasr.speech.lattice.compose import final_cost
from quantasr.speech.lattice.work import (
    ACOUSTIC,
    FRAMES,
    GRAPH,
    INFINITY,
    INSIDE,
    INSIDE_END,
    KEY,
    LATTICE_BEAM,
    LINKS,
    OUTWARD,
    PRUNE_DELTA,
    STATE,
    TARGET,
    TID,
    TOKENS,
    WORD,
)


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
