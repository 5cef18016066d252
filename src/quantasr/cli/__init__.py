"""The command line: one file a subcommand, each with ``add(subparsers)`` and ``run(arguments) -> exit code``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from quantasr.version import __version__
from quantasr.cli.output import say
from quantasr.errors import QuantasrError

COMMANDS = ("quantize", "evaluate", "transcribe", "bench", "inspect", "demo")

OK, FAILED, USAGE, PARTLY, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes; PARTLY: some recordings could not be used and were reported, the rest was done."""


def parser() -> argparse.ArgumentParser:
    """The whole parser."""
    top = argparse.ArgumentParser(
        prog="quantasr",
        description="Make trained speech recognisers small and fast on CPUs, and prove that the word error rate held.",
        epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but for recordings that were reported, "
        "130 interrupted.",
    )
    top.add_argument("--version", action="version", version=f"quantasr {__version__}")
    subparsers = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        command = import_module(f"quantasr.cli.{name}")
        command.add(subparsers).set_defaults(run=command.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; errors that quantasr knows become one line on standard error."""
    chosen = parser().parse_args(arguments)
    try:
        code: int = chosen.run(chosen)
        return code
    except QuantasrError as error:
        say(f"quantasr: {' '.join(str(error).split())}")
        return FAILED
    except KeyboardInterrupt:
        say("quantasr: interrupted; nothing half-written was left behind")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone, as in `quantasr ... | head`.
        sys.stderr.close()
        return FAILED
