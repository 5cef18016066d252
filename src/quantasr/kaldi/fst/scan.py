"""Walks over the parts of FST files in which a length stands before each record; compiled by numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Bytes = NDArray[np.uint8]


@njit(cache=True)
def _int32(data: Any, at: int) -> Any:
    return np.int32(
        np.uint32(data[at])
        | (np.uint32(data[at + 1]) << np.uint32(8))
        | (np.uint32(data[at + 2]) << np.uint32(16))
        | (np.uint32(data[at + 3]) << np.uint32(24))
    )


@njit(cache=True)
def _int64(data: Any, at: int) -> Any:
    low, high = np.int64(_int32(data, at)), np.int64(_int32(data, at + 4))
    return (high << np.int64(32)) | (low & np.int64(0xFFFFFFFF))


@njit(cache=True)
def vector_states(data: Any, at: int, states: int, first: Any, final: Any) -> tuple[int, int]:
    """Fill ``first`` and ``final`` (as bits) of a vector FST; gives where it ends, and the state that fails or -1."""
    size = len(data)
    total = 0
    for s in range(states):
        if size - at < 12:
            return at, s
        final[s] = _int32(data, at)
        count = _int64(data, at + 4)
        if count < 0 or count > (size - at - 12) // 16:
            return at, s
        total += count
        if total > 0x7FFFFFFF:
            return at, s
        first[s + 1] = total
        at += 12 + 16 * count
    return at, -1


@njit(cache=True)
def vector_arcs(data: Any, at: int, first: Any, arcs: Any) -> None:
    """Copy the arcs of a vector FST that ``vector_states`` has walked over; ``arcs`` is of bytes [arcs, 16]."""
    for s in range(len(first) - 1):
        at += 12
        for i in range(first[s], first[s + 1]):
            for j in range(16):
                arcs[i, j] = data[at + j]
            at += 16


@njit(cache=True)
def interval_sets(data: Any, at: int, states: int, first: Any, intervals: Any) -> tuple[int, int]:
    """Fill the intervals of a label-reachability table; gives where it ends, and the state that fails or -1."""
    size = len(data)
    total = 0
    for s in range(states):
        if size - at < 12:
            return at, s
        count = _int64(data, at)
        if count < 0 or count > (size - at - 12) // 8 or total + count > len(intervals):
            return at, s
        at += 8
        for i in range(total, total + count):
            intervals[i, 0] = _int32(data, at)
            intervals[i, 1] = _int32(data, at + 4)
            at += 8
        at += 4
        total += count
        first[s + 1] = total
    return at, -1


@njit(cache=True)
def ngram_targets(futures: Any, words: Any, parents: Any, child_first: Any, labels: Any, targets: Any) -> None:
    """The state after each word from each history: the longest suffix of history and word that is a history.

    ``parents`` and ``labels``: of each history, the one without its oldest word, and that word. Children of history
    ``s``, in order of their labels, are ``child_first[s]`` up to ``child_first[s + 1]``.
    """
    context = np.empty(64, np.int32)
    for s in range(len(futures) - 1):
        depth = 0
        node = s
        while node != 0 and depth < 64:
            context[depth] = labels[node]
            depth += 1
            node = parents[node]
        for i in range(futures[s], futures[s + 1]):
            node = 0
            word = words[i]
            level = depth
            while True:
                low, high = child_first[node], child_first[node + 1]
                end = high
                while low < high:
                    middle = (low + high) >> 1
                    if labels[middle] < word:
                        low = middle + 1
                    else:
                        high = middle
                if low == end or labels[low] != word:
                    break
                node = low
                level -= 1
                if level < 0:
                    break
                word = context[level]
            targets[i] = node
