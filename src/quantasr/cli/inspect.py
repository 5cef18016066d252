"""``quantasr inspect``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from quantasr.cli.options import add_command, add_engine, add_trust, seconds
from quantasr.cli.output import show, write_json

_EXAMPLES = """\
  quantasr inspect out/
  quantasr inspect out/ --engine openvino --compute bf16 --json
"""


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Add the subcommand."""
    command = add_command(
        subparsers,
        "inspect",
        "Which layers are quantized and how, which are not and why, and what the engine really executes in int8.",
        _EXAMPLES,
    )
    command.add_argument("artifact", type=Path)
    command.add_argument("--seconds", type=seconds, default=10.0, help="length of the audio that is run (10)")
    add_engine(command)
    add_trust(command)
    return command


def run(arguments: argparse.Namespace) -> int:
    """Run the artifact once on its engine and report every layer."""
    from quantasr.measure.audit import audit
    from quantasr.measure.report import artifact_table, audit_table
    from quantasr.measure.report_parts import audit_parts_table
    from quantasr.runtime import load

    recogniser = load(
        arguments.artifact,
        engine=arguments.engine,
        compute=arguments.compute,
        threads=arguments.threads,
        trust=arguments.trust,
    )
    found = audit(recogniser.artifact, recogniser.engines, seconds=arguments.seconds)
    if arguments.json:
        artifact = recogniser.artifact
        row = {"name": artifact.name, "recipe": artifact.recipe, "provenance": artifact.provenance}
        write_json({**row, "parity": artifact.parity, "audit": found.to_dict()})
    else:
        parts = [audit_parts_table(found)] if len(found.parts) > 1 else []
        show(artifact_table(recogniser.artifact), *parts, audit_table(found))
    return 0
