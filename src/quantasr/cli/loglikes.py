"""``quantasr loglikes``."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from quantasr.cli.options import add_command, add_engine, add_manifest, add_trust, open_recogniser, read_speech
from quantasr.cli.output import say, write_json
from quantasr.errors import RecipeError

_EXAMPLES = """\
  quantasr loglikes exp/chain/tdnn1a --manifest data/test --out ark,scp:loglikes.ark,loglikes.scp
  quantasr loglikes out/ --manifest data/test --out ark,t:loglikes.txt
  quantasr loglikes exp/tdnn --manifest data/test/feats.scp --ivectors exp/ivectors_test --out ark:loglikes.ark
  latgen-faster-mapped --acoustic-scale=1.0 final.mdl HCLG.fst ark:loglikes.ark ark:lattices.ark
"""


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Add the subcommand."""
    command = add_command(
        subparsers, "loglikes", "Write a model's log-likelihoods as a Kaldi archive, for Kaldi's decoders.", _EXAMPLES
    )
    command.add_argument("system", help="artifact folder, or original model")
    add_manifest(command, "speech")
    command.add_argument("--out", required=True, metavar="ARCHIVE", help="ark:FILE, ark,t:FILE or ark,scp:FILE,FILE")
    add_engine(command)
    add_trust(command)
    return command


def run(arguments: argparse.Namespace) -> int:
    """Compute and write."""
    from quantasr.speech.frames import FrameTranscriber
    from quantasr.speech.loglikes import ArchiveOutput, write_loglikes

    out = ArchiveOutput.parse(arguments.out)
    utterances = read_speech(arguments.manifest, arguments)
    recogniser = open_recogniser(arguments.system, arguments)
    if not isinstance(recogniser, FrameTranscriber):
        raise RecipeError(f"{arguments.system}: gives no log-likelihoods of frames: use a hybrid or a CTC model")
    found = write_loglikes(recogniser, utterances[: arguments.limit], out, progress=True)
    for error in found.failures.values():
        say(f"quantasr: left out: {error}")
    if arguments.json:
        write_json(asdict(found))
    else:
        print(f"{out.ark}: {found.utterances} recordings, {found.frames} frames of {found.dim}")
    return 3 if found.failures else 0
