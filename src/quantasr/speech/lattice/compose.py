"""HCLr composed with Gr while decoding, as OpenFst composes them; compiled by numba.

The result has the same arcs and costs as ``ComposeFst`` of an ``olabel_lookahead`` FST and any acceptor or transducer
sorted by input label: an alternative sequence filter (epsilons of the right FST first), lookahead along output epsilons
of the left one, and costs and labels pushed to where lookahead knows them (Allauzen, Riley and Schalkwyk, "A
generalized composition algorithm for weighted finite-state transducers", Interspeech 2009; OpenFst's
lookahead-filter.h, label-reachable.h and accumulator.h). Costs are float32 where OpenFst's are, logarithms are taken in
float64.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

INPUT, OUTPUT, WEIGHT, NEXT = range(4)
INFINITY = np.float32(np.inf)
QUANTUM = np.float32(1 / 1024)
"""Pushed costs that differ by less are one state."""
BEGIN, ARCS, EPSILONS, TOKEN, NUMBER, RECORDING = range(6)
STORED, PERIOD = 20, 10
"""States of the right FST with this many arcs have their costs summed up beforehand, at every tenth arc."""


class Left(NamedTuple):
    """The lookahead FST. ``removed[label]``: input labels that become epsilon. ``final_label`` [1]."""

    first: NDArray[np.int32]
    arcs: NDArray[np.int32]
    weights: NDArray[np.float32]
    final: NDArray[np.float32]
    reach: NDArray[np.int32]
    intervals: NDArray[np.int32]
    final_label: NDArray[np.int32]
    removed: NDArray[np.bool_]


class Right(NamedTuple):
    """The language model. ``sum_at[state]`` is where in ``sums`` its arcs' costs are summed up, or -1.

    ``big`` [1] is its state with most arcs, and ``big_at[label]`` the position of the first arc there with this
    label or a larger one.
    """

    first: NDArray[np.int32]
    arcs: NDArray[np.int32]
    weights: NDArray[np.float32]
    final: NDArray[np.float32]
    sum_at: NDArray[np.int32]
    sums: NDArray[np.float64]
    big: NDArray[np.int32]
    big_at: NDArray[np.int32]


class Table(NamedTuple):
    """States of the decoding graph that are known so far, and the arcs of those that were visited.

    ``counts``: states, arcs, and three that belong to the search. ``keys`` [states, 4]: left state, right state, filter
    (1: no epsilons of the right FST; 2: a label was pushed), and the pushed label or cost. ``state`` [states, 8] keeps
    in one place what a search asks of a state: one more than the position of its first arc (0 where it was not
    visited), its number of arcs, how many of them are epsilons, and then what belongs to the search (its token, its
    number in this recording, and the recording). Of a static graph everything is known: ``keys`` and ``slots`` are
    empty, and ``state`` is [states, 4].
    """

    counts: NDArray[np.int64]
    keys: NDArray[np.int32]
    slots: NDArray[np.int32]
    state: NDArray[np.int32]
    arcs: NDArray[np.int32]
    weights: NDArray[np.float32]
    final: NDArray[np.float32]


@njit(cache=True)
def _log_plus(a: Any, b: Any) -> Any:
    """-log(exp(-a) + exp(-b)), in float64."""
    if a > b:
        return b - math.log(1.0 + math.exp(b - a))
    return a - math.log(1.0 + math.exp(a - b))


@njit(cache=True)
def cost_sums(first: Any, weights: Any, sum_at: Any, sums: Any) -> int:
    """Fill ``sum_at`` and, at every tenth arc of large states, the log-sum of the costs before; gives their number."""
    used = 0
    for s in range(len(first) - 1):
        sum_at[s] = -1
        if first[s + 1] - first[s] < STORED:
            continue
        sum_at[s] = used
        total: Any = np.inf
        sums[used] = total
        used += 1
        for i in range(first[s], first[s + 1]):
            cost = np.float64(weights[i, WEIGHT])
            total = cost if total == np.inf else _log_plus(total, cost)
            if (i + 1 - first[s]) % PERIOD == 0:
                sums[used] = total
                used += 1
    return used


@njit(cache=True)
def _plus_arc(total: Any, cost: Any) -> Any:
    if total == INFINITY:
        return cost
    return np.float32(_log_plus(np.float64(total), np.float64(cost)))


@njit(cache=True)
def _plus_range(right: Any, s: int, total: Any, begin: int, end: int) -> Any:
    """``total`` and the costs of arcs ``begin`` to ``end`` of state ``s``, by the stored sums where there are any."""
    base = right.first[s]
    stored_begin, stored_end = end, end
    first_index, last_index = 0, 0
    if right.sum_at[s] >= 0:
        first_index = (begin - 1) // PERIOD + 1 if begin > 0 else 0
        last_index = end // PERIOD
        stored_begin, stored_end = first_index * PERIOD, last_index * PERIOD
    for i in range(begin, min(stored_begin, end)):
        total = _plus_arc(total, right.weights[base + i, WEIGHT])
    if stored_begin < stored_end:
        f1 = right.sums[right.sum_at[s] + last_index]
        f2 = right.sums[right.sum_at[s] + first_index]
        if f1 < f2:
            part = f1 if f2 == np.inf else f1 - math.log(1.0 - math.exp(f1 - f2))
            total = _plus_arc(total, np.float32(part))
    for i in range(max(stored_begin, stored_end), end):
        total = _plus_arc(total, right.weights[base + i, WEIGHT])
    return total


@njit(cache=True)
def _reaches(left: Any, s: int, label: int) -> bool:
    """Whether output label ``label`` is met from ``s`` before any other."""
    low, high = left.reach[s], left.reach[s + 1]
    begin = low
    while low < high:
        middle = (low + high) >> 1
        if left.intervals[middle, 0] <= label:
            low = middle + 1
        else:
            high = middle
    return low > begin and left.intervals[low - 1, 1] > label


@njit(cache=True)
def _position(right: Any, s: int, low: int, high: int, label: int) -> int:
    """Of arcs ``low`` to ``high`` of state ``s``, the first with this input label or a larger one."""
    if s == right.big[0]:
        at = right.big_at[min(max(label, 0), len(right.big_at) - 1)]
        return min(max(at, low), high)
    base = right.first[s]
    while low < high:
        middle = (low + high) >> 1
        if right.arcs[base + middle, INPUT] < label:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True)
def _look_ahead(left: Any, right: Any, s1: int, s2: int) -> tuple[bool, Any, int]:
    """Whether anything can follow in both FSTs; the log-sum of the right one's costs; its arc if there is only one."""
    low, high = left.reach[s1], left.reach[s1 + 1]
    base = right.first[s2]
    arcs = right.first[s2 + 1] - base
    begin, end = -1, -1
    total = INFINITY
    if 2 * arcs < high - low:
        last = -1
        for i in range(arcs):
            label = right.arcs[base + i, INPUT]
            if label != 0 and (label == last or _reaches(left, s1, label)):
                last = label
                if begin < 0:
                    begin = i
                end = i + 1
                total = _plus_arc(total, right.weights[base + i, WEIGHT])
    else:
        to = 0
        for k in range(low, high):
            at = _position(right, s2, to, arcs, left.intervals[k, 0])
            to = _position(right, s2, at, arcs, left.intervals[k, 1])
            if to > at:
                if begin < 0:
                    begin = at
                end = to
                total = _plus_range(right, s2, total, at, to)
    final = right.final[s2]
    reaches_final = final != INFINITY and _reaches(left, s1, left.final_label[0])
    if begin < 0:
        return reaches_final, final, -1
    if end - begin == 1 and not reaches_final:
        return True, np.float32(0), base + begin
    if reaches_final and final < total:
        total = final
    return True, total, -1


@njit(cache=True)
def state_of(table: Any, s1: int, s2: int, kind: int, pushed: int) -> Any:
    """The number of a composed state, a new one where it was not known; -1 where the table is full."""
    keys, slots = table.keys, table.slots
    mixed = np.uint64(s1) * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(s2) * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= np.uint64(np.uint32(pushed)) * np.uint64(0x165667B19E3779F9) + np.uint64(kind)
    mixed ^= mixed >> np.uint64(29)
    mask = len(slots) - 1
    slot = np.int64(mixed & np.uint64(0x7FFFFFFF)) & mask
    while slots[slot] != 0:
        state = slots[slot] - 1
        if keys[state, 0] == s1 and keys[state, 1] == s2 and keys[state, 2] == kind and keys[state, 3] == pushed:
            return state
        slot = (slot + 1) & mask
    state = np.int32(table.counts[0])
    if state >= len(keys):
        return -1
    table.counts[0] += 1
    slots[slot] = state + 1
    keys[state, 0], keys[state, 1], keys[state, 2], keys[state, 3] = s1, s2, kind, pushed
    return state


@njit(cache=True)
def _add(left: Any, table: Any, tid: int, word: int, cost: Any, s1: int, s2: int, kind: int, pushed: int) -> bool:
    at = table.counts[1]
    if at >= len(table.arcs):
        return False
    state = state_of(table, s1, s2, kind, pushed)
    if state < 0:
        return False
    table.arcs[at, INPUT] = 0 if left.removed[tid] else tid
    table.arcs[at, OUTPUT] = word
    table.weights[at, WEIGHT] = cost
    table.arcs[at, NEXT] = state
    table.counts[1] = at + 1
    return True


@njit(cache=True)
def _left_epsilon(left: Any, right: Any, table: Any, i: int, s2: int, filter_state: int, pushed_cost: Any) -> bool:
    """Add the arc for arc ``i`` of the left FST, whose output is epsilon, where lookahead finds a future."""
    following = left.arcs[i, NEXT]
    tid, own = left.arcs[i, INPUT], left.weights[i, WEIGHT]
    alive, ahead, only = _look_ahead(left, right, following, s2)
    if not alive:
        return True
    if only >= 0:  # its label is pushed to here
        cost = own + (-pushed_cost + right.weights[only, WEIGHT])
        word, label = right.arcs[only, OUTPUT], right.arcs[only, INPUT]
        return _add(left, table, tid, word, cost, following, right.arcs[only, NEXT], filter_state | 2, label)
    if ahead == INFINITY:
        return True
    steps = np.int32(math.floor(ahead / QUANTUM + np.float32(0.5)))
    return _add(left, table, tid, 0, own + (ahead - pushed_cost), following, s2, filter_state, steps)


@njit(cache=True)
def _after_label(left: Any, table: Any, s1: int, s2: int, kind: int, label: int, in_order: bool) -> bool:
    """Arcs of a state where ``label`` was pushed: the left FST goes on alone until it gives this label.

    In the order of the left FST, or those first that give it: whichever OpenFst takes.
    """
    begin, end = left.first[s1], left.first[s1 + 1]
    for turn in range(1 if in_order else 2):
        for i in range(begin, end):
            given = left.arcs[i, OUTPUT]
            following = left.arcs[i, NEXT]
            done = True
            if given == label and turn == 0:
                done = _add(left, table, left.arcs[i, INPUT], 0, left.weights[i, WEIGHT], following, s2, 0, 0)
            elif given == 0 and (in_order or turn == 1) and (end - begin == 1 or _reaches(left, following, label)):
                done = _add(left, table, left.arcs[i, INPUT], 0, left.weights[i, WEIGHT], following, s2, kind, label)
            if not done:
                return False
    return True


@njit(cache=True)
def _match(left: Any, right: Any, table: Any, i: int, j: int, pushed_cost: Any) -> bool:
    cost = left.weights[i, WEIGHT] + (right.weights[j, WEIGHT] - pushed_cost)
    s1, s2 = left.arcs[i, NEXT], right.arcs[j, NEXT]
    return _add(left, table, left.arcs[i, INPUT], right.arcs[j, OUTPUT], cost, s1, s2, 0, 0)


@njit(cache=True)
def _arcs_from(left: Any, right: Any, table: Any, state: int) -> bool:
    s1, s2 = table.keys[state, 0], table.keys[state, 1]
    kind, pushed = table.keys[state, 2], table.keys[state, 3]
    begin1, end1 = left.first[s1], left.first[s1 + 1]
    begin2, end2 = right.first[s2], right.first[s2 + 1]
    by_left = end1 - begin1 <= end2 - begin2  # OpenFst walks over the shorter list and searches in the other
    if kind & 2:
        return _after_label(left, table, s1, s2, kind, pushed, by_left)
    cost = np.float32(pushed) * QUANTUM
    epsilons = 0
    while begin2 + epsilons < end2 and right.arcs[begin2 + epsilons, INPUT] == 0:
        epsilons += 1
    alone = not (epsilons == end2 - begin2 and right.final[s2] == INFINITY)
    filter_state = 0 if epsilons == 0 else 1
    if not by_left and alone:
        for i in range(begin1, end1):
            if left.arcs[i, OUTPUT] != 0:
                break
            if not _left_epsilon(left, right, table, i, s2, filter_state, cost):
                return False
    if kind == 0:
        for j in range(begin2, begin2 + epsilons):
            to = right.arcs[j, NEXT]
            if not _add(left, table, 0, right.arcs[j, OUTPUT], right.weights[j, WEIGHT] - cost, s1, to, 0, 0):
                return False
    if by_left:
        for i in range(begin1, end1):
            label = left.arcs[i, OUTPUT]
            if label == 0:
                if alone and not _left_epsilon(left, right, table, i, s2, filter_state, cost):
                    return False
                continue
            j = begin2 + _position(right, s2, 0, end2 - begin2, label)
            while j < end2 and right.arcs[j, INPUT] == label:
                if not _match(left, right, table, i, j, cost):
                    return False
                j += 1
        return True
    for j in range(begin2 + epsilons, end2):
        label = right.arcs[j, INPUT]
        low, high = begin1, end1
        while low < high:
            middle = (low + high) >> 1
            if left.arcs[middle, OUTPUT] < label:
                low = middle + 1
            else:
                high = middle
        while low < end1 and left.arcs[low, OUTPUT] == label:
            if not _match(left, right, table, low, j, cost):
                return False
            low += 1
    return True


@njit(cache=True)
def visit(left: Any, right: Any, table: Any, state: int) -> bool:
    """Find the arcs of a composed state; False where the table is full, which leaves the state unvisited."""
    at = table.counts[1]
    if not _arcs_from(left, right, table, state):
        table.counts[1] = at
        return False
    epsilons = 0
    for i in range(at, table.counts[1]):
        if table.arcs[i, INPUT] == 0:
            epsilons += 1
    table.state[state, ARCS] = table.counts[1] - at
    table.state[state, EPSILONS] = epsilons
    table.state[state, BEGIN] = at + 1
    return True


@njit(cache=True)
def final_cost(left: Any, right: Any, table: Any, state: int) -> Any:
    """The cost of ending in a state, infinite where that cannot be."""
    if len(table.keys) == 0:
        return table.final[state]
    s1, s2 = table.keys[state, 0], table.keys[state, 1]
    if table.keys[state, 2] & 2 or left.final[s1] == INFINITY or right.final[s2] == INFINITY:
        return INFINITY
    return (left.final[s1] - np.float32(table.keys[state, 3]) * QUANTUM) + right.final[s2]
