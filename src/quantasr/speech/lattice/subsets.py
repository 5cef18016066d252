"""Determinization of lattices over words, best paths first; compiled by numba.

As Povey et al. 2012, "Generating exact lattices in the WFST framework" (doi 10.1109/ICASSP.2012.6288848): a state of
the result is a set of states of the lattice, each with the cost and the transition-ids by which it is worse and longer
than what the set has in common. Sequences of transition-ids are nodes of one tree; that two of them are equal, below
different nodes, is told by their lengths and hashes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from quantasr.speech.lattice.heaps import pop, push

NODES, ELEMENTS, STATES, ARCS, TASKS, QUEUED, INITIALS, STAMP = range(8)
GRAPH, ACOUSTIC = range(2)
FIRST, END, PREFIX = range(3)
SOURCE, TARGET, WORD, TOP, BOTTOM, NEXT_TOP, NEXT_BOTTOM = range(7)
TASK_STATE, TASK_WORD, TASK_FIRST, TASK_END = range(4)
BASE = np.uint64(0x9E3779B97F4A7C15)
ONE = np.uint64(1)
DELTA = 1.0 / 1024.0
"""Costs that differ by no more are the same where two sets are compared (Kaldi's kDelta)."""


class Graph(NamedTuple):
    """The lattice: arcs of state ``s`` are ``first[s]`` up to ``first[s + 1]``, and lead to higher states.

    ``cost`` [arcs, 2] and ``final`` [states]: scaled graph and acoustic costs; the latter has no acoustic part.
    ``rest`` [states]: the least cost from a state to the end. ``kept`` [states]: whether a word begins there, or a path
    ends.
    """

    first: NDArray[np.int64]
    target: NDArray[np.int32]
    transition_id: NDArray[np.int32]
    word: NDArray[np.int32]
    cost: NDArray[np.float64]
    final: NDArray[np.float64]
    rest: NDArray[np.float64]
    kept: NDArray[np.bool_]


class Sets(NamedTuple):
    """What the result is made of, and the room for it.

    ``node`` [nodes, 3]: parent, transition-id, length; ``sum`` the hash of a sequence, ``power`` those of its base.
    ``element`` [elements, 2]: state, node; ``element_cost`` [elements, 2]. ``state``: its elements, and the node that
    they have in common; ``forward``: its cost from the start. ``arc``: from, to (-1: the end), word, and two paths of
    the tree, from top to bottom, whose transition-ids it takes. ``task``: an arc to make, in a heap by ``priority``.
    ``initial``: sets as arcs enter them, and which state that is, with what path and cost are between.
    """

    counts: NDArray[np.int64]
    node: NDArray[np.int32]
    sum: NDArray[np.uint64]
    power: NDArray[np.uint64]
    element: NDArray[np.int32]
    element_cost: NDArray[np.float64]
    state: NDArray[np.int32]
    forward: NDArray[np.float64]
    arc: NDArray[np.int32]
    arc_cost: NDArray[np.float64]
    task: NDArray[np.int32]
    priority: NDArray[np.float64]
    heap: NDArray[np.int32]
    initial: NDArray[np.int32]
    initial_cost: NDArray[np.float64]
    state_slots: NDArray[np.int32]
    initial_slots: NDArray[np.int32]
    mark: NDArray[np.int64]
    here: NDArray[np.int32]
    here_cost: NDArray[np.float64]
    waiting: NDArray[np.int32]
    number: NDArray[np.int32]


@njit(cache=True)
def costs_to_end(graph: Any) -> None:
    """Fill ``rest`` and ``kept``."""
    for s in range(len(graph.final) - 1, -1, -1):
        best = graph.final[s]
        graph.kept[s] = best < np.inf
        for i in range(graph.first[s], graph.first[s + 1]):
            total = graph.cost[i, 0] + graph.cost[i, 1] + graph.rest[graph.target[i]]
            if total < best:
                best = total
            if graph.word[i] != 0:
                graph.kept[s] = True
        graph.rest[s] = best


@njit(cache=True)
def _longer(sets: Any, node: int, tid: int) -> int:
    """The node of a sequence with one more transition-id; itself for 0."""
    if tid == 0:
        return node
    new = sets.counts[NODES]
    sets.counts[NODES] = new + 1
    sets.node[new, 0] = node
    sets.node[new, 1] = tid
    sets.node[new, 2] = sets.node[node, 2] + 1
    sets.sum[new] = sets.sum[node] * BASE + np.uint64(tid)
    return new


@njit(cache=True)
def _common(sets: Any, a: int, b: int) -> int:
    """The longest sequence with which both begin."""
    node = sets.node
    while node[a, 2] > node[b, 2]:
        a = node[a, 0]
    while node[b, 2] > node[a, 2]:
        b = node[b, 0]
    while sets.sum[a] != sets.sum[b]:
        a, b = node[a, 0], node[b, 0]
    return a


@njit(cache=True)
def _better(sets: Any, g: float, a: float, n: int, other_g: float, other_a: float, other_n: int) -> bool:
    """Whether a cost is less; of equal ones, by graph cost, then by the sequence, as Kaldi orders them."""
    if g + a != other_g + other_a:
        return g + a < other_g + other_a
    if g != other_g:
        return g < other_g
    if sets.sum[n] == sets.sum[other_n]:
        return False
    node = sets.node
    if node[n, 2] != node[other_n, 2]:
        return node[n, 2] < node[other_n, 2]
    while sets.sum[node[n, 0]] != sets.sum[node[other_n, 0]]:
        n, other_n = node[n, 0], node[other_n, 0]
    return node[n, 1] > node[other_n, 1]


@njit(cache=True)
def _put(sets: Any, state: int, node: int, g: float, a: float) -> None:
    at = sets.counts[ELEMENTS]
    sets.counts[ELEMENTS] = at + 1
    sets.element[at, 0], sets.element[at, 1] = state, node
    sets.element_cost[at, GRAPH], sets.element_cost[at, ACOUSTIC] = g, a


@njit(cache=True)
def _normalize(sets: Any, first: int, end: int) -> tuple[float, float, int]:
    """Take the least cost from all elements; it, and the node that they have in common."""
    cost = sets.element_cost
    best, common = first, sets.element[first, 1]
    for i in range(first + 1, end):
        total, least = cost[i, 0] + cost[i, 1], cost[best, 0] + cost[best, 1]
        if total < least or (total == least and cost[i, 0] < cost[best, 0]):
            best = i
        common = _common(sets, common, sets.element[i, 1])
    g, a = cost[best, GRAPH], cost[best, ACOUSTIC]
    for i in range(first, end):
        cost[i, GRAPH] -= g
        cost[i, ACOUSTIC] -= a
    return g, a, common


@njit(cache=True)
def _tail(sets: Any, node: int, prefix: int) -> Any:
    """The hash of what follows ``prefix`` in the sequence of ``node``."""
    return sets.sum[node] - sets.sum[prefix] * sets.power[sets.node[node, 2] - sets.node[prefix, 2]]


@njit(cache=True)
def _slot(sets: Any, slots: Any, sets_of: Any, first: int, end: int, prefix: int) -> int:
    """Where a set is in a table, or would be: elements ``first`` to ``end``, below ``prefix``."""
    key = np.uint64(end - first)
    for i in range(first, end):
        key = (key ^ np.uint64(sets.element[i, 0])) * BASE
        key = (key ^ _tail(sets, sets.element[i, 1], prefix)) * BASE
    mask = np.uint64(len(slots) - 1)
    at = (key ^ (key >> np.uint64(32))) & mask
    while slots[at] != 0:
        known = slots[at] - 1
        other, shared = sets_of[known, FIRST], sets_of[known, PREFIX]
        same = sets_of[known, END] - other == end - first
        for k in range(end - first if same else 0):
            i, j = first + k, other + k
            mine, its = sets.element_cost[i], sets.element_cost[j]
            if (
                sets.element[i, 0] != sets.element[j, 0]
                or abs((mine[0] + mine[1]) - (its[0] + its[1])) > DELTA
                or sets.node[sets.element[i, 1], 2] - sets.node[prefix, 2]
                != sets.node[sets.element[j, 1], 2] - sets.node[shared, 2]
                or _tail(sets, sets.element[i, 1], prefix) != _tail(sets, sets.element[j, 1], shared)
            ):
                same = False
                break
        if same:
            return int(at)
        at = (at + ONE) & mask
    return int(at)


@njit(cache=True)
def _close(graph: Any, sets: Any, first: int, end: int) -> None:
    """Add, as new elements, all states that a set reaches without a word and that are ``kept``, in order."""
    here, cost, heap = sets.here, sets.here_cost, sets.waiting
    sets.counts[STAMP] += 1
    stamp = sets.counts[STAMP]
    waiting = 0
    for i in range(first, end):
        s = sets.element[i, 0]
        sets.mark[s], here[s] = stamp, sets.element[i, 1]
        cost[s, 0], cost[s, 1] = sets.element_cost[i, 0], sets.element_cost[i, 1]
        waiting = push(heap, waiting, sets.number, s)
    while waiting:
        s = pop(heap, waiting, sets.number)
        waiting -= 1
        g, a, node = cost[s, 0], cost[s, 1], here[s]
        if graph.kept[s]:
            _put(sets, s, node, g, a)
        for i in range(graph.first[s], graph.first[s + 1]):
            to = graph.target[i]
            if graph.word[i] != 0 or graph.rest[to] == np.inf:
                continue
            new_g, new_a = g + graph.cost[i, 0], a + graph.cost[i, 1]
            if sets.mark[to] != stamp:
                sets.mark[to] = stamp
                waiting = push(heap, waiting, sets.number, to)
            else:
                if new_g + new_a > cost[to, 0] + cost[to, 1]:
                    continue
                longer = _longer(sets, node, graph.transition_id[i])
                if _better(sets, new_g, new_a, longer, cost[to, 0], cost[to, 1], here[to]):
                    here[to], cost[to, 0], cost[to, 1] = longer, new_g, new_a
                continue
            here[to], cost[to, 0], cost[to, 1] = _longer(sets, node, graph.transition_id[i]), new_g, new_a


@njit(cache=True)
def _add_arc(sets: Any, source: int, target: int, word: int, g: float, a: float, top: int, bottom: int) -> int:
    at = sets.counts[ARCS]
    sets.counts[ARCS] = at + 1
    arc = sets.arc
    arc[at, SOURCE], arc[at, TARGET], arc[at, WORD] = source, target, word
    arc[at, TOP], arc[at, BOTTOM], arc[at, NEXT_TOP], arc[at, NEXT_BOTTOM] = top, bottom, bottom, bottom
    sets.arc_cost[at, GRAPH], sets.arc_cost[at, ACOUSTIC] = g, a
    return at


@njit(cache=True)
def _new_state(graph: Any, sets: Any, first: int, end: int, prefix: int, forward: float, cutoff: float) -> int:
    """A state of these elements: its end, if paths end there, and its words, as tasks."""
    new = sets.counts[STATES]
    sets.counts[STATES] = new + 1
    sets.state[new, FIRST], sets.state[new, END], sets.state[new, PREFIX] = first, end, prefix
    sets.forward[new] = forward
    cost, element = sets.element_cost, sets.element
    last, words = -1, 0
    for i in range(first, end):
        s = element[i, 0]
        if graph.final[s] < np.inf and (
            last < 0
            or _better(
                sets, cost[i, 0] + graph.final[s], cost[i, 1], element[i, 1],
                cost[last, 0] + graph.final[element[last, 0]], cost[last, 1], element[last, 1],
            )
        ):  # fmt: skip
            last = i
        words += graph.first[s + 1] - graph.first[s]
    if last >= 0:
        g, a = cost[last, 0] + graph.final[element[last, 0]], cost[last, 1]
        if g + a + forward <= cutoff:
            _add_arc(sets, new, -1, 0, g, a, prefix, element[last, 1])
    keys, which, count = np.empty(words, np.int64), np.empty((words, 2), np.int64), 0
    for i in range(first, end):
        s = element[i, 0]
        for k in range(graph.first[s], graph.first[s + 1]):
            if graph.word[k] != 0 and graph.rest[graph.target[k]] < np.inf:
                keys[count] = (np.int64(graph.word[k]) << 32) + graph.target[k]
                which[count, 0], which[count, 1] = i, k
                count += 1
    order = np.argsort(keys[:count], kind="mergesort")
    begin = 0
    while begin < count:
        word, priority, stop = keys[order[begin]] >> 32, np.inf, begin
        while stop < count and keys[order[stop]] >> 32 == word:
            i, k = which[order[stop]]
            total = cost[i, 0] + cost[i, 1] + graph.cost[k, 0] + graph.cost[k, 1] + graph.rest[graph.target[k]]
            priority = min(priority, total)
            stop += 1
        if priority + forward <= cutoff:
            task = sets.counts[TASKS]
            sets.counts[TASKS] = task + 1
            sets.task[task, TASK_STATE], sets.task[task, TASK_WORD] = new, word
            sets.task[task, TASK_FIRST] = sets.counts[ELEMENTS]
            for m in range(begin, stop):
                i, k = which[order[m]]
                to, g, a = graph.target[k], cost[i, 0] + graph.cost[k, 0], cost[i, 1] + graph.cost[k, 1]
                node = _longer(sets, element[i, 1], graph.transition_id[k])
                at = sets.counts[ELEMENTS] - 1
                if at < sets.task[task, TASK_FIRST] or element[at, 0] != to:
                    _put(sets, to, node, g, a)
                elif _better(sets, g, a, node, cost[at, 0], cost[at, 1], element[at, 1]):
                    element[at, 1], cost[at, 0], cost[at, 1] = node, g, a
            sets.task[task, TASK_END] = sets.counts[ELEMENTS]
            sets.priority[task] = priority + forward
            sets.counts[QUEUED] = push(sets.heap, sets.counts[QUEUED], sets.priority, task)
        begin = stop
    return new


@njit(cache=True)
def _enter(graph: Any, sets: Any, first: int, end: int, prefix: int, forward: float, cutoff: float) -> int:
    """The record of the state that a set enters, which is made if it is new."""
    slot = _slot(sets, sets.initial_slots, sets.initial, first, end, prefix)
    if sets.initial_slots[slot] != 0:
        return sets.initial_slots[slot] - 1
    begin = sets.counts[ELEMENTS]
    _close(graph, sets, first, end)
    stop = sets.counts[ELEMENTS]
    g, a, common = _normalize(sets, begin, stop)
    known = _slot(sets, sets.state_slots, sets.state, begin, stop, common)
    if sets.state_slots[known] != 0:
        state = sets.state_slots[known] - 1
        sets.counts[ELEMENTS] = begin
    else:
        state = _new_state(graph, sets, begin, stop, common, forward + g + a, cutoff)
        sets.state_slots[known] = state + 1
    new = sets.counts[INITIALS]
    sets.counts[INITIALS] = new + 1
    row = sets.initial[new]
    row[FIRST], row[END], row[PREFIX] = first, end, prefix
    row[3], row[4] = state, common
    sets.initial_cost[new, 0], sets.initial_cost[new, 1] = g, a
    sets.initial_slots[slot] = new + 1
    return new


@njit(cache=True)
def _full(sets: Any, states: int, arcs: int) -> bool:
    counts = sets.counts
    return (
        counts[NODES] + 2 * arcs > len(sets.node)
        or counts[ELEMENTS] + states + arcs > len(sets.element)
        or counts[TASKS] + arcs > len(sets.task)
        or counts[ARCS] + 2 > len(sets.arc)
        or counts[INITIALS] + 2 > len(sets.state_slots) // 2
    )


@njit(cache=True, nogil=True)
def construct(graph: Any, sets: Any, beam: float) -> bool:
    """Make states and arcs, best paths first, of paths within ``beam`` of the best; False where room ran out."""
    sets.power[0] = ONE
    for i in range(1, len(sets.power)):
        sets.power[i] = sets.power[i - 1] * BASE
    sets.counts[:] = 0
    sets.counts[NODES] = 1
    sets.node[0] = 0
    sets.sum[0] = ONE
    cutoff = graph.rest[0] + beam
    _put(sets, 0, 0, 0.0, 0.0)
    _close(graph, sets, 0, 1)
    state = _new_state(graph, sets, 1, sets.counts[ELEMENTS], 0, 0.0, cutoff)
    while sets.counts[QUEUED]:
        if _full(sets, len(graph.final), len(graph.target)):
            return False
        task = sets.task[pop(sets.heap, sets.counts[QUEUED], sets.priority)]
        sets.counts[QUEUED] -= 1
        state, first, end = task[TASK_STATE], task[TASK_FIRST], task[TASK_END]
        g, a, prefix = _normalize(sets, first, end)
        known = _enter(graph, sets, first, end, prefix, sets.forward[state] + g + a, cutoff)
        row, more = sets.initial[known], sets.initial_cost[known]
        top = sets.state[state, PREFIX]
        at = _add_arc(sets, state, row[3], task[TASK_WORD], g + more[0], a + more[1], top, prefix)
        sets.arc[at, NEXT_TOP], sets.arc[at, NEXT_BOTTOM] = row[PREFIX], row[4]
    return True
