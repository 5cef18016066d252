"""OpenFst's ``ngram`` FST: an n-gram language model as a tree of histories in bit arrays (LOUDS), unpacked to arcs.

Sorensen and Allauzen, "Unary data structures for language models", Interspeech 2011; OpenFst's ngram-fst.h.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantasr.kaldi.fst.fst import INPUT, NEXT, OUTPUT, WEIGHT
from quantasr.kaldi.fst.source import Source

START = 1
"""The state in which a sentence begins; 0 is the empty history."""


def _bits(source: Source, count: int) -> NDArray[np.uint8]:
    words = source.array("<u8", (count + 63) // 64)
    return np.unpackbits(words.view(np.uint8), count=count, bitorder="little")


def _runs(bits: NDArray[np.uint8], what: str, source: Source) -> NDArray[np.int64]:
    """Of ``ones zero ones zero ...``, the number of ones before each zero."""
    zeros = np.flatnonzero(bits == 0)
    first = zeros - np.arange(len(zeros))
    if not len(first) or first[-1] != len(bits) - len(zeros):
        raise source.error(f"the {what} of an ngram FST do not end in a zero")
    return first


def read_ngram(source: Source) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    """``first``, ``arcs`` and ``final`` of the n-gram FST at the position of ``source`` (behind its header)."""
    from quantasr.kaldi.fst.scan import ngram_targets

    at = source.at
    states, futures, finals = source.uint64(), source.uint64(), source.uint64()
    if not (2 <= states <= 8 * source.left and futures <= source.left // 4 and finals <= states) or states >= 1 << 31:
        raise source.error(f"an ngram FST of {states} states and {futures} words cannot be here", at)
    tree = _bits(source, 2 * states + 1)
    future_bits = _bits(source, futures + states + 1)
    final_bits = _bits(source, states)
    labels = source.array("<i4", states + 1)
    words = source.array("<i4", futures)
    here = source.at
    source.at += -(here - at) % 4  # weights are aligned within the block
    backoff = source.array("<f4", states + 1)
    final_costs = source.array("<f4", finals)
    costs = source.array("<f4", futures + 1)[:futures]

    child_first = _runs(tree, "histories", source).astype(np.int32)
    future_first = _runs(future_bits, "words", source).astype(np.int32)
    if len(child_first) != states + 1 or len(future_first) != states + 1 or final_bits.sum() != finals:
        raise source.error("the bit arrays of an ngram FST have other counts than its header", at)
    counts = np.diff(child_first)
    has = np.flatnonzero(counts)
    if child_first[0] != 1 or tree[2] != 1 or (child_first[has] <= has).any():
        raise source.error("the histories of an ngram FST are no tree", at)
    if (labels[1:states] < 0).any() or (words <= 0).any():
        raise source.error("an ngram FST has a word with a negative number", at)
    parents = np.zeros(states, np.int32)
    parents[1:] = np.repeat(np.arange(states, dtype=np.int32), counts)

    targets = np.empty(futures, np.int32)
    ngram_targets(future_first, words, parents, child_first, labels, targets)
    first = future_first + np.concatenate(([0], np.arange(states))).astype(np.int32)
    arcs: NDArray[Any] = np.empty((futures + states - 1, 4), np.int32)
    weights = arcs.view(np.float32)[:, WEIGHT]
    is_word = np.ones(len(arcs), bool)
    back = first[1:-1]  # every state but the first begins with the arc to the shorter history
    is_word[back] = False
    arcs[back, INPUT] = arcs[back, OUTPUT] = 0
    arcs[back, NEXT] = parents[1:]
    weights[back] = backoff[1:states]
    arcs[is_word, INPUT] = arcs[is_word, OUTPUT] = words
    arcs[is_word, NEXT] = targets
    weights[is_word] = costs
    final = np.full(states, np.inf, np.float32)
    final[final_bits != 0] = final_costs
    return first, arcs, final
