"""A cursor over the bytes of an OpenFst file, every step of which is checked (OpenFst's util.h)."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from quantasr.errors import KaldiFileError

ALIGNMENT = 16
"""Bytes that OpenFst aligns arrays to, where a file says that it is aligned."""


class Source:
    """The bytes of a file, mapped (changes stay in memory), with a position.

    Whatever goes wrong is a KaldiFileError with the offset.
    """

    def __init__(self, path: str | Path, data: bytes | None = None) -> None:
        self.path = str(path)
        if data is None:
            try:
                with Path(path).open("rb") as file:
                    self.data: bytes | mmap.mmap = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
                raise KaldiFileError(f"{path}: cannot be read as an FST: {error}") from None
        else:
            self.data = data
        self.at = 0

    @property
    def left(self) -> int:
        """Bytes behind the position."""
        return len(self.data) - self.at

    def error(self, what: str, at: int | None = None) -> KaldiFileError:
        """The error to raise, in one line."""
        return KaldiFileError(f"{self.path}: byte {self.at if at is None else at}: {what}")

    def _number(self, form: str, size: int) -> Any:
        if self.left < size:
            raise self.error("the FST file ends early; is it complete?")
        value = struct.unpack_from(form, self.data, self.at)[0]
        self.at += size
        return value

    def int32(self) -> int:
        return int(self._number("<i", 4))

    def int64(self) -> int:
        return int(self._number("<q", 8))

    def uint64(self) -> int:
        return int(self._number("<Q", 8))

    def flag(self) -> bool:
        return bool(self._number("<B", 1))

    def text(self, limit: int = 1 << 20) -> str:
        """A string: its number of bytes, and they."""
        at, size = self.at, self.int32()
        if not 0 <= size <= min(limit, self.left):
            raise self.error(f"a string of {size} bytes cannot be here", at)
        raw = self.data[self.at : self.at + size]
        self.at += size
        return raw.decode("utf-8", "replace")

    def array(self, dtype: DTypeLike, count: int) -> NDArray[Any]:
        """``count`` values: the mapped file itself where they are aligned, a copy elsewhere."""
        kind = np.dtype(dtype)
        if count < 0 or count * kind.itemsize > self.left:
            raise self.error(f"{count} values of {kind.itemsize} bytes are announced, {self.left} bytes are left")
        values = np.frombuffer(self.data, kind, count, self.at)
        self.at += count * kind.itemsize
        return values if values.flags.aligned else values.copy()

    def align(self) -> None:
        """Skip to the next multiple of 16 bytes."""
        self.at += -self.at % ALIGNMENT
        if self.left < 0:
            raise self.error("the FST file ends early; is it complete?")
