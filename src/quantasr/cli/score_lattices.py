"""``quantasr score-lattices``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from quantasr.cli.options import add_command, add_engine, add_manifest, add_trust, open_recogniser, read_speech
from quantasr.cli.output import say, show, write_json
from quantasr.errors import ManifestError, RecipeError
from quantasr.speech.text import NORMALIZERS

_EXAMPLES = """\
  quantasr score-lattices exp/chain/tdnn1a --tuning data/dev --manifest data/test
  quantasr score-lattices out/ --tuning data/dev --manifest data/test --lm-weights 0.8,1,1.2 --penalties 0,0.5
  KALDI_ROOT=~/kaldi quantasr score-lattices out/ --manifest data/test --latgen exp/chain/tdnn1a/final.mdl

Weights and penalties are those of Kaldi's score.sh: cost = graph + acoustic / weight + penalty for each word.
"""


def numbers(text: str) -> tuple[float, ...]:
    """Numbers, as ``0.8,1,1.2``."""
    return tuple(float(part) for part in text.split(","))


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Add the subcommand."""
    command = add_command(
        subparsers,
        "score-lattices",
        "Word error rate over language-model weights and word penalties, chosen on one set, reported on another.",
        _EXAMPLES,
    )
    command.add_argument("system", help="artifact folder, or original model, with a decoding graph")
    add_manifest(command, "speech with reference texts, on which the result is reported")
    command.add_argument(
        "--tuning", metavar="MANIFEST", help="other speech, on which weight and penalty are chosen (the same, if none)"
    )
    command.add_argument(
        "--lm-weights",
        type=numbers,
        metavar="X,X",
        help="default: 0.7 to 1.7 times that of the search, in steps of 0.1",
    )
    command.add_argument("--penalties", type=numbers, metavar="X,X", help="for each word (0,0.5,1)")
    command.add_argument("--normalizer", choices=list(NORMALIZERS), default="basic", help="of both texts (basic)")
    command.add_argument("--cer", action="store_true", help="count characters instead of words")
    command.add_argument("--utterances", type=Path, metavar="FILE", help="write each utterance as a line of JSON")
    command.add_argument(
        "--latgen", type=Path, metavar="FINAL.MDL", help="search with Kaldi's latgen-faster-mapped of KALDI_ROOT"
    )
    add_engine(command)
    add_trust(command)
    return command


def run(arguments: argparse.Namespace) -> int:
    """Search once, score for every pair."""
    from quantasr.measure.lm_weights import PENALTIES, search_weights
    from quantasr.measure.report import speakers_table, weights_table
    from quantasr.speech.lattice.latgen import LatgenDecoder
    from quantasr.speech.lattice.transcriber import LatticeTranscriber

    if arguments.utterances is not None and not arguments.utterances.absolute().parent.is_dir():
        raise ManifestError(f"{arguments.utterances}: cannot be written: there is no such folder: make it first")
    sets = [
        read_speech(place, arguments)[: arguments.limit]
        for place in (arguments.manifest, arguments.tuning)
        if place is not None
    ]
    recogniser = open_recogniser(arguments.system, arguments)
    if not isinstance(recogniser, LatticeTranscriber):
        raise RecipeError(f"{arguments.system}: searches no lattice: this is for hybrid models with a decoding graph")
    decode = None
    if arguments.latgen is not None:
        if recogniser.files is None:
            raise RecipeError(f"{arguments.system}: has no decoding graph that latgen-faster-mapped could read")
        decode = LatgenDecoder(arguments.latgen, recogniser.files)
    if len(sets) == 1:
        say("quantasr: no --tuning: weight and penalty are chosen on the speech that they are reported on")
    found = search_weights(
        recogniser,
        *sets,
        lm_weights=arguments.lm_weights,
        penalties=arguments.penalties or PENALTIES,
        unit="character" if arguments.cer else "word",
        normalizer=arguments.normalizer,
        decode=decode,
        progress=True,
    )
    if arguments.utterances is not None:
        found.save_utterances(arguments.utterances)
    for note in (*found.warnings.values(), *(f"left out: {error}" for error in found.failures.values())):
        say(f"quantasr: {note}")
    if arguments.json:
        write_json(found.to_dict())
    else:
        show(weights_table(found), *([speakers_table(found.speakers)] if found.speakers else []))
    return 3 if found.failures or found.warnings else 0
