"""Files and folders that are there whole or not at all, whatever stops their writing."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantasr.errors import ArtifactError

MANIFEST = "artifact.json"
"""What an artifact is known by."""


def create(folder: Path, fill: Callable[[Path], None], *, overwrite: bool = False) -> None:
    """Make a folder all or nothing: ``fill`` writes into a hidden sibling, which takes its place at the end.

    Whatever stops ``fill`` (an error, a full disk, Ctrl-C) leaves neither the sibling nor a changed ``folder``.
    Raises :class:`ArtifactError` when ``folder`` exists, unless it is an artifact and ``overwrite`` is set.
    """
    folder = folder.absolute()
    check_target(folder, overwrite=overwrite)
    try:
        put_folder(folder, fill)
    except OSError as error:
        reason = error.strerror or error
        raise ArtifactError(f"{folder}: cannot write the artifact: {reason}: check the disk and its rights") from error


def create_file(path: Path, fill: Callable[[Path], None]) -> None:
    """Make a file as :func:`create` makes a folder; raises :class:`ArtifactError` when ``path`` exists."""
    path = path.absolute()
    check_target(path, overwrite=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        put_file(path, fill)
    except OSError as error:
        raise ArtifactError(
            f"{path}: cannot be written: {error.strerror or error}: check the disk and its rights"
        ) from error


def put_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make or replace a folder of any kind as :func:`create` does; what the disk says is raised as it is."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(folder) as fresh:
        fill(fresh)
        _sync(fresh)
        with _scratch(folder) as old, uninterrupted():
            _swap(folder, fresh, old / "old")


def sweep(folder: Path) -> None:
    """Remove from ``folder`` what writers that were killed have left there."""
    for path in folder.glob(".*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Raise :class:`ArtifactError` when an artifact must not or cannot be written to ``folder``.

    Asked before the long work.
    """
    if not folder.exists():
        above = next(parent for parent in folder.absolute().parents if parent.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise ArtifactError(f"{folder}: cannot be made in {above}: choose another folder, or mend its rights")
        return
    if not (folder / MANIFEST).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArtifactError(f"{folder}: exists and is no artifact: choose another folder")
    if (folder / MANIFEST).is_file() and not overwrite:
        raise ArtifactError(f"{folder}: exists already: choose another folder, or allow --overwrite")


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old or the new one, never half of it."""
    put_file(path, lambda fresh: _write_text(fresh, text))


def put_file(path: Path, fill: Callable[[Path], None]) -> None:
    """Make or replace a file all or nothing: ``fill`` writes a hidden sibling, which takes its place at the end."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    fresh = Path(name)
    try:
        fill(fresh)
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        fresh.chmod(0o644)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, "utf-8", newline="\n")


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block is done."""
    before = signal.getsignal(signal.SIGINT)
    # Python gives signals to the main thread alone; a handler that is not Python's cannot be put back.
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    held: list[Any] = []
    signal.signal(signal.SIGINT, lambda *arguments: held.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held and callable(before):
            before(*held[-1])


@contextmanager
def _scratch(beside: Path) -> Iterator[Path]:
    """A hidden folder beside another one, for as long as the block lasts."""
    folder = Path(tempfile.mkdtemp(dir=beside.parent, prefix=f".{beside.name}."))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        with uninterrupted():  # a second Ctrl-C would leave half of it behind
            shutil.rmtree(folder, ignore_errors=True)


def _swap(folder: Path, fresh: Path, old: Path) -> None:
    """Put ``fresh`` in the place of ``folder``, which goes to ``old`` if it is there."""
    if not folder.exists():
        fresh.rename(folder)
        return
    folder.rename(old)
    try:
        fresh.rename(folder)
    except OSError:
        old.rename(folder)
        raise


def _sync(folder: Path) -> None:
    """Have the files on the disk, not merely on their way to it."""
    for path in folder.rglob("*"):
        if path.is_file():  # a copy of a Kaldi model has folders in it
            with path.open("rb") as file:
                os.fsync(file.fileno())
