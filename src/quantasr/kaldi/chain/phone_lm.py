"""The language model of phones behind a denominator: n-grams without back-off arcs (Kaldi's chain-est-phone-lm)."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from quantasr.kaldi.compile.arrays import FstBuilder
from quantasr.kaldi.fst import Fst

END = 0
History = tuple[int, ...]
Counts = dict[int, float]
Choice = Mapping[tuple[int, ...], float]
"""Sequences of phones, one of which is said, and how likely each is."""


class PhoneLm:
    """Counts of phones after histories of up to ``order - 1``, and the acceptor that they give.

    A state is a history. The longest ones are given up where that costs the least likelihood, until ``extra_states``
    are left beside as many as there are histories of one phone less: their counts go to that history. There is no
    smoothing and no way to a shorter history but this one, so that the graph has few arcs. What was not counted cannot
    be said.
    """

    def __init__(self, order: int = 4, extra_states: int = 2000) -> None:
        if order < 2:
            raise ValueError(f"phone language model: order {order} must be 2 at least")
        self.order, self.extra_states = order, extra_states
        self._counts: dict[History, Counts] = defaultdict(lambda: defaultdict(float))

    def add(self, phones: Sequence[int]) -> None:
        """Count the n-grams of a sequence of phones (numbers from 1 on)."""
        self.add_choices([{tuple(phones): 1.0}])

    def add_choices(self, choices: Sequence[Choice]) -> None:
        """Count what is expected of one choice after the other: a word's pronunciations; silence, or none."""
        now: dict[History, float] = {(END,): 1.0}
        for choice in choices:
            following: dict[History, float] = defaultdict(float)
            for history, share in now.items():
                for phones, probability in choice.items():
                    at, amount = history, share * probability
                    for phone in phones:
                        self._counts[at][phone] += amount
                        at = (*at, phone)[-(self.order - 1) :]
                    following[at] += amount
            now = following
        for history, share in now.items():
            self._counts[history][END] += share

    def fst(self) -> Fst:
        """The acceptor of phones, deterministic; costs are negative logarithms. ValueError if nothing was counted."""
        if not self._counts:
            raise ValueError("phone language model: nothing was counted")
        states = self._pruned()
        number = {history: at for at, history in enumerate(states)}
        builder = FstBuilder()
        for _ in states:
            builder.state()
        for history, counts in states.items():
            total = sum(counts.values())
            for phone, count in sorted(counts.items()):
                cost = -math.log(count / total)
                if phone == END:
                    builder.end(number[history], cost)
                else:
                    to = (*history, phone)
                    while to not in number:
                        to = to[1:]
                    builder.arc(number[history], phone, phone, cost, number[to])
        return builder.fst(number[(END,)])

    def _pruned(self) -> dict[History, Counts]:
        """Histories that stay, with their counts."""
        longest = self.order - 1
        states = {history: dict(counts) for history, counts in sorted(self._counts.items())}
        given_up = [history for history in states if len(history) == longest and longest > 1]
        basic = len({h[1:] for h in given_up} | {h for h in states if len(h) == longest - 1})
        heap = [(self._loss(states, history), history) for history in given_up]
        heapq.heapify(heap)
        while heap and len(states) > basic + self.extra_states:
            loss, history = heapq.heappop(heap)
            again = self._loss(states, history)
            if again > loss + 1e-9:  # others were given up meanwhile
                heapq.heappush(heap, (again, history))
                continue
            into = states.setdefault(history[1:], {})
            for phone, count in states.pop(history).items():
                into[phone] = into.get(phone, 0.0) + count
        return states

    @staticmethod
    def _loss(states: Mapping[History, Counts], history: History) -> float:
        """What log-likelihood it costs to join a history with the one that is a phone shorter."""
        own, shorter = states[history], states.get(history[1:])
        if shorter is None:  # nothing, but the rarest first
            return 1e-15 * sum(own.values())
        both = {phone: own.get(phone, 0.0) + shorter.get(phone, 0.0) for phone in own.keys() | shorter.keys()}
        return max(0.0, _log_likelihood(own) + _log_likelihood(shorter) - _log_likelihood(both))


def _log_likelihood(counts: Counts) -> float:
    total = sum(counts.values())
    return sum(count * math.log(count / total) for count in counts.values())
