"""``quantasr lattices``."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from quantasr.cli.options import add_command, add_engine, add_manifest, add_trust, open_recogniser, read_speech
from quantasr.cli.output import say, write_json
from quantasr.errors import RecipeError

_EXAMPLES = """\
  quantasr lattices exp/chain/tdnn1a --manifest data/test --out ark:lattices.ark
  quantasr lattices out/ --manifest data/test --out ark,t:lattices.txt --raw
  lattice-best-path --acoustic-scale=1.0 ark:lattices.ark ark,t:words.txt
"""


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Add the subcommand."""
    command = add_command(
        subparsers, "lattices", "Write lattices as a Kaldi archive, for Kaldi's lattice programs.", _EXAMPLES
    )
    command.add_argument("system", help="artifact folder, or original model, with a decoding graph")
    add_manifest(command, "speech")
    command.add_argument("--out", required=True, metavar="ARCHIVE", help="ark:FILE, ark,t:FILE or ark,scp:FILE,FILE")
    command.add_argument("--raw", action="store_true", help="not determinized: with the costs of every frame")
    add_engine(command)
    add_trust(command)
    return command


def run(arguments: argparse.Namespace) -> int:
    """Search and write."""
    from quantasr.speech.lattice.transcriber import LatticeTranscriber
    from quantasr.speech.lattice.write import write_lattices
    from quantasr.speech.loglikes import ArchiveOutput

    out = ArchiveOutput.parse(arguments.out)
    utterances = read_speech(arguments.manifest, arguments)
    recogniser = open_recogniser(arguments.system, arguments)
    if not isinstance(recogniser, LatticeTranscriber):
        raise RecipeError(f"{arguments.system}: searches no lattice: this is for hybrid models with a decoding graph")
    found = write_lattices(recogniser, utterances[: arguments.limit], out, raw=arguments.raw, progress=True)
    for problem in (*found.failures.values(), *found.empty.values()):
        say(f"quantasr: left out: {problem}")
    if arguments.json:
        write_json(asdict(found))
    else:
        print(f"{out.ark}: {found.utterances} lattices, {found.arcs} arcs")
    return 3 if found.failures or found.empty else 0
