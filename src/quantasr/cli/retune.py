"""``quantasr retune``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from quantasr.cli.options import add_command, add_engine, add_trust, count, named_value
from quantasr.cli.output import say, show, write_json
from quantasr.errors import RecipeError
from quantasr.speech.text import NORMALIZERS

_EXAMPLES = """\
  quantasr retune out/ --tuning dev.jsonl --dry-run
  quantasr retune out/ --tuning dev.jsonl --evaluation test.jsonl
  quantasr retune out/ --tuning dev.jsonl --grid beam_width=1,4 --grid length_bonus=0,0.5,1

Quantized models lose words rather than invent them, and the options of the search can make up for it. They are tried
on the tuning speech (which may be the calibration speech), and the best are written into the artifact.
"""


def grid(text: str) -> tuple[str, tuple[Any, ...]]:
    """An option and the values to be tried: ``blank_penalty=0,0.5,1``."""
    name, _, values = text.partition("=")
    if not name or not values:
        raise argparse.ArgumentTypeError(f"{text}: write a name and values, such as blank_penalty=0,0.5,1")
    return name, tuple(named_value(f"{name}={value}")[1] for value in values.split(","))


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Add the subcommand."""
    command = add_command(
        subparsers,
        "retune",
        "Search the decoding parameters that make up for what quantization changed, and keep them in the artifact.",
        _EXAMPLES,
    )
    command.add_argument("artifact", type=Path)
    command.add_argument("--tuning", required=True, metavar="MANIFEST", help="speech with texts, to choose on")
    command.add_argument("--evaluation", metavar="MANIFEST", help="other speech, on which before and after are shown")
    command.add_argument(
        "--grid",
        type=grid,
        action="append",
        metavar="NAME=V,V",
        help="an option and its values, instead of those that the artifact's search names; may be given again",
    )
    command.add_argument("--limit", type=count, metavar="N", help="the first N utterances of the tuning speech only")
    command.add_argument("--normalizer", choices=list(NORMALIZERS), default="basic", help="of both texts (basic)")
    command.add_argument("--dry-run", action="store_true", help="show what would be chosen, and write nothing")
    add_engine(command)
    add_trust(command)
    return command


def run(arguments: argparse.Namespace) -> int:
    """Search, show every run, and write the artifact."""
    from quantasr.measure.report_parts import retune_table
    from quantasr.measure.retune import retune
    from quantasr.speech.manifest import read_manifest

    grids = arguments.grid or []
    if len({name for name, _ in grids}) < len(grids):
        raise RecipeError("--grid: names an option twice: write its values behind one --grid")
    found = retune(
        arguments.artifact,
        read_manifest(arguments.tuning, trust=arguments.trust),
        evaluation=None if arguments.evaluation is None else read_manifest(arguments.evaluation, trust=arguments.trust),
        grids=dict(grids) or None,
        engine=arguments.engine,
        compute=arguments.compute,
        threads=arguments.threads,
        limit=arguments.limit,
        normalizer=arguments.normalizer,
        dry_run=arguments.dry_run,
        progress=True,
        say=say,
    )
    for failure in found.failures.values():
        say(f"quantasr: left out: {failure}")
    if arguments.json:
        write_json(found.to_dict())
    else:
        show(retune_table(found))
    if not found.gained:
        say(f"quantasr: nothing makes fewer errors than the artifact as it is: {arguments.artifact} is unchanged")
    elif not found.written:
        say(f"quantasr: --dry-run: {arguments.artifact} is unchanged")
    else:
        say(f"quantasr: {arguments.artifact}: {found.best.name}")
    if found.evaluation is not None and found.evaluation.against_first()[0].difference >= 0:
        say("quantasr: on the evaluation speech that gains nothing: what was gained may be chance")
    return 3 if found.failures else 0
