"""``quantasr evaluate``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from quantasr.cli.options import (
    add_command,
    add_decoder,
    add_engine,
    add_manifest,
    add_trust,
    count,
    is_artifact,
    load_original,
    open_recogniser,
    original_options,
    read_speech,
)
from quantasr.cli.output import say, show, write_json
from quantasr.errors import ManifestError, RecipeError
from quantasr.speech.text import NORMALIZERS

_EXAMPLES = """\
  quantasr evaluate out/ --manifest evaluation.jsonl
  quantasr evaluate ./my-model out/ --manifest LibriSpeech/test-clean      # before and after, paired
  quantasr evaluate out/ --manifest test.jsonl --lm 4gram.arpa --utterances results.jsonl
  quantasr evaluate ./my-model out/ --manifest test.jsonl --bits 16,8,7,6,5,4,3,2 --plot widths.svg   # how few do?
"""


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Add the subcommand."""
    command = add_command(
        subparsers, "evaluate", "Word error rate and real-time factor of one system or several, in one run.", _EXAMPLES
    )
    command.add_argument("systems", nargs="+", metavar="SYSTEM", help="artifact folder, or original model")
    add_manifest(command, "speech with reference texts")
    command.add_argument("--normalizer", choices=list(NORMALIZERS), default="basic", help="of both texts (basic)")
    command.add_argument("--utterances", type=Path, metavar="FILE", help="write each utterance as a line of JSON")
    command.add_argument("--batch-size", type=count, default=1, metavar="N")
    add_engine(command)
    add_decoder(command)
    _add_widths(command)
    add_trust(command)
    return command


def widths(text: str) -> tuple[int, ...]:
    """Bit widths, as ``16,8,4``."""
    found = tuple(int(part) for part in text.split(","))
    if not found or any(not 2 <= width <= 16 for width in found):
        raise argparse.ArgumentTypeError(f"{text}: give widths from 2 to 16, such as 16,8,4")
    return found


def _add_widths(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group(
        "bit widths",
        "the first system, an original model, with weights, and with weights and activations, of fewer bits: "
        "simulated, so without times; artifacts beside it are timed",
    )
    group.add_argument("--bits", type=widths, metavar="N,N", help="such as 16,8,7,6,5,4,3,2")
    group.add_argument(
        "--calibration", metavar="MANIFEST", help="speech for activations' ranges (default: those of each utterance)"
    )
    group.add_argument(
        "--granularity",
        choices=["per_tensor", "per_channel", "both"],
        default="per_tensor",
        help="of the weights' scales: one a tensor, affine, or one a channel, symmetric (per_tensor)",
    )
    group.add_argument("--recipe", help="quantize the layers that it does: default, fast, or a TOML file (all layers)")
    group.add_argument("--cer", action="store_true", help="compare characters instead of words")
    group.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the error rate against bits and size: .png, .svg"
    )


def run(arguments: argparse.Namespace) -> int:
    """Evaluate all systems, interleaved, and compare them with the first."""
    if arguments.bits is not None:
        return _run_widths(arguments)
    for option in ("calibration", "recipe", "plot"):
        if getattr(arguments, option) is not None:
            raise RecipeError(f"--{option} is for --bits: name some, such as --bits 16,8,4")
    from quantasr.measure.evaluate import evaluate_systems
    from quantasr.measure.report import evaluation_table

    if arguments.utterances is not None and not arguments.utterances.absolute().parent.is_dir():
        # Now, and not after an hour of transcribing.
        raise ManifestError(f"{arguments.utterances}: cannot be written: there is no such folder: make it first")
    utterances = read_speech(arguments.manifest, arguments)
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


def _run_widths(arguments: argparse.Namespace) -> int:
    """Evaluate one model at several widths."""
    import quantasr
    from quantasr.measure.plots import check_plot, plot_bit_widths
    from quantasr.measure.report import bit_widths_table

    where, *others = arguments.systems
    if is_artifact(where):
        raise RecipeError(f"{where}: is an artifact, which has its width: --bits takes the original model first")
    if arguments.utterances is not None or arguments.batch_size > 1:
        raise RecipeError("--bits takes neither --utterances nor --batch-size: each utterance has ranges of its own")
    if arguments.plot is not None:
        check_plot(arguments.plot)
    both = ("per_tensor", "per_channel")
    model = load_original(where, arguments)
    found = quantasr.bit_widths(
        model,
        read_speech(arguments.manifest, arguments),
        bits=arguments.bits,
        calibration=None
        if arguments.calibration is None
        else read_speech(arguments.calibration, arguments, format="auto"),
        granularities=both if arguments.granularity == "both" else (arguments.granularity,),
        recipe=arguments.recipe,
        beside=[open_recogniser(other, arguments) for other in others],
        decoding=original_options(model, arguments),
        unit="character" if arguments.cer else "word",
        normalizer=arguments.normalizer,
        limit=arguments.limit,
        trust=arguments.trust,
        progress=True,
        say=say,
    )
    for note in (*found.notes, *found.warnings.values()):
        say(f"quantasr: {note}")
    for error in found.failures.values():
        say(f"quantasr: left out: {error}")
    if arguments.plot is not None:
        plot_bit_widths(found, arguments.plot)
    if arguments.json:
        write_json(found.to_dict())
    else:
        show(bit_widths_table(found))
    return 3 if found.failures or found.warnings else 0
