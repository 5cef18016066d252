"""Minimum Bayes risk decoding: the words with the fewest expected errors, their confidences and times.

Xu, Povey, Mangu, Zhu 2011, "Minimum Bayes Risk decoding and system combination based on a recursion for edit distance"
(doi 10.1016/j.csl.2011.03.001), as Kaldi's ``lattice-mbr-decode`` and Vosk do it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantasr.speech.lattice.compact import CompactLattice

MOST_ROUNDS = 101


@dataclass(frozen=True)
class BayesPath:
    """Words (integers), their confidences (shares of the lattice's probability), and the frames [begin, end) of each.

    Frames are means over the lattice, not whole numbers. ``risk``: the expected number of errors.
    """

    words: tuple[int, ...]
    confidences: tuple[float, ...]
    begin: tuple[float, ...]
    end: tuple[float, ...]
    risk: float


def minimum_bayes_risk(
    lattice: CompactLattice, lm_scale: float = 1.0, acoustic_scale: float | None = None
) -> BayesPath:
    """The sequence of words with the fewest expected errors against all paths of a determinized lattice.

    Paths weigh by their costs at these scales (``acoustic_scale``: the search's, if None). Starts from the best path;
    each word is then exchanged for what is likeliest opposite it, until nothing changes.
    """
    if not lattice.states:
        return BayesPath((), (), (), (), 0.0)
    arcs = _with_one_end(lattice, lm_scale, acoustic_scale)
    source, target, word, loglike, frame = arcs
    words, label = np.unique(np.append(word, 0).astype(np.int32), return_inverse=True)
    columns = label[:-1].astype(np.int32)
    path = lattice.best_path(lm_scale, acoustic_scale).words
    for _ in range(MOST_ROUNDS):
        # between any two words there may be another
        reference = np.zeros(2 * len(path) + 1, np.int32)
        reference[1::2] = path
        share, times = np.empty((len(reference), len(words))), np.empty((len(reference), len(words), 2))
        from quantasr.speech.lattice.edits import word_shares

        risk = word_shares(source, target, word, columns, loglike, frame, reference, share, times)
        single = share.astype(np.float32)  # as Kaldi compares them
        best = len(words) - 1 - single[:, ::-1].argmax(axis=1)  # of equal ones, the word of the higher number
        rows = np.arange(len(reference))
        gain = single[rows, np.searchsorted(words, reference)].astype(np.float64) - single[rows, best]
        chosen = words[best]
        spoken = np.flatnonzero(chosen)
        path = tuple(chosen[spoken].tolist())
        if gain.sum() == 0:
            break
    kept = single[spoken, best[spoken]]
    spans = (times[spoken, best[spoken]] / share[spoken, best[spoken], None]).tolist()
    spans = _apart(spans)
    return BayesPath(
        path,
        tuple(min(1.0, float(c)) for c in kept),
        tuple(begin for begin, _ in spans),
        tuple(end for _, end in spans),
        float(risk),
    )


def _with_one_end(
    lattice: CompactLattice, lm_scale: float, acoustic_scale: float | None
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]:
    """Source, target, word and log-likelihood of the arcs, and the states' frames, with one final state behind all."""
    costs, final = lattice.costs(lm_scale, acoustic_scale)
    ends = np.flatnonzero(np.isfinite(final)).astype(np.int32)
    source = np.concatenate((lattice.source, ends))
    order = np.argsort(source, kind="stable")
    target = np.concatenate((lattice.target, np.full(len(ends), lattice.states, np.int32)))
    word = np.concatenate((lattice.word, np.zeros(len(ends), np.int32)))
    loglike = -np.concatenate((costs, final[ends]))
    lengths = np.diff(lattice.final_begin)[ends]
    end = (lattice.frame[ends] + lengths).max(initial=0)
    return source[order], target[order], word[order], loglike[order], np.append(lattice.frame, end).astype(np.float64)


def _apart(spans: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Words that would overlap share the time in proportion to their lengths, as in Kaldi."""
    found: list[tuple[float, float]] = []
    for begin, end in spans:
        if found and found[-1][1] > begin:
            before, last = found[-1]
            left = max(found[-2][1] if len(found) > 1 else 0.0, min(before, begin))
            right = max(last, end)
            length = last - before
            middle = left + (right - left) * length / (length + end - begin) if length > 0 else left
            found[-1] = (left, middle)
            begin, end = middle, right
        found.append((begin, end))
    return found
