"""The two sums of minimum Bayes risk decoding over a lattice; compiled by numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

DELTA = float(np.float32(1e-5))
"""Added where a word of the lattice has none opposite it, so that of equal alignments one is taken (Kaldi's delta)."""
TIE = 1e-9
"""Expected edits that differ by less are equal: else rounding would choose between alignments."""
MATCH, OF_LATTICE, OF_SEQUENCE = range(3)


@njit(cache=True)
def _forward(source: Any, target: Any, word: Any, loglike: Any, reference: Any, alpha: Any, distance: Any) -> None:
    """``alpha``: log-sums of paths to states; ``distance`` [states, 1 + reference]: expected edits up to there."""
    positions = len(reference)
    alpha[:] = -np.inf
    alpha[0] = 0.0
    for i in range(len(source)):
        alpha[target[i]] = np.logaddexp(alpha[target[i]], alpha[source[i]] + loglike[i])
    distance[:] = 0.0
    for q in range(positions):
        distance[0, q + 1] = distance[0, q] + (0.0 if reference[q] == 0 else 1.0)
    along = np.empty(positions + 1)
    for i in range(len(source)):
        _along(word[i], reference, distance[source[i]], along, np.empty(0, np.int8))
        share = np.exp(alpha[source[i]] + loglike[i] - alpha[target[i]])
        for q in range(positions + 1):
            distance[target[i], q] += share * along[q]


@njit(cache=True)
def _along(word: int, reference: Any, before: Any, along: Any, taken: Any) -> None:
    """Expected edits at the end of an arc from those at its start; ``taken``, if it has room: which edit it was."""
    lone = 0.0 if word == 0 else 1.0 + DELTA
    along[0] = before[0] + lone
    for q in range(1, len(reference) + 1):
        r = reference[q - 1]
        match = before[q - 1] + (0.0 if word == r else 1.0)
        of_lattice, of_sequence = before[q] + lone, along[q - 1] + (0.0 if r == 0 else 1.0)
        if match <= of_lattice + TIE and match <= of_sequence + TIE:
            edit, along[q] = MATCH, match
        elif of_lattice <= of_sequence + TIE and of_lattice < match - TIE:
            edit, along[q] = OF_LATTICE, of_lattice
        else:
            edit, along[q] = OF_SEQUENCE, of_sequence
        if len(taken):
            taken[q] = edit


@njit(cache=True, nogil=True)
def word_shares(
    source: Any, target: Any, word: Any, label: Any, loglike: Any, frame: Any, reference: Any, share: Any, times: Any
) -> float:
    """The expected edits between ``reference`` and the lattice; fills what stands opposite each word of it.

    Arcs are in the order of their targets' predecessors (sources ascending); the last state is the only final one.
    ``label``: the column of each arc's word in ``share`` [reference, words], column 0 for none. ``times`` [reference,
    words, 2]: first and last frames of the words, times their shares. Xu et al. 2011, figures 4 and 5.
    """
    states, positions = len(frame), len(reference)
    alpha, distance = np.empty(states), np.empty((states, positions + 1))
    _forward(source, target, word, loglike, reference, alpha, distance)
    beta = np.zeros((states, positions + 1))
    beta[states - 1, positions] = 1.0
    along, taken, rest = np.empty(positions + 1), np.empty(positions + 1, np.int8), np.empty(positions + 1)
    share[:] = 0.0
    times[:] = 0.0
    for i in range(len(source) - 1, -1, -1):
        s, n, w = source[i], target[i], label[i]
        _along(word[i], reference, distance[s], along, taken)
        part = np.exp(alpha[s] + loglike[i] - alpha[n])
        rest[:] = 0.0
        for q in range(positions, 0, -1):
            rest[q] += part * beta[n, q]
            here = rest[q]
            if here == 0.0:
                continue
            if taken[q] == MATCH:
                beta[s, q - 1] += here
                share[q - 1, w] += here
                times[q - 1, w, 0] += here * frame[s]
                times[q - 1, w, 1] += here * frame[n]
            elif taken[q] == OF_LATTICE:
                beta[s, q] += here
            else:
                rest[q - 1] += here
                share[q - 1, 0] += here
                times[q - 1, 0] += here * frame[n]
        beta[s, 0] += rest[0] + part * beta[n, 0]
    left = 0.0
    for q in range(positions, 0, -1):
        left += beta[0, q]
        share[q - 1, 0] += left
        times[q - 1, 0] += left * frame[0]
    return distance[states - 1, positions]
