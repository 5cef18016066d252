"""A ``.nemo`` file: a tar from anywhere, read without unpacking it and without running anything in it."""

from __future__ import annotations

import pickle
import shutil
import sys
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

import torch
from torch import Tensor

from quantasr.errors import ModelLoadError

CONFIG = "model_config.yaml"
WEIGHTS = "model_weights.ckpt"

_GZIP = b"\x1f\x8b"
_MAX_FILE = 64 << 20
"""Bytes of a configuration or a tokenizer; those of real models have less than two million."""
_MAX_MEMBERS = 10_000
_MAX_RATIO = 100
"""How many times its size a gzipped archive may unpack to; weights hardly shrink at all."""


class NemoArchive:
    """The files of a ``.nemo``: a tar, plain or gzipped, or a folder that it was unpacked into.

    :func:`open_archive` makes it. Every method raises :class:`ModelLoadError`.
    """

    def __init__(
        self, where: str, members: dict[str, tarfile.TarInfo | Path], tar: tarfile.TarFile | None, gzipped: bool
    ) -> None:
        self.where = where
        self._members = members
        self._tar = tar
        self._gzipped = gzipped

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def read(self, name: str) -> bytes:
        """A small file."""
        with self.open(name) as file:
            content = file.read(_MAX_FILE + 1)
        if len(content) > _MAX_FILE:
            raise ModelLoadError(f"{self.where}: {name} has more than {_MAX_FILE >> 20} MB; NeMo writes no such file")
        return content

    def __iter__(self) -> Iterator[str]:
        """Names of its files, as they come in it."""
        return iter(self._members)

    def weights(self) -> dict[str, Tensor]:
        """The tensors of the model, by name."""
        with self.open(WEIGHTS) as file, self._seekable(file) as seekable:
            _refuse_compressed(self.where, seekable)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # about files that PyTorch did not write
                    state: Any = torch.load(seekable, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:
                raise ModelLoadError(
                    f"{self.where}: {WEIGHTS} is damaged, or holds more than tensors, which could run code"
                ) from None
            except (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
                reason = str(error).split("\n", 1)[0][:150]
                raise ModelLoadError(f"{self.where}: {WEIGHTS} is damaged, copy the model again: {reason}") from None
        if not isinstance(state, dict) or not all(_is_plain(value) for value in state.values()):
            raise ModelLoadError(f"{self.where}: {WEIGHTS} is no state dict, which maps names to plain tensors")
        return state

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """A file of any size, for as long as the block lasts."""
        if name not in self._members:
            raise ModelLoadError(f"{self.where}: it has no {name}: was it saved with NeMo's save_to?")
        member = self._members[name]
        with _one_line(self.where):
            if isinstance(member, Path):
                with member.open("rb") as plain:
                    yield plain
            elif self._tar is not None and (packed := self._tar.extractfile(member)) is not None:
                with packed:
                    yield packed

    @contextmanager
    def _seekable(self, file: IO[bytes]) -> Iterator[IO[bytes]]:
        """``file``, or a copy of it where each step back would unpack everything again."""
        if not self._gzipped:
            yield file
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
            copy.seek(0)
            yield copy


@contextmanager
def open_archive(where: str) -> Iterator[NemoArchive]:
    """Open a ``.nemo`` file, or the folder that one was unpacked into, and check what it consists of.

    Raises :class:`ModelLoadError` when it is no tar, is truncated, has a member that would land outside of its folder
    (an absolute path, ``..``, a link), is no regular file, or would unpack to far more than it is.
    """
    path = Path(where)
    if path.is_dir():
        yield NemoArchive(where, {file.name: file for file in path.iterdir() if file.is_file()}, None, False)
        return
    with _one_line(where):
        with path.open("rb") as file:
            gzipped = file.read(2) == _GZIP
        limit = path.stat().st_size * _MAX_RATIO if gzipped else sys.maxsize
        with tarfile.open(path, "r:gz" if gzipped else "r:") as tar:
            yield NemoArchive(where, _members(where, tar, limit), tar, gzipped)


def _members(where: str, tar: tarfile.TarFile, limit: int) -> dict[str, tarfile.TarInfo | Path]:
    """Files of a tar by their names, none of which may reach out of the archive."""
    members: dict[str, tarfile.TarInfo | Path] = {}
    size = 0
    for member in tar:
        name, windows = PurePosixPath(member.name), PureWindowsPath(member.name)
        if windows.anchor or ".." in windows.parts:  # which takes slashes of both kinds
            raise ModelLoadError(f"{where}: its member {member.name!r} points outside of it: do not trust this file")
        if member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise ModelLoadError(
                f"{where}: its member {member.name!r} is a link or a device, where NeMo writes plain files: "
                "do not trust this file"
            )
        size += member.size
        if size > limit or len(members) >= _MAX_MEMBERS:
            raise ModelLoadError(f"{where}: would unpack to far more than its own size: do not trust this file")
        members[str(name)] = member
    return members


def _is_plain(value: Any) -> bool:
    """Whether something is a tensor with all its values in memory: not sparse, not quantized, on no other device."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _refuse_compressed(where: str, weights: IO[bytes]) -> None:
    """PyTorch stores tensors as they are; what is compressed could unpack to anything."""
    if not zipfile.is_zipfile(weights):
        weights.seek(0)
        return  # PyTorch's older format, or damaged: torch.load says which
    weights.seek(0)
    with zipfile.ZipFile(weights) as entries:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.infolist()):
            raise ModelLoadError(f"{where}: {WEIGHTS} is compressed, as PyTorch never writes it")
    weights.seek(0)


@contextmanager
def _one_line(where: str) -> Iterator[None]:
    """Say in one line how an archive is broken."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        if isinstance(error, tarfile.ReadError) and not Path(where).is_dir() and not tarfile.is_tarfile(where):
            raise ModelLoadError(f"{where}: is no .nemo file: it is not a tar archive") from None
        raise ModelLoadError(f"{where}: is truncated or damaged, copy it again: {error}") from None
    except OSError as error:
        raise ModelLoadError(f"{where}: cannot be read: {error}") from None
