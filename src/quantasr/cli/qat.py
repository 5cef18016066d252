"""``quantasr qat``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from quantasr.cli.options import add_command, count
from quantasr.cli.training_options import add_training, read_config, run_options, show_trained

LIMIT = 128

_EXAMPLES = """\
  quantasr qat ./wav2vec2-base-960h out/ --recipe w4.toml --calibration cal.jsonl --train train.jsonl --holdout 5%
  quantasr qat ./model.nemo out/ --recipe w4.toml --calibration cal.jsonl --train calls.jsonl --validation dev.jsonl \\
      --loss distillation    # transcripts are not needed
  quantasr qat exp/chain/tdnn1a out/ --calibration data/cal --train data/train --validation data/dev --rate 1e-5
  quantasr qat ./model out/ --config qat.toml --calibration cal.jsonl --train train.jsonl --holdout 5% --resume
  accelerate launch --multi_gpu --num_processes 2 -m quantasr qat ./model out/ --config qat.toml \\
      --calibration cal.jsonl --train train.jsonl --validation dev.jsonl
"""


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Add the subcommand."""
    summary = "Train a recogniser while it is quantized (QAT), into an artifact folder."
    command = add_command(subparsers, "qat", summary, _EXAMPLES)
    command.add_argument("model", help=".nemo file, folder, or name on a hub (Hugging Face, NVIDIA)")
    command.add_argument("output", type=Path, help="folder to write the artifact to")
    command.add_argument("--recipe", default="default", help="default, fast, or a TOML file (default: default)")
    command.add_argument(
        "--calibration",
        required=True,
        metavar="MANIFEST",
        help="speech to find the scales on that training starts from",
    )
    command.add_argument("--limit", type=count, default=LIMIT, metavar="N", help="the first N of it (128)")
    command.add_argument("--scales", choices=["learned", "observed"], help="how scales move in training (learned)")
    command.add_argument("--overwrite", action="store_true", help="replace an artifact that is there")
    add_training(command, ("auto", "ctc", "lf_mmi", "distillation", "ctc+distillation"))
    return command


def run(arguments: argparse.Namespace) -> int:
    """Train, export, and say what came of it."""
    from quantasr.pipeline_training import qat

    trained = qat(
        arguments.model,
        arguments.output,
        calibration=arguments.calibration,
        recipe=arguments.recipe,
        config=read_config(arguments, scales=("qat", "scales")),
        limit=arguments.limit,
        overwrite=arguments.overwrite,
        **run_options(arguments),
    )
    show_trained(trained, as_json=arguments.json)
    return 0
