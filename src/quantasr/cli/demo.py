"""``quantasr demo``."""

from __future__ import annotations

import argparse
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from quantasr.cli.options import add_command, add_threads, count
from quantasr.cli.output import say, show, write_json

_EXAMPLES = """\
  quantasr demo
  quantasr demo --output out/ --threads 2
"""


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Add the subcommand."""
    command = add_command(
        subparsers, "demo", "Quantize the sample recogniser of spoken digits and show WER and speed.", _EXAMPLES
    )
    command.add_argument("--output", type=Path, metavar="FOLDER", help="keep the artifacts here")
    add_threads(command, default=2)
    command.add_argument("--limit", type=count, metavar="N", help="evaluate the first N utterances only")
    return command


def run(arguments: argparse.Namespace) -> int:
    """The whole way on the model in the package: quantize twice, evaluate, time, and show both tables."""
    import quantasr
    from quantasr.measure.bench import bench
    from quantasr.measure.evaluate import evaluate_systems
    from quantasr.measure.original import load_original
    from quantasr.measure.report import bench_table, evaluation_table
    from quantasr.runtime import load
    from quantasr.sample import calibration, evaluation, model
    from quantasr.speech.manifest import read_manifest

    utterances = read_manifest(evaluation())
    keep = nullcontext(str(arguments.output)) if arguments.output else tempfile.TemporaryDirectory()
    with keep as folder:
        artifacts = []
        for recipe in ("default", "fast"):
            say(f"-- recipe {recipe}")
            output = Path(folder) / f"digits-{recipe}"
            artifacts.append(
                quantasr.quantize(
                    model(),
                    output,
                    calibration=calibration(),
                    evaluation=utterances,
                    recipe=recipe,
                    overwrite=True,
                    progress=True,
                    say=say,
                )
            )
        say(f"-- evaluating on {len(utterances[: arguments.limit])} strings of digits, never seen in training")
        original = load_original(str(model()), arguments.threads)
        systems = [original.transcriber, *(load(artifact, threads=arguments.threads) for artifact in artifacts)]
        found = evaluate_systems(systems, utterances, limit=arguments.limit, progress=True)
        say("-- timing every engine")
        longest = max(utterances, key=lambda u: u.duration or 0.0)
        rows = bench(artifacts, longest.load(systems[0].sample_rate), original=original, threads=arguments.threads)
    if arguments.json:
        write_json({"evaluation": found.to_dict(), "bench": [row.to_dict() for row in rows]})
    else:
        show(evaluation_table(found), bench_table(rows))
    return 0
