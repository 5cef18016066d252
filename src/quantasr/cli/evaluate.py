"""``quantasr evaluate``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from quantasr.cli.options import add_command, add_decoder, add_engine, add_trust, count, open_recogniser
from quantasr.cli.output import say, show, write_json
from quantasr.errors import ManifestError
from quantasr.speech.manifest import FORMATS, read_manifest
from quantasr.speech.text import NORMALIZERS

_EXAMPLES = """\
  quantasr evaluate out/ --manifest evaluation.jsonl
  quantasr evaluate ./my-model out/ --manifest LibriSpeech/test-clean      # before and after, paired
  quantasr evaluate out/ --manifest test.jsonl --lm 4gram.arpa --utterances results.jsonl
"""


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Add the subcommand."""
    command = add_command(
        subparsers, "evaluate", "Word error rate and real-time factor of one system or several, in one run.", _EXAMPLES
    )
    command.add_argument("systems", nargs="+", metavar="SYSTEM", help="artifact folder, or original model")
    command.add_argument("--manifest", required=True, help="speech with reference texts")
    command.add_argument("--format", choices=["auto", *FORMATS], default="auto", help="form of the manifest")
    command.add_argument("--normalizer", choices=list(NORMALIZERS), default="basic", help="of both texts (basic)")
    command.add_argument("--utterances", type=Path, metavar="FILE", help="write each utterance as a line of JSON")
    command.add_argument("--limit", type=count, metavar="N", help="the first N utterances only")
    command.add_argument("--batch-size", type=count, default=1, metavar="N")
    add_engine(command)
    add_decoder(command)
    add_trust(command)
    return command


def run(arguments: argparse.Namespace) -> int:
    """Evaluate all systems, interleaved, and compare them with the first."""
    from quantasr.measure.evaluate import evaluate_systems
    from quantasr.measure.report import evaluation_table

    if arguments.utterances is not None and not arguments.utterances.absolute().parent.is_dir():
        # Now, and not after an hour of transcribing.
        raise ManifestError(f"{arguments.utterances}: cannot be written: there is no such folder: make it first")
    utterances = read_manifest(arguments.manifest, format=arguments.format, trust=arguments.trust)
    systems = [open_recogniser(where, arguments, batch_size=arguments.batch_size) for where in arguments.systems]
    evaluation = evaluate_systems(
        systems,
        utterances,
        normalizer=arguments.normalizer,
        batch_size=arguments.batch_size,
        limit=arguments.limit,
        progress=True,
    )
    if arguments.utterances is not None:
        evaluation.save_utterances(arguments.utterances)
    for fault in evaluation.warnings.values():
        say(f"quantasr: {fault}")
    for error in evaluation.failures.values():
        say(f"quantasr: left out: {error}")
    if arguments.json:
        write_json(evaluation.to_dict())
    else:
        show(evaluation_table(evaluation))
    return 3 if evaluation.failures or evaluation.warnings else 0
