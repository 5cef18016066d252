"""``quantasr finetune``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from quantasr.cli.options import add_command
from quantasr.cli.training_options import add_training, read_config, run_options, show_trained

_EXAMPLES = """\
  quantasr finetune ./wav2vec2-base-960h tuned/ --train train.jsonl --validation dev.jsonl
  quantasr finetune ./model.nemo tuned.nemo --train calls.jsonl --holdout 5% --vocabulary tokens.txt
  quantasr finetune exp/chain/tdnn1a tuned/ --train data/train --validation data/dev --rate 1e-5 \\
      --set train.schedule=exponential --set loss.graphs.alignments=exp/tri3_ali
  accelerate launch --multi_gpu -m quantasr finetune ./model tuned/ --config tune.toml --train train.jsonl --holdout 1h
"""


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Add the subcommand."""
    command = add_command(subparsers, "finetune", "Train a recogniser further, in float.", _EXAMPLES)
    command.add_argument("model", help=".nemo file, folder, or name on a hub (Hugging Face, NVIDIA)")
    command.add_argument("output", type=Path, help="where to write the model, in the format that it came in")
    command.add_argument(
        "--vocabulary",
        metavar="FILE",
        help="a new vocabulary, one token a line, or 'characters' for those of the training transcripts; the layer "
        "that gives tokens is then a new one (Hugging Face, NeMo)",
    )
    add_training(command, ("auto", "ctc", "lf_mmi"))
    return command


def run(arguments: argparse.Namespace) -> int:
    """Train, and say what came of it."""
    from quantasr.pipeline_training import finetune

    trained = finetune(
        arguments.model,
        arguments.output,
        vocabulary=arguments.vocabulary,
        config=read_config(arguments),
        **run_options(arguments),
    )
    show_trained(trained, as_json=arguments.json)
    return 0
