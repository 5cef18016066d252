"""The graph of ../digits as Vosk's models have theirs: HCLr.fst and Gr.fst, composed while decoding.

``python make.py`` writes both beside it, with words.txt and disambig_tid.int, as Kaldi's mkgraph_lookahead.sh makes
them. Needs kaldifst, and OpenFst's fstcompile and fstconvert with its lookahead types (Debian: libfst-tools; the folder
of its plugins on LD_LIBRARY_PATH).
"""

import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import kaldifst
import numpy as np

from quantasr.kaldi.compile import read_lexicon, read_tree, word_loop, word_table
from quantasr.kaldi.compile.arrays import from_kaldifst, to_kaldifst
from quantasr.kaldi.compile.hmm import add_self_loops, h_fst
from quantasr.kaldi.compile.lexicon import in_phones, lexicon_fst
from quantasr.kaldi.fst import INPUT, OUTPUT, Fst, SymbolTable, read_words
from quantasr.kaldi.nnet3 import read_model

HERE = Path(__file__).parent
DIGITS = HERE.parent / "digits"
MANY = 1000


def main() -> None:
    """Make everything."""
    model = read_model(DIGITS / "final.mdl").transitions
    phones, lexicon = read_words(DIGITS / "phones.txt"), read_lexicon(DIGITS / "lexicon.txt")
    words = word_table(entry.word for entry in lexicon)
    lex = lexicon_fst(in_phones(lexicon, phones), phones, words)
    left = to_kaldifst(lex.fst)
    kaldifst.determinize_star(left, use_log=True)
    kaldifst.arcsort(left, sort_type="ilabel")
    tree = read_tree(DIGITS / "tree")
    clg, windows = kaldifst.compose_context(list(lex.disambiguation), tree.width, tree.central, left)
    h = to_kaldifst(h_fst(windows, tree, model))
    kaldifst.arcsort(h, sort_type="olabel")
    kaldifst.arcsort(clg, sort_type="ilabel")
    hcl = kaldifst.StdVectorFst(kaldifst.compose(h, clg))
    kaldifst.determinize_star(hcl, use_log=True)
    looped, symbols = with_loops(from_kaldifst(hcl), model)
    relabelled = convert(looped)
    table = SymbolTable.of((word, relabelled.get(i, i)) for word, i in words.ids.items())
    (HERE / "words.txt").write_text("".join(f"{word} {i}\n" for word, i in sorted(table.ids.items())))
    (HERE / "disambig_tid.int").write_text("".join(f"{label}\n" for label in symbols))
    kaldifst.StdConstFst(to_kaldifst(word_loop([e.word for e in lexicon], table))).write(str(HERE / "Gr.fst"))


def with_loops(hcl: Fst, model) -> tuple[Fst, list[int]]:
    """Self-loops added; disambiguation symbols, which they are not for, wait in the output labels meanwhile."""
    arcs = hcl.arcs.copy()
    extra = np.maximum(arcs[:, INPUT] - model.num_transition_ids, 0)
    arcs[extra > 0, INPUT] = 0
    arcs[:, OUTPUT] += extra * MANY
    looped = add_self_loops(replace(hcl, arcs=arcs), model)
    arcs = looped.arcs.copy()
    extra = arcs[:, OUTPUT] // MANY
    arcs[extra > 0, INPUT] = model.num_transition_ids + extra[extra > 0]
    arcs[:, OUTPUT] %= MANY
    return replace(looped, arcs=arcs), sorted({model.num_transition_ids + int(e) for e in extra if e})


def convert(fst: Fst) -> dict[int, int]:
    """Write HCLr.fst; gives the words' new numbers."""
    made = to_kaldifst(fst)
    kaldifst.arcsort(made, sort_type="olabel")
    with tempfile.TemporaryDirectory() as folder:
        plain, pairs = f"{folder}/hcl.fst", f"{folder}/relabel"
        made.write(plain)
        command = ["fstconvert", "--fst_type=olabel_lookahead", f"--save_relabel_opairs={pairs}", plain]
        subprocess.run([*command, str(HERE / "HCLr.fst")], check=True)
        return dict(map(int, line.split()) for line in Path(pairs).read_text().splitlines())


if __name__ == "__main__":
    main()
