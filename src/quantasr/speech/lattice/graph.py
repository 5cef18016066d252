"""Decoding graphs: an HCLG that is read as it is, or HCLr and Gr that are composed while decoding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quantasr.errors import KaldiFileError
from quantasr.kaldi.compile.grammar import grammar_fst
from quantasr.kaldi.fst import (
    INPUT,
    OUTPUT,
    Fst,
    SymbolTable,
    read_fst,
    read_output_symbols,
    read_words,
    require_numba,
)

if TYPE_CHECKING:
    from quantasr.speech.lattice.compose import Left, Right, Table

MEMORY = 1 << 30
"""Bytes that the composed part of a graph may take; then it is forgotten and composed again where needed."""
STATE_BYTES, ARC_BYTES, ARCS_OF_STATE = 60, 16, 4


class DecodingGraph:
    """What a decoder searches: from transition-ids to words.

    Made by ``static`` or ``composed``. ``input_labels`` and ``words`` are the largest transition-id and word in it. A
    graph remembers what a search found in it: one search at a time may use it, which holds ``lock``.
    """

    def __init__(self, left: Left, right: Right, table: Table, start: int, labels: tuple[int, int]) -> None:
        self.left, self.right, self.table = left, right, table
        self.start = start
        self.input_labels, self.words = labels
        self.lock = Lock()

    @classmethod
    def static(cls, fst: Fst) -> DecodingGraph:
        """All of it: ``HCLG.fst``. Raises KaldiFileError where it is empty."""
        require_numba()
        from quantasr.speech.lattice.compose import Table

        if fst.start < 0 or not len(fst.arcs):
            raise KaldiFileError("the decoding graph is empty")
        epsilons = np.concatenate(([0], np.cumsum(fst.arcs[:, INPUT] == 0, dtype=np.int32)))
        of_state = (epsilons[fst.first[1:]] - epsilons[fst.first[:-1]]).astype(np.int32)
        state = np.stack((fst.first[:-1] + 1, np.diff(fst.first), of_state, np.zeros_like(of_state)), axis=1)
        table = Table(
            counts=np.array([fst.states, len(fst.arcs), 0, 0, 0], np.int64),
            keys=np.empty((0, 4), np.int32),
            slots=np.empty(0, np.int32),
            state=state,
            arcs=fst.arcs,
            weights=fst.arcs.view(np.float32),
            final=fst.final,
        )
        labels = int(fst.arcs[:, INPUT].max()), int(fst.arcs[:, OUTPUT].max())
        return cls(_no_left(), _no_right(), table, fst.start, labels)

    @classmethod
    def composed(cls, left: Fst, right: Fst, epsilons: ArrayLike = (), memory: int = MEMORY) -> DecodingGraph:
        """``HCLr.fst`` and ``Gr.fst``; ``epsilons`` are input labels that count as none (``disambig_tid.int``).

        ``left`` must be an olabel_lookahead FST, and ``right`` be in order of its input labels.
        """
        require_numba()
        from quantasr.speech.lattice.compose import Left, state_of

        if left.reach is None or left.reach.of_input:
            raise KaldiFileError(f"HCLr must be an olabel_lookahead FST, not {left.kind}")
        if left.start < 0 or right.start < 0:
            raise KaldiFileError("HCLr or G is empty")
        if not left.sorted_by(OUTPUT):
            raise KaldiFileError("HCLr is not in order of its output labels; run fstarcsort --sort_type=olabel")
        if not right.sorted_by(INPUT):
            raise KaldiFileError("G is not in order of its input labels; run fstarcsort --sort_type=ilabel")
        most = int(left.arcs[:, INPUT].max(initial=0))
        removed = np.zeros(most + 1, bool)
        labels = np.asarray(epsilons, np.int64)
        removed[labels[(labels > 0) & (labels <= most)]] = True
        kept = left.arcs[:, INPUT][~removed[left.arcs[:, INPUT]]]
        left_arrays = Left(
            left.first, left.arcs, left.arcs.view(np.float32), left.final, left.reach.first, left.reach.intervals,
            np.array([left.reach.final_label], np.int32), removed,
        )  # fmt: skip
        table = _empty_table(memory)
        start = state_of(table, left.start, right.start, 0, 0)
        words = int(right.arcs[:, OUTPUT].max(initial=0))
        return cls(left_arrays, _right(right), table, int(start), (int(kept.max(initial=0)), words))

    def forget(self, states: NDArray[np.int32]) -> NDArray[np.int32]:
        """Empty the memory of a composed graph but for ``states``; gives their new numbers."""
        from quantasr.speech.lattice.compose import state_of

        table = self.table
        keys = table.keys[states].copy()
        root = table.keys[self.start].copy()
        table.counts[:2] = 0
        table.slots[:] = 0
        table.state[:] = 0
        self.start = int(state_of(table, *(int(k) for k in root)))
        return np.array([state_of(table, *(int(k) for k in key)) for key in keys], np.int32)


def _empty_table(memory: int) -> Table:
    from quantasr.speech.lattice.compose import Table

    states = max(1000, memory // (STATE_BYTES + ARC_BYTES * ARCS_OF_STATE))
    slots = 1 << int(states * 1.5).bit_length()
    arcs = np.empty((states * ARCS_OF_STATE, 4), np.int32)
    return Table(
        counts=np.zeros(5, np.int64),
        keys=np.empty((states, 4), np.int32),
        slots=np.zeros(slots, np.int32),
        state=np.zeros((states, 8), np.int32),
        arcs=arcs,
        weights=arcs.view(np.float32),
        final=np.empty(0, np.float32),
    )


def _right(fst: Fst) -> Right:
    from quantasr.speech.lattice.compose import PERIOD, Right, cost_sums

    sum_at = np.empty(fst.states, np.int32)
    sums = np.empty(len(fst.arcs) // PERIOD + len(fst.arcs) // 20 + fst.states + 1, np.float64)
    weights = fst.arcs.view(np.float32)
    used = cost_sums(fst.first, weights, sum_at, sums)
    big = int(np.diff(fst.first).argmax())
    labels = fst.arcs[fst.first[big] : fst.first[big + 1], INPUT]
    most = int(labels.max(initial=0))
    at = np.searchsorted(labels, np.arange(most + 2)).astype(np.int32)
    return Right(fst.first, fst.arcs, weights, fst.final, sum_at, sums[:used].copy(), np.array([big], np.int32), at)


def _no_left() -> Left:
    from quantasr.speech.lattice.compose import Left

    ints, arcs = np.zeros(1, np.int32), np.zeros((0, 4), np.int32)
    return Left(
        ints,
        arcs,
        arcs.view(np.float32),
        np.zeros(0, np.float32),
        ints,
        np.zeros((0, 2), np.int32),
        ints,
        np.zeros(1, bool),
    )


def _no_right() -> Right:
    from quantasr.speech.lattice.compose import Right

    ints, arcs = np.zeros(1, np.int32), np.zeros((0, 4), np.int32)
    return Right(ints, arcs, arcs.view(np.float32), np.zeros(0, np.float32), ints, np.zeros(1, np.float64), ints, ints)


def read_graph(folder: str | Path, grammar: Sequence[str] | None = None) -> tuple[DecodingGraph, SymbolTable]:
    """The graph of a folder and its words: ``HCLG.fst``, or ``HCLr.fst`` with ``Gr.fst`` and ``disambig_tid.int``.

    The words are those of ``words.txt``, or those that the FST carries. ``grammar``: phrases that take the place of
    ``Gr.fst`` (:func:`~quantasr.kaldi.compile.grammar.grammar_fst`), whose words are kept. Raises KaldiFileError, and
    ModelLoadError for a grammar without known words.
    """
    place = Path(folder)
    if (place / "HCLG.fst").is_file():
        if grammar is not None:
            raise KaldiFileError(
                f"{place / 'HCLG.fst'}: has its grammar compiled in, only an HCLr.fst takes another: "
                "make a graph of these phrases with 'quantasr compile-graph'"
            )
        fst = read_fst(place / "HCLG.fst")
        graph, words = DecodingGraph.static(fst), fst.output_symbols
    elif (place / "HCLr.fst").is_file() and (place / "Gr.fst").is_file():
        if grammar is None:
            right = read_fst(place / "Gr.fst")
            words = right.output_symbols or read_words(place / "words.txt")
        else:
            words = read_output_symbols(place / "Gr.fst") or read_words(place / "words.txt")
            right = grammar_fst(grammar, words)
        graph = DecodingGraph.composed(read_fst(place / "HCLr.fst"), right, read_integers(place / "disambig_tid.int"))
    else:
        raise KaldiFileError(f"{place}: there is neither an HCLG.fst nor an HCLr.fst with a Gr.fst")
    if words is None:
        words = read_words(place / "words.txt")
    if graph.words >= len(words):
        raise KaldiFileError(
            f"{place}: the graph has word {graph.words}, but the table of words ends at {len(words) - 1}"
        )
    return graph, words


def read_integers(path: str | Path) -> list[int]:
    """Integers of a text file, separated by spaces or lines."""
    try:
        text = Path(path).read_text(encoding="ascii")
        return [int(part) for part in text.split()]
    except (OSError, ValueError) as error:
        raise KaldiFileError(f"{path}: cannot be read as a list of integers: {error}") from None
