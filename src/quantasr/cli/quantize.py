"""``quantasr quantize``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from quantasr.cli.options import add_command, add_trust, count
from quantasr.cli.output import say, show, write_json
from quantasr.engines import TORCH, TORCH_BACKENDS

_EXAMPLES = """\
  quantasr quantize facebook/wav2vec2-base-960h out/ --calibration calibration.jsonl
  quantasr quantize ./my-model out/ --calibration LibriSpeech/dev-clean --recipe fast --limit 64
  quantasr quantize ./my-model out/ --calibration data/train --recipe mine.toml --evaluation data/test
  quantasr quantize ./model.nemo native/ --calibration calibration.jsonl --engine torch    # PyTorch's own int8
"""


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Add the subcommand."""
    command = add_command(subparsers, "quantize", "Quantize a trained recogniser into an artifact folder.", _EXAMPLES)
    command.add_argument("model", help="CTC model: .nemo file, folder, or name on a hub (Hugging Face, NVIDIA)")
    command.add_argument("output", type=Path, help="folder to write the artifact to")
    command.add_argument("--calibration", required=True, metavar="MANIFEST", help="speech to find the scales on")
    command.add_argument("--recipe", default="default", help="default, fast, or a TOML file (default: default)")
    command.add_argument(
        "--engine",
        choices=[TORCH, f"{TORCH}:auto", *(f"{TORCH}:{name}" for name in (*TORCH_BACKENDS, "float"))],
        help="PyTorch's own int8 instead of a graph; torch measures its backends and takes the fastest, torch:float "
        "has no int8, for --compute bf16 or fp16 alone",
    )
    command.add_argument("--compute", choices=["fp32", "bf16", "fp16"], help="with --engine: type of the float rest")
    command.add_argument(
        "--all-layers", action="store_true", help="with --engine: in int8 too where that is slower than float"
    )
    command.add_argument("--evaluation", metavar="MANIFEST", help="refuse to calibrate on any of this speech")
    command.add_argument(
        "--limit", type=count, default=128, metavar="N", help="calibrate on the first N utterances (128)"
    )
    command.add_argument("--overwrite", action="store_true", help="replace an artifact that is there")
    add_trust(command)
    return command


def run(arguments: argparse.Namespace) -> int:
    """Quantize, and show what came out."""
    import quantasr

    artifact = quantasr.quantize(
        arguments.model,
        arguments.output,
        calibration=arguments.calibration,
        recipe=arguments.recipe,
        engine=arguments.engine,
        compute=arguments.compute,
        all_layers=arguments.all_layers,
        evaluation=arguments.evaluation,
        limit=arguments.limit,
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
