"""Progress bars on standard error; silent where nobody looks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

T = TypeVar("T")


def track(items: Iterable[T], label: str, *, total: int | None = None, show: bool = True) -> Iterable[T]:
    """Yield from ``items`` under a progress bar, which is drawn only on a terminal and only if ``show``."""
    console = Console(stderr=True)
    if not (show and console.is_terminal):
        yield from items
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield from progress.track(items, total=total, description=label)
