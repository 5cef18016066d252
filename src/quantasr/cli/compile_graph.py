"""``quantasr compile-graph``."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantasr.cli.options import add_command
from quantasr.cli.output import say, write_json

if TYPE_CHECKING:
    from quantasr.kaldi.compile.make import GrammarKind

_EXAMPLES = """\
  quantasr compile-graph exp/chain/tdnn1a_sp --lexicon lexicon.txt --words --out graph/
  quantasr compile-graph exp/chain/tdnn1a_sp --lexicon lexicon.txt --words commands.txt --out graph/
  quantasr compile-graph exp/chain/tdnn1a_sp --lexicon lexicon.txt --grammar sentences.txt --out graph/
  quantasr compile-graph exp/chain/tdnn1a_sp --lexicon lexiconp.txt --arpa 3gram.arpa.gz --out graph/

A lexicon has a word and its phones a line; if its name begins with lexiconp, a probability stands between them. Where
phones.txt has phones with their position in the word (AH_B, AH_I, AH_E, AH_S), the lexicon may have them without.
"""


def probability(text: str) -> float:
    """A number between 0 and 1, without the two."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text}: give more than 0 and less than 1")
    return value


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Add the subcommand."""
    command = add_command(
        subparsers,
        "compile-graph",
        "Compile a Kaldi model's decoding graph (HCLG.fst, words.txt) of a lexicon and a grammar, without Kaldi.",
        _EXAMPLES,
    )
    command.add_argument("model", type=Path, help="folder with final.mdl, phones.txt and tree")
    command.add_argument("--lexicon", type=Path, required=True, metavar="FILE", help="words and their phones")
    kinds = command.add_mutually_exclusive_group(required=True)
    kinds.add_argument(
        "--words",
        type=Path,
        nargs="?",
        const=False,
        metavar="FILE",
        help="any string of the words in FILE (of all words of the lexicon, without FILE)",
    )
    kinds.add_argument("--grammar", type=Path, metavar="FILE", help="one of the sentences in FILE, one a line")
    kinds.add_argument("--arpa", type=Path, metavar="FILE", help="an n-gram language model, .arpa or .arpa.gz")
    command.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the graph is written")
    command.add_argument(
        "--silence", default="SIL", metavar="PHONE", help="may stand between words; none for no such phone (SIL)"
    )
    command.add_argument("--silence-probability", type=probability, default=0.5, metavar="P", help="0.5")
    command.add_argument("--self-loop-scale", type=float, metavar="X", help="1.0 for chain models, else 0.1")
    return command


def run(arguments: argparse.Namespace) -> int:
    """Compile and write."""
    from quantasr.kaldi.compile import GraphOptions, make_graph

    kind: GrammarKind = "arpa" if arguments.arpa else "sentences" if arguments.grammar else "words"
    made = make_graph(
        arguments.model,
        arguments.lexicon,
        arguments.out,
        kind=kind,
        grammar=arguments.arpa or arguments.grammar or arguments.words or None,
        options=GraphOptions(
            silence=None if arguments.silence == "none" else arguments.silence,
            silence_probability=arguments.silence_probability,
            self_loop_scale=arguments.self_loop_scale,
        ),
        say=lambda text: say(f"quantasr: {text}"),
    )
    if arguments.json:
        write_json(asdict(made))
    else:
        print(f"{arguments.out / 'HCLG.fst'}: {made.states} states, {made.arcs} arcs, {made.words} pronunciations")
    return 0
