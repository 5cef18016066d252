"""``quantasr sensitivity``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from quantasr.cli.options import add_command, add_threads, add_trust, count
from quantasr.cli.output import say, show, write_json
from quantasr.engines import ENGINES, TORCH, TORCH_BACKENDS
from quantasr.errors import ManifestError, RecipeError
from quantasr.measure.sensitivity import MAX_KL, RULE
from quantasr.speech.text import NORMALIZERS

_EXAMPLES = """\
  quantasr sensitivity ./my-model --calibration calibration.jsonl                     # no texts needed
  quantasr sensitivity ./my-model --calibration calibration.jsonl --manifest dev.jsonl --write-recipe mine.toml
  quantasr sensitivity ./my-model --calibration calibration.jsonl --by layer --match 'encoder.layers.3'
  quantasr sensitivity ./model.nemo --calibration calibration.jsonl --by kind --engine torch:onednn

advice:
"""
BY = ("module", "layer", "kind", "part")


def nats(text: str) -> float:
    """A KL divergence: 0 or more."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: give 0 or more nats")
    return value


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Add the subcommand."""
    command = add_command(
        subparsers,
        "sensitivity",
        "Quantize one part of a model at a time: what it does to log-probs, WER and time, and what to leave float.",
        _EXAMPLES + _wrapped(RULE),
    )
    command.add_argument("model", help="model folder, .nemo file, or name on a hub")
    command.add_argument("--calibration", required=True, metavar="MANIFEST", help="speech to find the scales on")
    command.add_argument(
        "--manifest",
        metavar="MANIFEST",
        help="other speech to compare on, with texts for WER (default: the calibration speech, without WER)",
    )
    command.add_argument(
        "--by",
        choices=BY,
        default="module",
        help="module: blocks as encoder.layers.3 and what is beside them (default); layer; kind as conv1d; part: "
        "encoder, decoder, joiner, or the first name of the path",
    )
    command.add_argument("--match", metavar="PATTERN", help="only layers, or what is in modules, of this path")
    command.add_argument(
        "--recipe", help="how layers are quantized, and one row more for its choice: default, fast, or a TOML file"
    )
    command.add_argument(
        "--engine",
        choices=["auto", *ENGINES, TORCH, *(f"{TORCH}:{name}" for name in TORCH_BACKENDS)],
        help="what is timed: the fastest engine for graphs (auto), or PyTorch's own int8 (torch)",
    )
    command.add_argument("--compute", choices=["fp32", "bf16", "fp16"], help="type of a graph's float rest")
    add_threads(command)
    command.add_argument("--no-time", action="store_true", help="compare log-probs and texts only")
    command.add_argument("--rounds", type=count, default=15, metavar="N", help="turns that are timed (15)")
    command.add_argument(
        "--limit", type=count, default=32, metavar="N", help="the first N utterances of each manifest (32)"
    )
    command.add_argument(
        "--max-kl", type=nats, default=MAX_KL, metavar="NATS", help=f"a KL above it is too much ({MAX_KL:g})"
    )
    command.add_argument("--normalizer", choices=list(NORMALIZERS), default="basic", help="of both texts (basic)")
    command.add_argument("--output", type=Path, metavar="FILE", help="write everything as JSON")
    command.add_argument("--write-recipe", type=Path, metavar="FILE", help="write a recipe that follows the advice")
    add_trust(command)
    return command


def run(arguments: argparse.Namespace) -> int:
    """Measure every part, and show one table."""
    for path, error in ((arguments.output, ManifestError), (arguments.write_recipe, RecipeError)):
        if path is not None and not path.absolute().parent.is_dir():
            # Now, and not after an hour of measuring.
            raise error(f"{path}: cannot be written: there is no such folder: make it first")
    import quantasr
    from quantasr.atomic import write_atomically
    from quantasr.measure.report import sensitivity_table

    found = quantasr.sensitivity(
        arguments.model,
        calibration=arguments.calibration,
        evaluation=arguments.manifest,
        by=arguments.by,
        match=arguments.match,
        recipe=arguments.recipe,
        engine=arguments.engine,
        compute=arguments.compute,
        threads=arguments.threads,
        time=not arguments.no_time,
        rounds=arguments.rounds,
        limit=arguments.limit,
        max_kl=arguments.max_kl,
        normalizer=arguments.normalizer,
        trust=arguments.trust,
        progress=True,
        say=say,
    )
    for note in found.notes:
        say(f"quantasr: {note}")
    for failure in found.failures.values():
        say(f"quantasr: left out: {failure}")
    if arguments.output is not None:
        write_atomically(arguments.output, json.dumps(found.to_dict(), indent=1, ensure_ascii=False) + "\n")
    if arguments.json:
        write_json(found.to_dict())
    else:
        show(sensitivity_table(found))
    if arguments.write_recipe is not None:
        if found.recipe is None:
            raise RecipeError(f"{arguments.write_recipe}: not written: the table advises to leave everything float")
        write_atomically(arguments.write_recipe, found.recipe.dumps())
    return 3 if found.failures else 0


def _wrapped(text: str) -> str:
    """Text in the width of the examples."""
    import textwrap

    return textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="  ") + "\n"
