"""The command line: one file a subcommand, each with ``add(subparsers)`` and ``run(arguments) -> exit code``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module

from quantasr.cli.interrupt import Interrupted, interruptible
from quantasr.cli.output import say
from quantasr.errors import QuantasrError
from quantasr.version import __version__

COMMANDS = (
    "quantize",
    "evaluate",
    "transcribe",
    "bench",
    "inspect",
    "doctor",
    "sensitivity",
    "retune",
    "finetune",
    "qat",
    "compile-graph",
    "score-lattices",
    "loglikes",
    "lattices",
    "demo",
)

OK, FAILED, USAGE, PARTLY, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes; PARTLY: some recordings were not usable or are suspicious, which was reported, and the rest was done."""


def parser(commands: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """The whole parser, or that of some commands only: each is imported when it is added."""
    top = argparse.ArgumentParser(
        prog="quantasr",
        description="Make trained speech recognisers small and fast on CPUs, and prove that the word error rate held.",
        epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done, with recordings that were reported as unusable "
        "or suspicious, 130 interrupted.",
    )
    top.add_argument("--version", action="version", version=f"quantasr {__version__}")
    subparsers = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in commands:
        command = import_module(f"quantasr.cli.{name.replace('-', '_')}")
        command.add(subparsers).set_defaults(run=command.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; errors that quantasr knows become one line on standard error."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with interruptible():
            return _run(arguments)
    except QuantasrError as error:
        return _fail(str(error))
    except BrokenPipeError:
        # The reader of our output has gone, as in `quantasr ... | head`; the rest of it must go somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        # Writing does not say where; what is not ours to name goes through the temporary folder.
        where = error.filename or f"writing, perhaps to {tempfile.gettempdir()}"
        return _fail(f"{where}: {error.strerror or error}: check the path, its rights and the room on its disk")
    except MemoryError:
        return _fail("out of memory: use shorter --chunk, a smaller --batch-size or fewer systems at once")
    except KeyboardInterrupt as error:
        say("quantasr: interrupted: nothing half-written was left behind")
        return error.exit_code if isinstance(error, Interrupted) else INTERRUPTED


def _run(arguments: Sequence[str]) -> int:
    # Only the command that is wanted: the others' imports take longer than a short recording.
    chosen = parser(arguments[:1] if arguments[:1] and arguments[0] in COMMANDS else COMMANDS).parse_args(arguments)
    code: int = chosen.run(chosen)
    sys.stdout.flush()  # now, while a full disk can still be reported
    return code


def _fail(text: str) -> int:
    say(f"quantasr: {' '.join(text.split())}")
    return FAILED
