"""What a run tells while it goes: a line on the terminal, ``metrics.jsonl``, TensorBoard."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from quantasr.errors import MissingExtraError, TrainingError
from quantasr.training.run_folder import TENSORBOARD, RunFolder


class Reporter:
    """Tells rows of figures: ``step``, and numbers by name."""

    def __init__(self, folder: RunFolder, board: Any, total: int, say: Callable[[str], None], line: Any) -> None:
        self._folder, self._board, self._total, self._say, self._line = folder, board, total, say, line
        self._shown: dict[str, float] = {}

    def row(self, step: int, figures: Mapping[str, float]) -> None:
        """Keep and show figures of one step; raises :class:`TrainingError` for a full disk and the like."""
        try:
            self._folder.add_metrics({"step": step, **figures})
            for name, value in figures.items():
                self._board.add_scalar(name, value, step)
        except OSError as error:
            raise TrainingError(
                f"{error.filename or self._folder.path}: cannot be written: {error.strerror or error}: make room on "
                "the disk, and go on from the last checkpoint with --resume"
            ) from error
        self._shown |= figures
        if self._line is None:
            self._say(f"step {step}/{self._total}  {_words(figures)}")
        else:
            self._line(step, _words(self._shown))


def tensorboard() -> Any:
    """The class that writes what it shows; raises :class:`MissingExtraError`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtraError("training needs tensorboard: pip install 'quantasr[train]'") from None
    return SummaryWriter


@contextmanager
def reporter(folder: RunFolder, first: int, total: int, say: Callable[[str], None], live: bool) -> Iterator[Reporter]:
    """A reporter for the steps after ``first``; ``live`` shows one line that changes, if there is a terminal."""
    folder.cut_metrics(first)
    with ExitStack() as stack:
        board = tensorboard()(str(folder.path / TENSORBOARD), purge_step=first + 1)
        stack.callback(board.close)
        line = stack.enter_context(_live_line(first, total)) if live and sys.stderr.isatty() else None
        yield Reporter(folder, board, total, say, line)


@contextmanager
def _live_line(first: int, total: int) -> Iterator[Callable[[int, str], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("training"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, completed=first)
        yield lambda step, words: bar.update(task, completed=step, description=words)


def _words(figures: Mapping[str, float]) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.items())
