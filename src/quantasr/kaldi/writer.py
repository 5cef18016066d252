"""Writing Kaldi's basic types, binary and text: what ``stream.Reader`` reads, byte for byte as Kaldi writes it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import KaldiFileError
from quantasr.kaldi.matrices import HEADER, CompressedMatrix, Floats


class Writer:
    """Values written to ``file``, binary (with ``\\0B`` first, unless ``header`` is False) or text."""

    def __init__(self, file: BinaryIO, *, binary: bool = True, header: bool = True) -> None:
        self._file = file
        self.binary = binary
        if header:
            self.write_header()

    @property
    def offset(self) -> int:
        """The byte that is written next."""
        return self._file.tell()

    def write_header(self) -> None:
        """What says that binary values follow; nothing in text."""
        if self.binary:
            self._file.write(b"\0B")

    def write_bytes(self, data: bytes) -> None:
        """``data`` as it is."""
        self._file.write(data)

    def write_text(self, text: str) -> None:
        """``text`` as it is, such as a newline: Kaldi writes some in text files only, some in both."""
        self._file.write(text.encode())

    def write_token(self, token: str) -> None:
        """A word and a space."""
        self.write_text(token + " ")

    def write_bool(self, value: bool) -> None:
        """``T`` or ``F``."""
        self.write_text("FT"[value] + ("" if self.binary else " "))

    def write_int32(self, value: int) -> None:
        """A signed integer of 32 bits."""
        self._int(value, 4, signed=True)

    def write_int64(self, value: int) -> None:
        """A signed integer of 64 bits."""
        self._int(value, 8, signed=True)

    def write_uint32(self, value: int) -> None:
        """An unsigned integer of 32 bits."""
        self._int(value, 4, signed=False)

    def write_uint64(self, value: int) -> None:
        """An unsigned integer of 64 bits."""
        self._int(value, 8, signed=False)

    def write_float(self, value: float) -> None:
        """A number of 32 bits."""
        self._float(np.float32(value))

    def write_double(self, value: float) -> None:
        """A number of 64 bits."""
        self._float(np.float64(value))

    def write_array(self, values: NDArray[Any]) -> None:
        """The little-endian numbers alone."""
        self._file.write(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes())

    def write_int_vector(self, values: NDArray[np.int32]) -> None:
        """Integers of 32 bits."""
        if self.binary:
            self.write_bytes(b"\x04" + len(values).to_bytes(4, "little"))
            self.write_array(np.asarray(values, np.int32))
        else:
            self.write_text("[ " + "".join(f"{i} " for i in values) + "]\n")

    def write_int_row(self, values: NDArray[np.integer[Any]]) -> None:
        """Integers of 32 bits as archives hold them: each with its size in binary, a line in text."""
        if self.binary:
            self.write_int32(len(values))
        for value in values.tolist():
            self.write_int32(value)
        if not self.binary:
            self.write_text("\n")

    def write_int_pairs(self, values: NDArray[np.int32]) -> None:
        """Pairs of integers [n, 2]."""
        if self.binary:
            self.write_int_vector(values)
        else:
            self.write_text("[ " + "".join(f"{a},{b} " for a, b in values) + "]\n")

    def write_vector(self, values: Floats) -> None:
        """A vector of its own type, float32 or float64."""
        if self.binary:
            self.write_token(_letter(values) + "V")
            self.write_int32(len(values))
            self.write_array(values)
        else:
            self.write_text(" [ " + _numbers(values) + "]\n")

    def write_matrix(self, values: Floats) -> None:
        """A matrix of its own type, float32 or float64."""
        rows, columns = values.shape
        if self.binary:
            self.write_token(_letter(values) + "M")
            self.write_int32(rows)
            self.write_int32(columns)
            self.write_array(values)
        elif columns == 0:
            self.write_text(" [ ]\n")
        else:
            self.write_text(" [" + "".join("\n  " + _numbers(row) for row in values) + "]\n")

    def write_compressed(self, matrix: CompressedMatrix) -> None:
        """A compressed matrix; an ordinary one in text, as Kaldi does."""
        if not self.binary:
            return self.write_matrix(matrix.to_array())
        self.write_token(matrix.token)
        self.write_bytes(HEADER.pack(matrix.low, matrix.extent, matrix.rows, matrix.columns))
        self.write_bytes(matrix.data)
        return None

    def write_packed(self, values: Floats) -> None:
        """The lower triangle ``values``, row by row, of a symmetric or triangular matrix."""
        rows = int(np.sqrt(2 * len(values)))
        if self.binary:
            self.write_token(_letter(values) + "P")
            self.write_int32(rows)
            self.write_array(values)
            return
        lines = [_numbers(values[i * (i + 1) // 2 : (i + 1) * (i + 2) // 2]) for i in range(rows)]
        self.write_text("[\n" + "\n".join(lines) + "]\n" if rows else "[ ]\n")

    def _int(self, value: int, size: int, *, signed: bool) -> None:
        if self.binary:
            head = size if signed else 256 - size
            self.write_bytes(bytes([head]) + int(value).to_bytes(size, "little", signed=signed))
        else:
            self.write_text(f"{value} ")

    def _float(self, value: np.floating[Any]) -> None:
        if self.binary:
            self.write_bytes(bytes([value.itemsize]))
            self.write_array(np.array(value))
        else:
            self.write_text(_numbers([value]))


@contextmanager
def writing(path: str | Path, *, binary: bool = True, header: bool = True) -> Iterator[Writer]:
    """A ``Writer`` of the file ``path``, which is there only when all of it is written.

    Raises KaldiFileError when it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            yield Writer(file, binary=binary, header=header)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise KaldiFileError(f"{path}: cannot be written ({error.strerror}): check the folder and the disk") from error
    finally:
        temporary.unlink(missing_ok=True)


def _letter(values: Floats) -> str:
    return "D" if values.dtype == np.float64 else "F"


def _numbers(values: Any) -> str:
    """Numbers as C++ prints them with Kaldi's seven digits, a space behind each."""
    return "".join([f"{value:.7g} " for value in np.asarray(values).tolist()])
