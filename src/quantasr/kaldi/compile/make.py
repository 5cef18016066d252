"""A decoding graph from files: a model's folder, a lexicon, and a grammar of one of three kinds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quantasr.errors import ModelLoadError
from quantasr.kaldi.compile.arpa import arpa_fst
from quantasr.kaldi.compile.grammar import read_phrases, sentences, word_loop, word_table
from quantasr.kaldi.compile.graph import GraphOptions, compile_graph, write_graph
from quantasr.kaldi.compile.lexicon import read_lexicon
from quantasr.kaldi.compile.tree import ContextTree, read_tree, tree_of
from quantasr.kaldi.fst import Fst, SymbolTable, read_words
from quantasr.kaldi.nnet3 import TransitionModel, read_model

GrammarKind = Literal["words", "sentences", "arpa"]


@dataclass(frozen=True)
class Made:
    """What was compiled: sizes of the graph, how many words it knows, n-grams left out for want of a pronunciation."""

    states: int
    arcs: int
    words: int
    ngrams_left_out: int


def make_graph(
    model: str | Path,
    lexicon: str | Path,
    out: str | Path,
    *,
    kind: GrammarKind,
    grammar: str | Path | None = None,
    options: GraphOptions | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Made:
    """Compile a graph and write it to the folder ``out``.

    ``model`` is a folder with ``final.mdl`` and ``phones.txt`` (either may be in ``am`` or ``graph``), and ``tree``
    unless the model has no context. ``grammar`` is a file: of ``words`` (None: all of the lexicon), which may follow
    each other in any order; of ``sentences``, one a line, of which one is said; or an ``arpa`` language model. Raises
    ModelLoadError and KaldiFileError in one line for whatever does not fit.
    """
    folder = Path(model)
    if not folder.is_dir():
        raise ModelLoadError(f"{folder}: no such folder: give the one with final.mdl")
    path = find_file(folder, "final.mdl", "am/final.mdl")
    transitions = read_model(path).transitions
    if transitions is None:
        raise ModelLoadError(f"{path}: has no transition model: a graph needs a .mdl file, not a .raw one")
    tree = tree_in(folder, transitions)
    phones = read_words(find_file(folder, "phones.txt", "graph/phones.txt"))
    entries = read_lexicon(lexicon)
    table = word_table(entry.word for entry in entries)
    g, left_out = _grammar(kind, grammar, table, sorted({entry.word for entry in entries}))
    if left_out:
        say(f"{left_out} n-grams left out: they have words without a pronunciation")
    graph = compile_graph(transitions, tree, phones, entries, g, table, options, say)
    write_graph(graph, phones, out)
    return Made(graph.fst.states, len(graph.fst.arcs), len(entries), left_out)


def _grammar(
    kind: GrammarKind, path: str | Path | None, table: SymbolTable, every_word: Sequence[str]
) -> tuple[Fst, int]:
    if kind == "words" and path is None:
        return word_loop(every_word, table), 0
    if path is None:
        raise ModelLoadError(f"a grammar of {kind} needs its file")
    if kind == "arpa":
        return arpa_fst(path, table)
    lines = read_phrases(path)
    try:
        if kind == "words":
            return word_loop([word for line in lines for word in line.split()], table), 0
        return sentences(lines, table), 0
    except ModelLoadError as error:
        raise ModelLoadError(f"{path}: {error}") from None


def tree_in(folder: Path, transitions: TransitionModel) -> ContextTree:
    """The tree in a model's folder, or that of a model without context. Raises ModelLoadError."""
    if (folder / "tree").is_file():
        return read_tree(folder / "tree")
    tree = tree_of(transitions)
    if tree is None:
        raise ModelLoadError(f"{folder / 'tree'}: not found: copy the tree that the model was trained with there")
    return tree


def find_file(folder: Path, *names: str) -> Path:
    """The first of some files that a folder has; ModelLoadError if none."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ModelLoadError(f"{folder}: has no {' nor '.join(names)}: give the folder of a trained Kaldi model")
