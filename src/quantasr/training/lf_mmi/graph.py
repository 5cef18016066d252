"""Hidden Markov models as arrays of arcs, with probabilities and pdfs: what forward-backward runs on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import TrainingError
from quantasr.kaldi.chain import initial_probs
from quantasr.kaldi.fst import INPUT, NEXT, Fst

LONGEST = 1 << 30


@dataclass(frozen=True, eq=False)
class Hmm:
    """States and arcs; each arc takes one frame, scored by its pdf.

    ``source``, ``target`` and ``pdf``, int32 [arcs]; ``prob``, float64 [arcs]; ``initial`` and ``final``, float64
    [states], the probabilities of starting and of ending in a state. Raises TrainingError for what cannot be one.
    """

    source: NDArray[np.int32]
    target: NDArray[np.int32]
    pdf: NDArray[np.int32]
    prob: NDArray[np.float64]
    initial: NDArray[np.float64]
    final: NDArray[np.float64]

    def __post_init__(self) -> None:
        if not len(self.source) or not len(self.initial):
            raise TrainingError("a graph for LF-MMI is empty")
        for name in ("source", "target"):
            ends = getattr(self, name)
            if ends.min() < 0 or ends.max() >= len(self.initial):
                raise TrainingError("a graph for LF-MMI has an arc that leads nowhere")
        if self.pdf.min() < 0:
            raise TrainingError("a graph for LF-MMI has an arc without a pdf (an epsilon): it must have none")

    @property
    def states(self) -> int:
        return len(self.initial)

    @cached_property
    def by_target(self) -> tuple[NDArray[Any], ...]:
        """Arcs in the order of their targets: (first arc of each state and the end, other state, pdf, prob)."""
        return self._sorted(self.target, self.source)

    @cached_property
    def by_source(self) -> tuple[NDArray[Any], ...]:
        """Arcs in the order of their sources, in the same form."""
        return self._sorted(self.source, self.target)

    @cached_property
    def compact(self) -> tuple[NDArray[np.int64], Hmm]:
        """The pdfs that are used at all, and the same graph with these counted from 0: numerators use few."""
        used, renamed = np.unique(self.pdf, return_inverse=True)
        pdf = renamed.ravel().astype(np.int32)
        return used.astype(np.int64), Hmm(self.source, self.target, pdf, self.prob, self.initial, self.final)

    def _sorted(self, key: NDArray[Any], other: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        order = np.argsort(key, kind="stable")
        first = np.searchsorted(key[order], np.arange(self.states + 1)).astype(np.int32)
        return first, other[order], self.pdf[order], self.prob[order]

    @cached_property
    def min_frames(self) -> int:
        """Frames of the shortest path; ``LONGEST`` if there is none."""
        reached = self.initial > 0
        for frames in range(self.states + 1):
            if (reached & (self.final > 0)).any():
                return frames
            further = reached.copy()
            further[self.target[reached[self.source]]] = True
            if (further == reached).all():
                return LONGEST
            reached = further
        return LONGEST


def hmm_of(fst: Fst) -> Hmm:
    """An acceptor of pdfs (label: pdf + 1, as Kaldi has it) from its start state to its final states."""
    initial = np.zeros(fst.states)
    initial[fst.start] = 1
    source, target, pdf, prob = _arcs(fst)
    return Hmm(source, target, pdf, prob, initial, np.exp(-fst.final.astype(np.float64)))


def denominator_of(fst: Fst) -> Hmm:
    """A denominator graph as Kaldi's chain models take it: begun as ``initial_probs`` says, ended in any state."""
    source, target, pdf, prob = _arcs(fst)
    return Hmm(source, target, pdf, prob, initial_probs(fst), np.ones(fst.states))


def _arcs(fst: Fst) -> tuple[NDArray[Any], ...]:
    source = np.repeat(np.arange(fst.states, dtype=np.int32), np.diff(fst.first))
    pdf = fst.arcs[:, INPUT] - np.int32(1)
    return source, fst.arcs[:, NEXT].copy(), pdf, np.exp(-fst.weights.astype(np.float64))
