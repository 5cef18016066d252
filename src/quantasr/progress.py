"""Progress bars on standard error; silent where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], label: str, *, total: int | None = None, show: bool = True) -> Iterator[T]:
    """Yield from ``items`` under a progress bar, which is drawn only on a terminal and only if ``show``."""
    if not (show and sys.stderr.isatty()):
        yield from items
        return
    # Here, because it takes longer to import than a short recording takes to transcribe.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(items, total=total, description=label)
