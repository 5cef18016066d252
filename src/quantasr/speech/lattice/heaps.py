"""Heaps of integers in order of their keys; compiled by numba."""

from __future__ import annotations

from typing import Any

from numba import njit


@njit(cache=True)
def push(heap: Any, count: int, keys: Any, item: int) -> int:
    """Add ``item``, whose key is ``keys[item]``, to the ``count`` that there are; their number then."""
    at = count
    heap[at] = item
    while at > 0 and keys[heap[(at - 1) >> 1]] > keys[heap[at]]:
        heap[at], heap[(at - 1) >> 1] = heap[(at - 1) >> 1], heap[at]
        at = (at - 1) >> 1
    return count + 1


@njit(cache=True)
def pop(heap: Any, count: int, keys: Any) -> Any:
    """Take the item of the least key away, of ``count``."""
    top = heap[0]
    heap[0] = heap[count - 1]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= count - 1:
            return top
        if child + 1 < count - 1 and keys[heap[child + 1]] < keys[heap[child]]:
            child += 1
        if keys[heap[at]] <= keys[heap[child]]:
            return top
        heap[at], heap[child] = heap[child], heap[at]
        at = child
