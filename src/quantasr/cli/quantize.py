"""``quantasr quantize``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from quantasr.cli.options import add_command, add_ivectors, add_trust, count, read_speech
from quantasr.cli.output import say, show, write_json
from quantasr.engines import TORCH, TORCH_BACKENDS
from quantasr.errors import CalibrationError, RecipeError

KALDI = "kaldi"
LIMIT = 128

_EXAMPLES = """\
  quantasr quantize facebook/wav2vec2-base-960h out/ --calibration calibration.jsonl
  quantasr quantize ./my-model out/ --calibration LibriSpeech/dev-clean --recipe fast --limit 64
  quantasr quantize ./my-model out/ --calibration data/train --recipe mine.toml --evaluation data/test
  quantasr quantize ./model.nemo native/ --calibration calibration.jsonl --engine torch    # PyTorch's own int8
  quantasr quantize ./vosk-model copy/ --engine kaldi --bits 6    # the model again, for Kaldi and Vosk
"""


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Add the subcommand."""
    command = add_command(subparsers, "quantize", "Quantize a trained recogniser into an artifact folder.", _EXAMPLES)
    command.add_argument("model", help=".nemo file, folder, or name on a hub (Hugging Face, NVIDIA)")
    command.add_argument("output", type=Path, help="folder to write the artifact to")
    command.add_argument("--calibration", metavar="MANIFEST", help="speech to find the scales on")
    command.add_argument("--recipe", help="default, fast, or a TOML file (default: default)")
    command.add_argument(
        "--engine",
        choices=[TORCH, f"{TORCH}:auto", *(f"{TORCH}:{name}" for name in (*TORCH_BACKENDS, "float")), KALDI],
        help="PyTorch's own int8 instead of a graph; torch measures its backends and takes the fastest, torch:float "
        "has no int8, for --compute bf16 or fp16 alone; kaldi copies a Kaldi or Vosk model with its weights rounded",
    )
    command.add_argument(
        "--compute", choices=["fp32", "bf16", "fp16"], help="with --engine torch: type of the float rest"
    )
    command.add_argument(
        "--all-layers", action="store_true", help="with --engine torch: in int8 too where that is slower than float"
    )
    command.add_argument(
        "--bits", type=int, metavar="N", help="with --engine kaldi, in place of a recipe: all weights in 2 to 16 bits"
    )
    command.add_argument(
        "--granularity",
        choices=["per_tensor", "per_channel"],
        help="with --bits: one scale a tensor, affine, or one a channel, symmetric (per_channel)",
    )
    command.add_argument("--evaluation", metavar="MANIFEST", help="refuse to calibrate on any of this speech")
    command.add_argument("--limit", type=count, metavar="N", help="calibrate on the first N utterances (128)")
    command.add_argument("--overwrite", action="store_true", help="replace an artifact that is there")
    add_ivectors(command)
    add_trust(command)
    return command


def run(arguments: argparse.Namespace) -> int:
    """Quantize, and show what came out."""
    if arguments.engine == KALDI:
        return _run_kaldi(arguments)
    for option in ("bits", "granularity"):
        if getattr(arguments, option) is not None:
            raise RecipeError(f"--{option} is for --engine {KALDI}: otherwise the bits are those of --recipe")
    if arguments.calibration is None:
        raise CalibrationError("--calibration is missing: static scales need some speech, such as the training's")
    import quantasr

    artifact = quantasr.quantize(
        arguments.model,
        arguments.output,
        calibration=read_speech(arguments.calibration, arguments, format="auto"),
        recipe=arguments.recipe or "default",
        engine=arguments.engine,
        compute=arguments.compute,
        all_layers=arguments.all_layers,
        evaluation=arguments.evaluation,
        limit=arguments.limit or LIMIT,
        overwrite=arguments.overwrite,
        trust=arguments.trust,
        progress=True,
        say=say,
    )
    if arguments.json:
        row = {"artifact": str(artifact.folder), "size_bytes": artifact.size, "parity": artifact.parity}
        write_json({**row, "measured": artifact.measured})
    else:
        from quantasr.measure.report import artifact_table, native_table

        show(artifact_table(artifact))
        if artifact.native:
            show(native_table(artifact.engine, artifact.compute, artifact.measured, artifact.layers()))
    if slower := artifact.measured["slower_than_float"]:
        say(f"quantasr: {slower}")
    return 0


def _run_kaldi(arguments: argparse.Namespace) -> int:
    """Copy a model of Kaldi's with its weights rounded, and show them."""
    for option in ("calibration", "evaluation", "limit", "compute", "all_layers", "overwrite", "ivectors"):
        if getattr(arguments, option):
            what = "replaces nothing" if option == "overwrite" else "rounds weights, without any speech"
            raise RecipeError(f"--engine {KALDI} {what}: leave out --{option.replace('_', '-')}")
    if arguments.bits is None and arguments.granularity is not None:
        raise RecipeError("--granularity is for --bits: a recipe has its own")
    if arguments.bits is not None and arguments.recipe is not None:
        raise RecipeError("--bits is for all weights, --recipe for those that it names: leave out one of them")
    from quantasr.pipeline_kaldi import requantize

    granularity = arguments.granularity or "per_channel"
    recipe = arguments.recipe or "default" if arguments.bits is None else arguments.bits
    made = requantize(arguments.model, arguments.output, recipe, granularity=granularity)
    if arguments.json:
        write_json(made.to_dict())
    else:
        from quantasr.measure.report import rounded_table

        show(rounded_table(made.to_dict()))
    return 0
