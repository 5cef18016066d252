"""Where words go: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

_PIPED_WIDTH = 200


def say(text: str) -> None:
    """A line of progress or trouble."""
    print(text, file=sys.stderr, flush=True)


def show(*tables: RenderableType) -> None:
    """Tables for people."""
    from rich.console import Console

    # Piped output has no width of its own: make room instead of breaking rows.
    console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)
    for table in tables:
        console.print(table)


def write_json(row: Any) -> None:
    """A result for programs, on one line."""
    print(json.dumps(row, ensure_ascii=False), flush=True)
