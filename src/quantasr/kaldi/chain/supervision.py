"""What may be said in a recording: any pronunciation of its words, or what an alignment says, and when."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from quantasr.errors import ModelLoadError
from quantasr.kaldi.chain.alignments import Segment
from quantasr.kaldi.chain.denominator import pdf_acceptor
from quantasr.kaldi.compile.arrays import FstBuilder
from quantasr.kaldi.compile.lexicon import Pronunciation, in_phones
from quantasr.kaldi.compile.tree import ContextTree
from quantasr.kaldi.fst import INPUT, NEXT, Fst, SymbolTable
from quantasr.kaldi.nnet3.transitions import TransitionModel


class Pronunciations:
    """How words are said in a model's phones, by number, and ``silence``, which may stand around them (0: none)."""

    def __init__(
        self,
        lexicon: Sequence[Pronunciation],
        phones: SymbolTable,
        *,
        silence: str | None = "SIL",
        silence_probability: float = 0.5,
    ) -> None:
        """Raises ModelLoadError for a phone that the model does not know."""
        if silence is not None and silence not in phones.ids:
            raise ModelLoadError(f"silence '{silence}' is none of the model's phones: name it, or none")
        self.silence = 0 if silence is None else phones.ids[silence]
        self.silence_probability = silence_probability
        found: dict[str, dict[tuple[int, ...], float]] = defaultdict(dict)
        for entry in in_phones(lexicon, phones):
            said = tuple(phones.ids[phone] for phone in entry.phones)
            found[entry.word][said] = max(entry.probability, found[entry.word].get(said, 0.0))
        self._of: dict[str, dict[tuple[int, ...], float]] = dict(found)

    def unknown(self, words: Iterable[str]) -> list[str]:
        """The words that have no pronunciation, each once."""
        return [word for word in dict.fromkeys(words) if word not in self._of]

    def fewest_phones(self, words: Iterable[str]) -> int:
        """Phones of the shortest way to say ``words``."""
        return sum(min(map(len, self._of[word])) for word in words)

    def choices(self, words: Sequence[str]) -> list[Mapping[tuple[int, ...], float]]:
        """One choice of phones after the other: silence or none, a word's pronunciations, silence or none, ..."""
        p = self.silence_probability
        pause: Mapping[tuple[int, ...], float] = {(self.silence,): p, (): 1 - p} if self.silence else {(): 1.0}
        result = [pause]
        for word in words:
            total = sum(self._of[word].values())
            result += [{said: share / total for said, share in self._of[word].items()}, pause]
        return result


def phone_graph(choices: Sequence[Mapping[tuple[int, ...], float]]) -> Fst:
    """The acceptor, without weights, of one choice of phones after the other."""
    builder = FstBuilder()
    at = builder.state()
    for choice in choices:
        to = builder.state()
        for phones in choice:
            frm = at
            for phone in phones[:-1]:
                inner = builder.state()
                builder.arc(frm, phone, phone, 0, inner)
                frm = inner
            last = phones[-1] if phones else 0
            builder.arc(frm, last, last, 0, to)
        at = to
    builder.end(at)
    return builder.fst()


class TimedGraph:
    """What an alignment allows at each frame of the network's output; every phone may begin or end a little off.

    As Kaldi's chain-get-supervision: phones in their order, each within the frames that ``tolerance`` (before, behind)
    adds to its own. Raises ModelLoadError where phones, tree and model do not fit; ``frames`` is 0 if nothing fits.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        tree: ContextTree,
        transitions: TransitionModel,
        *,
        subsampling: int = 3,
        tolerance: tuple[int, int] = (5, 5),
    ) -> None:
        graph = pdf_acceptor(_linear([s.phone for s in segments]), tree, transitions, scale=0.0, tids=True)
        allowed = _allowed(segments, subsampling, tolerance)
        source = np.repeat(np.arange(graph.states), np.diff(graph.first))
        target, tid = graph.arcs[:, NEXT], graph.arcs[:, INPUT]
        phone, pdf = transitions.phone_of_tid[tid], transitions.pdf_of_tid[tid]
        reached = np.zeros(graph.states, bool)
        reached[graph.start] = True
        steps = []
        for phones in allowed:
            arcs = np.flatnonzero(reached[source] & np.isin(phone, phones))
            reached = np.zeros(graph.states, bool)
            reached[target[arcs]] = True
            steps.append(arcs)
        alive = reached & np.isfinite(graph.final)
        self._steps: list[tuple[list[int], list[int], list[int]]] = []
        for arcs in reversed(steps):
            arcs = arcs[alive[target[arcs]]]
            alive = np.zeros(graph.states, bool)
            alive[source[arcs]] = True
            self._steps.append((source[arcs].tolist(), (pdf[arcs] + 1).tolist(), target[arcs].tolist()))
        self._steps.reverse()
        if not alive.any():
            self._steps = []

    @property
    def frames(self) -> int:
        """Frames of the network's output."""
        return len(self._steps)

    def part(self, begin: int, end: int) -> Fst:
        """The acceptor of pdfs (from 1) of the frames from ``begin`` up to, but without, ``end``."""
        builder = FstBuilder()
        start = builder.state()
        now = dict.fromkeys(self._steps[begin][0], start)
        for t in range(begin, end):
            following: dict[int, int] = {}
            for source, label, target in zip(*self._steps[t], strict=True):
                if target not in following:
                    following[target] = builder.state()
                builder.arc(now[source], label, label, 0, following[target])
            now = following
        for state in now.values():
            builder.end(state)
        return builder.fst(start)


def _linear(phones: Sequence[int]) -> Fst:
    return phone_graph([{tuple(phones): 1.0}])


def _allowed(segments: Sequence[Segment], subsampling: int, tolerance: tuple[int, int]) -> list[list[int]]:
    """The phones that may be heard at each frame of the output."""
    frames = sum(segment.frames for segment in segments)
    allowed: list[set[int]] = [set() for _ in range(-(-frames // subsampling))]
    at = 0
    for segment in segments:
        begin, end = max(0, at - tolerance[0]), min(frames, at + segment.frames + tolerance[1])
        for t in range(-(-begin // subsampling), -(-end // subsampling)):
            allowed[t].add(segment.phone)
        at += segment.frames
    return [sorted(phones) for phones in allowed]
