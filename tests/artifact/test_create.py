"""Writing an artifact: all or nothing, whatever comes in between."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from quantasr import atomic as module
from quantasr.atomic import MANIFEST, check_target, create, uninterrupted, write_atomically
from quantasr.errors import ArtifactError


def fill_with(text: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / MANIFEST).write_text(text)
        (folder / "graph.onnx").write_bytes(b"graph of " + text.encode())

    return fill


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where an artifact already lies."""
    folder = tmp_path / "artifact"
    create(folder, fill_with("old"))
    return folder


def test_a_new_folder_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "artifact"

    def fill(folder: Path) -> None:
        assert not target.exists()
        assert folder.parent == target.parent  # the same disk, so that it can be moved in one go
        fill_with("new")(folder)

    create(target, fill)
    assert contents(target) == {MANIFEST: b"new", "graph.onnx": b"graph of new"}
    assert [path.name for path in target.parent.iterdir()] == ["artifact"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_an_artifact_is_replaced_only_when_that_is_allowed(target: Path) -> None:
    with pytest.raises(ArtifactError, match="exists already: choose another folder, or allow --overwrite"):
        create(target, fill_with("new"))
    assert contents(target)[MANIFEST] == b"old"
    create(target, fill_with("new"), overwrite=True)
    assert contents(target) == {MANIFEST: b"new", "graph.onnx": b"graph of new"}
    assert [path.name for path in target.parent.iterdir()] == ["artifact"]


def test_nothing_but_an_artifact_is_ever_replaced(tmp_path: Path) -> None:
    home, file, empty = tmp_path / "home", tmp_path / "file", tmp_path / "empty"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    file.write_text("a file")
    empty.mkdir()
    for folder in (home, file):
        with pytest.raises(ArtifactError, match="exists and is no artifact"):
            create(folder, fill_with("new"), overwrite=True)
    assert (home / "thesis.txt").read_text() == "years of work"
    create(empty, fill_with("new"))
    assert contents(empty)[MANIFEST] == b"new"


@pytest.mark.parametrize(
    "trouble",
    [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), ArtifactError("parity"), KeyboardInterrupt(), MemoryError()],
)
def test_whatever_stops_the_writing_leaves_the_old_one(target: Path, trouble: BaseException) -> None:
    before = contents(target)

    def fill(folder: Path) -> None:
        fill_with("half of the n")(folder)
        raise trouble

    kind = ArtifactError if isinstance(trouble, OSError) else type(trouble)
    with pytest.raises(kind) as caught:
        create(target, fill, overwrite=True)
    if isinstance(trouble, OSError):
        assert str(caught.value).startswith(f"{target}: cannot write the artifact: No space left on device")
    assert contents(target) == before
    assert [path.name for path in target.parent.iterdir()] == ["artifact"]


def test_a_failing_swap_puts_the_old_one_back(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(target)
    rename = Path.rename

    def failing(self: Path, to: Path) -> Path:
        if to == target and self.name != "old":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(ArtifactError, match="Input/output error"):
        create(target, fill_with("new"), overwrite=True)
    assert contents(target) == before


def test_ctrl_c_between_the_two_renames_waits(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old artifact is away and the new one not yet there: the worst moment."""
    rename = Path.rename

    def interrupted(self: Path, to: Path) -> Path:
        result = rename(self, to)
        if to.name == "old":
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        create(target, fill_with("new"), overwrite=True)
    assert contents(target) == {MANIFEST: b"new", "graph.onnx": b"graph of new"}
    assert [path.name for path in target.parent.iterdir()] == ["artifact"]


def test_ctrl_c_while_cleaning_up_waits(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rmtree = module.shutil.rmtree

    def interrupted(folder: Path, **options: bool) -> None:
        signal.raise_signal(signal.SIGINT)
        rmtree(folder, **options)

    monkeypatch.setattr(module.shutil, "rmtree", interrupted)

    def fill(folder: Path) -> None:
        fill_with("half")(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create(target, fill, overwrite=True)
    assert [path.name for path in target.parent.iterdir()] == ["artifact"]
    assert contents(target)[MANIFEST] == b"old"


def test_uninterrupted_is_a_plain_block_in_other_threads() -> None:
    seen: list[str] = []

    def work() -> None:
        with uninterrupted():
            seen.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["done"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_target_is_checked_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be made in"):
        check_target(tmp_path / "file" / "artifact", overwrite=False)
    check_target(tmp_path / "not" / "yet" / "there", overwrite=False)


def test_a_text_file_is_replaced_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "choices.json"
    write_atomically(path, "old\n")
    write_atomically(path, "new ü\n")
    assert path.read_bytes() == "new ü\n".encode()
    assert path.stat().st_mode & 0o777 == 0o644

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "half")
    assert path.read_bytes() == "new ü\n".encode()
    assert [p.name for p in tmp_path.iterdir()] == ["choices.json"]
