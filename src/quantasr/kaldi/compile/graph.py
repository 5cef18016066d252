"""HCLG: one graph from transition-ids to words, of a model, a lexicon and a grammar (Kaldi's mkgraph.sh).

Mohri, Pereira and Riley (2002): HCLG = asl(min(rds(det(H' o min(det(C o min(det(L o G)))))))), where rds removes the
disambiguation symbols and asl adds the self-loops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from quantasr.errors import KaldiFileError, ModelLoadError
from quantasr.kaldi.compile.arrays import from_kaldifst, import_kaldifst, to_kaldifst
from quantasr.kaldi.compile.hmm import add_self_loops, h_fst
from quantasr.kaldi.compile.lexicon import Pronunciation, in_phones, lexicon_fst
from quantasr.kaldi.compile.tree import ContextTree
from quantasr.kaldi.fst import INPUT, Fst, SymbolTable
from quantasr.kaldi.nnet3.transitions import TransitionModel


@dataclass(frozen=True)
class GraphOptions:
    """How a graph is made.

    ``silence``: the phone that may stand at the start and after each word, None for no silence there.
    ``self_loop_scale`` None: 1.0 for chain models, else 0.1, as Kaldi's recipes have it.
    """

    silence: str | None = "SIL"
    silence_probability: float = 0.5
    transition_scale: float = 1.0
    self_loop_scale: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.silence_probability < 1:
            raise ModelLoadError(f"silence probability {self.silence_probability:g}: give more than 0 and less than 1")


@dataclass(frozen=True)
class Graph:
    """HCLG, and the words of its output labels."""

    fst: Fst
    words: SymbolTable


def compile_graph(
    model: TransitionModel,
    tree: ContextTree,
    phones: SymbolTable,
    lexicon: Sequence[Pronunciation],
    grammar: Fst,
    words: SymbolTable,
    options: GraphOptions | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Graph:
    """Compose and optimise. ``grammar`` and ``words`` go together (:mod:`quantasr.kaldi.compile.grammar`).

    ``say`` hears what is being done. Raises ModelLoadError where the parts do not fit, or nothing is left to be said.
    """
    options = options or GraphOptions()
    k = import_kaldifst()
    used = _used(grammar, words, lexicon)
    entries = in_phones(used, phones)
    modelled = set(model.topology.phones.tolist())
    unmodelled = {p for e in entries for p in e.phones if phones.ids[p] not in modelled}
    if unmodelled:
        raise ModelLoadError(
            f"phone '{min(unmodelled)}' is in phones.txt but not in the model: check that they belong together"
        )
    lexicon_ = lexicon_fst(
        entries, phones, words, silence=options.silence, silence_probability=options.silence_probability
    )
    say(f"L o G: {len(entries)} pronunciations")
    lg = _determined(_composed(k, to_kaldifst(lexicon_.fst), to_kaldifst(grammar)), k)
    say(f"C o LG: {lg.num_states} states, windows of {tree.width}")
    clg, windows = k.compose_context(list(lexicon_.disambiguation), tree.width, tree.central, lg)
    h = h_fst(windows, tree, model, transition_scale=options.transition_scale)
    say(f"H o CLG: {clg.num_states} states")
    hclg = _determined(_composed(k, to_kaldifst(h), clg), k, without=model.num_transition_ids + 1)
    scale = options.self_loop_scale
    if scale is None:
        scale = 0.1 if model.topology.is_hmm else 1.0
    graph = add_self_loops(from_kaldifst(hclg), model, self_loop_scale=scale)
    say(f"HCLG: {graph.states} states, {len(graph.arcs)} arcs")
    return Graph(graph, words)


def write_graph(graph: Graph, phones: SymbolTable, folder: str | Path) -> None:
    """Write ``HCLG.fst`` (of type const), ``words.txt``, ``phones.txt`` and, if phones say it, word boundaries.

    Phones are marked with their position in the word (``AH_B``) or not; ``phones/word_boundary.int`` tells decoders
    where words begin and end.
    """
    k = import_kaldifst()
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in (("words.txt", graph.words), ("phones.txt", phones)):
            text = "".join(f"{word} {i}\n" for i, word in enumerate(table.words) if word is not None)
            (folder / name).write_text(text, encoding="utf-8")
        boundaries = _word_boundaries(phones)
        if boundaries:
            (folder / "phones").mkdir(exist_ok=True)
            (folder / "phones" / "word_boundary.int").write_text(boundaries)
        temporary = folder / ".HCLG.fst.part"
        if not k.StdConstFst(to_kaldifst(graph.fst)).write(str(temporary)):
            raise KaldiFileError(f"{folder / 'HCLG.fst'}: cannot be written: check the room on its disk")
        temporary.replace(folder / "HCLG.fst")
    except OSError as error:
        raise KaldiFileError(
            f"{folder}: cannot be written ({error.strerror}): check the path and its rights"
        ) from error


def _word_boundaries(phones: SymbolTable) -> str:
    """``phone kind`` a line, as Kaldi's word_boundary.int; nothing where phones are not marked."""
    kinds = {"_B": "begin", "_I": "internal", "_E": "end", "_S": "singleton"}
    rows = [(i, kinds.get(name[-2:], "nonword")) for name, i in phones.ids.items() if i and name[0] != "#"]
    marked = any(kind != "nonword" for _, kind in rows)
    return "".join(f"{i} {kind}\n" for i, kind in sorted(rows)) if marked else ""


def _used(grammar: Fst, words: SymbolTable, lexicon: Sequence[Pronunciation]) -> list[Pronunciation]:
    """The pronunciations of the grammar's words, each of which must have one."""
    symbols = {words.ids[s] for s in ("#0",) if s in words.ids}
    labels = set(np.unique(grammar.arcs[:, INPUT]).tolist()) - symbols - {0}
    used = [entry for entry in lexicon if words.ids.get(entry.word, -1) in labels]
    missing = labels - {words.ids[entry.word] for entry in used}
    if missing:
        word = words.words[min(missing)]
        raise ModelLoadError(f"'{word}' has no pronunciation: add it to the lexicon, or leave it out of the grammar")
    return used


def _composed(k: Any, left: Any, right: Any) -> Any:
    k.arcsort(left, sort_type="olabel")
    k.arcsort(right, sort_type="ilabel")
    made = k.StdVectorFst(k.compose(left, right))
    if made.num_states == 0:
        raise ModelLoadError("the graph is empty: no sentence of the grammar can be said with this lexicon and model")
    return made


def _determined(fst: Any, k: Any, without: int | None = None) -> Any:
    """Deterministic and minimal; input labels from ``without`` on become epsilon between the two steps."""
    k.determinize_star(fst, use_log=True)
    if without is not None:
        arrays = from_kaldifst(fst)
        arcs = arrays.arcs.copy()
        arcs[arcs[:, INPUT] >= without, INPUT] = 0
        fst = to_kaldifst(replace(arrays, arcs=arcs))
    k.minimize_encoded(fst)
    return fst
