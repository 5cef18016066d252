"""``quantasr doctor``."""

from __future__ import annotations

import argparse
from typing import Any

from quantasr.cli.options import add_command
from quantasr.cli.output import say, show, write_json

_EXAMPLES = """\
  quantasr doctor
  quantasr doctor --json
"""


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Add the subcommand."""
    return add_command(
        subparsers,
        "doctor",
        "What this machine's CPU can do, what each engine computes exactly on it, versions, and where the cache lies.",
        _EXAMPLES,
    )


def run(arguments: argparse.Namespace) -> int:
    """Examine the machine; what could not be read is said on standard error, and the rest is shown."""
    from quantasr.measure.machine import examine, machine_tables

    found = examine()
    for note in found.share.notes:
        say(f"quantasr: {note}")
    if arguments.json:
        write_json(found.to_dict())
    else:
        show(*machine_tables(found))
    return 0
