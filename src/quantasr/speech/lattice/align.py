"""Compact lattices whose arcs are words from their first to their last frame, as Kaldi's lattice-align-words does.

In a determinized lattice a word may stand on an arc that ends long before or after it. Which phones begin and end
words, ``word_boundary.int`` says; transition-ids are then cut where phones end.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import ModelLoadError
from quantasr.kaldi.nnet3.transitions import TransitionModel
from quantasr.speech.lattice.compact import CompactLattice

KINDS = ("none", "nonword", "begin", "end", "singleton", "internal")
_KIND, _FINAL, _LOOP = 7, 8, 16
_NONWORD, _BEGIN, _END, _SINGLETON = (KINDS.index(name) for name in ("nonword", "begin", "end", "singleton"))
_SUPER_FINAL = -1

Ids: TypeAlias = tuple[int, ...]
State: TypeAlias = tuple[int, Ids, Ids]
"""A state of the lattice, the transition-ids and the words that no arc has taken yet."""


def read_boundaries(path: str | Path, transitions: TransitionModel) -> NDArray[np.uint8]:
    """What :func:`align_words` goes by, ``[transition-ids + 1]``.

    ``word_boundary.int`` has a phone and its kind a line. Raises ModelLoadError.
    """
    kinds: dict[int, int] = {}
    try:
        lines = Path(path).read_text(encoding="ascii").splitlines()
        for line in lines:
            phone, kind = line.split()
            kinds[int(phone)] = KINDS.index(kind, 1)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path}: cannot be read as phones and their places in words: {error}") from None
    found = np.array([kinds.get(phone, 0) for phone in transitions.phone_of_tid.tolist()], np.uint8)
    first = np.searchsorted(transitions.state_of_tid, np.arange(1, transitions.num_states + 1))
    for at, (phone, state) in zip(first.tolist(), transitions.tuples[:, :2].tolist(), strict=True):
        states = transitions.topology.states_of(phone)
        for i, (to, _) in enumerate(states[state].transitions):
            found[at + i] |= _FINAL * (to == len(states) - 1)
    found |= np.where(transitions.is_self_loop, _LOOP, 0).astype(np.uint8)
    found[0] = 0
    return found


def align_words(lattice: CompactLattice, boundaries: NDArray[np.uint8]) -> CompactLattice:
    """The same paths, with an arc for each word and each silence (word 0); self-loops follow what they repeat.

    ``boundaries`` [transition-ids + 1] of :func:`read_boundaries`. Words that are cut off at the end get what there is.
    """
    if not lattice.states:
        return lattice
    return _Aligner(lattice, boundaries).run()


class _Aligner:
    def __init__(self, lattice: CompactLattice, boundaries: NDArray[np.uint8]) -> None:
        self.lattice, self.info = lattice, boundaries.tolist()
        self.numbers: dict[State, int] = {}
        self.final: dict[int, tuple[float, float]] = {}
        tids, words = lattice.alignment.tolist(), lattice.word.tolist()
        begin, first = lattice.begin.tolist(), lattice.first.tolist()
        costs = list(zip(lattice.graph_cost.tolist(), lattice.acoustic_cost.tolist(), strict=True))
        targets = lattice.target.tolist()
        self.arcs = [
            [
                (targets[i], words[i], costs[i], tuple(tids[begin[i] : begin[i + 1]]))
                for i in range(first[s], first[s + 1])
            ]
            for s in range(lattice.states)
        ]
        ends = lattice.final_begin.tolist()
        for s in np.flatnonzero(np.isfinite(lattice.final_graph)).tolist():
            cost = float(lattice.final_graph[s]), float(lattice.final_acoustic[s])
            self.arcs[s].append((_SUPER_FINAL, 0, cost, tuple(lattice.final_alignment[ends[s] : ends[s + 1]].tolist())))

    def run(self) -> CompactLattice:
        start: State = (0, (), ())
        self.numbers[start] = 0
        waiting, made = [start], []
        while waiting:
            state = waiting.pop()
            source = self.numbers[state]
            best: dict[tuple[int, State], tuple[tuple[float, float], Ids]] = {}
            for word, tids, cost, following in self._leaving(state, source):
                known = best.get((word, following))
                if known is None or self._total(cost) < self._total(known[0]):
                    best[word, following] = cost, tids
            for (word, following), (cost, tids) in best.items():
                if following not in self.numbers:
                    self.numbers[following] = len(self.numbers)
                    waiting.append(following)
                made.append((source, self.numbers[following], word, cost, tids))
        return _in_order(self.lattice, made, self.final, len(self.numbers))

    def _total(self, cost: tuple[float, float]) -> float:
        return cost[0] + self.lattice.acoustic_scale * cost[1]

    def _leaving(self, state: State, number: int) -> list[tuple[int, Ids, tuple[float, float], State]]:
        """Word, transition-ids, cost and next state of what can be cut off, as soon as it can."""
        found: list[tuple[int, Ids, tuple[float, float], State]] = []
        open_paths: list[tuple[State, tuple[float, float]]] = [(state, (0.0, 0.0))]
        while open_paths:
            (at, tids, words), cost = open_paths.pop()
            length, word = self._whole(tids, words)
            if not length and at == _SUPER_FINAL:
                if not tids:  # words without any sound are dropped
                    if self._total(cost) < self._total(self.final.get(number, (np.inf, 0.0))):
                        self.final[number] = cost
                    continue
                length = len(tids)
                word = words[0] if words else 0
            if length:
                rest = words[1:] if word else words
                found.append((word, tids[:length], cost, (at, tids[length:], rest)))
                continue
            for to, label, (graph, acoustic), more in self.arcs[at]:
                following = (to, tids + more, (*words, label) if label else words)
                open_paths.append((following, (cost[0] + graph, cost[1] + acoustic)))
        return found

    def _whole(self, tids: Ids, words: Ids) -> tuple[int, int]:
        """How many transition-ids the first word or silence has, 0 if its end is not known yet; and the word."""
        if not tids:
            return 0, 0
        info = self.info
        kind = info[tids[0]] & _KIND
        if kind == _NONWORD:
            return self._end_of_phone(tids, 0), 0
        if not words or kind not in (_BEGIN, _SINGLETON):
            return 0, 0
        at = self._end_of_phone(tids, 0)
        if kind == _BEGIN and at:
            while at < len(tids) and info[tids[at]] & _KIND != _END:
                at += 1
            at = self._end_of_phone(tids, at)
        return at, words[0] if at else 0

    def _end_of_phone(self, tids: Ids, at: int) -> int:
        """Behind the phone that goes on at ``at``; 0 where more of it may come."""
        info, count = self.info, len(tids)
        while at < count and not info[tids[at]] & _FINAL:
            at += 1
        at += 1
        while at < count and info[tids[at]] & _LOOP:
            at += 1
        return at if at < count else 0


def _in_order(
    lattice: CompactLattice,
    arcs: list[tuple[int, int, int, tuple[float, float], Ids]],
    final: dict[int, tuple[float, float]],
    states: int,
) -> CompactLattice:
    """The lattice of these arcs, its states in topological order."""
    following: list[list[int]] = [[] for _ in range(states)]
    waits = [0] * states
    for i, (source, target, *_) in enumerate(arcs):
        following[source].append(i)
        waits[target] += 1
    order, ready = [0] * states, [0]
    chosen, frame = [], [0] * states
    named = 0
    while ready:
        state = ready.pop()
        order[state] = named
        named += 1
        for i in following[state]:
            target = arcs[i][1]
            chosen.append(i)
            frame[target] = frame[state] + len(arcs[i][4])
            waits[target] -= 1
            if not waits[target]:
                ready.append(target)
    costs = np.array([arcs[i][3] for i in chosen], np.float32).reshape(-1, 2)
    ends = np.full((states, 2), np.inf, np.float32)
    for state, cost in final.items():
        ends[order[state]] = cost
    frames = np.zeros(states, np.int32)
    frames[order] = frame
    return replace(
        lattice,
        source=np.array([order[arcs[i][0]] for i in chosen], np.int32),
        target=np.array([order[arcs[i][1]] for i in chosen], np.int32),
        word=np.array([arcs[i][2] for i in chosen], np.int32),
        graph_cost=np.ascontiguousarray(costs[:, 0]),
        acoustic_cost=np.ascontiguousarray(costs[:, 1]),
        begin=np.concatenate(([0], np.cumsum([len(arcs[i][4]) for i in chosen], dtype=np.int64))),
        alignment=np.array([tid for i in chosen for tid in arcs[i][4]], np.int32),
        final_graph=np.ascontiguousarray(ends[:, 0]),
        final_acoustic=np.ascontiguousarray(ends[:, 1]),
        final_begin=np.zeros(states + 1, np.int64),
        final_alignment=np.zeros(0, np.int32),
        frame=frames,
    )
