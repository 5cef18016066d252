"""Reading Kaldi's basic types, binary and text (Kaldi's base/io-funcs and matrix/*).

A binary file begins with ``\\0B``. A token is a word and one space. A number in binary is a byte that says how many
bytes it has (negative: unsigned), then little-endian bytes. In text everything is separated by white space.
"""

from __future__ import annotations

import mmap
import re
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from quantasr.errors import KaldiFileError
from quantasr.kaldi.matrices import HEADER, CompressedMatrix, Floats, Token, compressed_size

_SPACE = re.compile(rb"\s*+")
_WORD = re.compile(rb"\s*+(\S{1,1000}+)")
_INT = re.compile(r"[+-]?[0-9]{1,20}")
_NUMBERS = re.compile(rb"[-+0-9.eEinfatyINFATY\s]*+")
_FLOAT = re.compile(r"[+-]?(([0-9]++(\.[0-9]*+)?|\.[0-9]++)(e[+-]?[0-9]++)?|inf|infinity|nan)", re.IGNORECASE)


class Reader:
    """The bytes of one file of Kaldi's, and how far they are read.

    ``name`` stands in errors; ``offset`` is the byte that is read next. Without ``binary``, what comes first decides it
    (``\\0B``). Every method reads one value as Kaldi writes it and raises KaldiFileError, with name and byte, for
    anything else; nothing is allocated before it is known to be there.
    """

    def __init__(
        self, data: bytes | mmap.mmap, name: str, *, binary: bool | None = None, offset: int = 0, end: int | None = None
    ) -> None:
        self._data = data
        self.name = name
        self.offset = offset
        self._end = len(data) if end is None else end
        if binary is None:
            binary = data[offset : offset + 1] == b"\0"
            if binary:
                if data[offset : offset + 2] != b"\0B":
                    self.fail("begins with a zero byte, but is no binary file of Kaldi's")
                self.offset += 2
        self.binary = binary

    @classmethod
    def open(cls, path: str | Path, *, mapped: bool = False, binary: bool | None = None) -> Reader:
        """The file ``path``; with ``mapped`` it is not read into memory (and must not change while it is read)."""
        data: bytes | mmap.mmap
        try:
            if mapped and Path(path).stat().st_size:
                with Path(path).open("rb") as file:
                    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            else:
                data = Path(path).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
            why = error.strerror if isinstance(error, OSError) else error
            raise KaldiFileError(f"{short(str(path), 200)}: cannot be read ({why}): check the path") from error
        return cls(data, str(path), binary=binary)

    def at(self, offset: int) -> Reader:
        """A reader of the same bytes from ``offset`` on, which looks there whether they are binary."""
        if not 0 <= offset < self._end:
            self.fail(f"there is no byte {offset}")
        return Reader(self._data, self.name, offset=offset, end=self._end)

    @property
    def remaining(self) -> int:
        """Bytes left."""
        return self._end - self.offset

    def fail(self, problem: str, offset: int | None = None) -> NoReturn:
        """Raise KaldiFileError: ``problem``, at ``offset`` or where the reader is."""
        raise KaldiFileError(f"{self.name}: byte {self.offset if offset is None else offset}: {problem}")

    def at_end(self) -> bool:
        """Whether nothing is left, but for white space in text."""
        return (self.offset if self.binary else self._after_space()) >= self._end

    # Bytes, lines and tokens

    def read_bytes(self, count: int, what: str = "data") -> bytes:
        """The next ``count`` bytes."""
        self._need(count, what)
        start, self.offset = self.offset, self.offset + count
        return bytes(self._data[start : self.offset])

    def peek_byte(self) -> int:
        """The next byte (in text: behind white space), -1 at the end."""
        at = self.offset if self.binary else self._after_space()
        return self._data[at] if at < self._end else -1

    def read_line(self, limit: int = 1 << 20, *, may_lack_newline: bool = False) -> str:
        """Text up to the next newline, which is read and not returned."""
        at = self._data.find(b"\n", self.offset, min(self._end, self.offset + limit))
        if at < 0 and not (may_lack_newline and self.remaining < limit):
            self.fail("a line of text does not end")
        end = at if at >= 0 else self._end
        try:
            text = bytes(self._data[self.offset : end]).decode()
        except UnicodeDecodeError:
            self.fail("a line of text is not UTF-8")
        self.offset = min(end + 1, self._end)
        return text

    def peek_token(self) -> str:
        """The next word, which stays unread; '' at the end, and for what is no text."""
        found = self._word()
        return found[0] if found else ""

    def read_token(self) -> str:
        """The next word."""
        found = self._word()
        if found is None:
            self.fail("a word was expected" + ("" if self.remaining > 0 else ", the file ends"))
        token, end = found
        if end >= self._end or not self._data[end : end + 1].isspace():
            self.fail(f"no space behind '{short(token)}'")
        self.offset = end + 1
        return token

    def expect_token(self, *tokens: str) -> str:
        """The next word, which must be one of ``tokens``."""
        start = self.offset
        token = self.peek_token()
        if token not in tokens:
            self.fail(f"{' or '.join(tokens)} was expected, found '{short(token)}'", start)
        return self.read_token()

    def accept_token(self, token: str) -> bool:
        """Whether the next word is ``token``; if so it is read."""
        return self.peek_token() == token and bool(self.read_token())

    # Numbers

    def read_bool(self) -> bool:
        """``T`` or ``F``."""
        at = self.offset if self.binary else self._after_space()
        letter = bytes(self._data[at : min(at + 1, self._end)])
        if letter not in (b"T", b"F"):
            self.fail("T or F was expected")
        self.offset = at + 1
        return letter == b"T"

    def read_int32(self) -> int:
        """A signed integer of 32 bits."""
        return self._int(4, signed=True)

    def read_int64(self) -> int:
        """A signed integer of 64 bits."""
        return self._int(8, signed=True)

    def read_uint32(self) -> int:
        """An unsigned integer of 32 bits."""
        return self._int(4, signed=False)

    def read_uint64(self) -> int:
        """An unsigned integer of 64 bits."""
        return self._int(8, signed=False)

    def read_float(self) -> float:
        """A number of 32 bits (one of 64 is rounded), as a Python float."""
        with np.errstate(over="ignore"):
            return float(np.float32(self.read_double()))

    def read_double(self) -> float:
        """A number of 64 bits, or of 32."""
        if not self.binary:
            start = self.offset
            word = self.read_token()
            return float(word) if _FLOAT.fullmatch(word) else self.fail(f"'{short(word)}' is no number", start)
        size = self.peek_byte()
        if size not in (4, 8):
            self.fail("a floating-point number was expected")
        self._need(1 + size, "a number")
        self.offset += 1
        return float(self._numbers("<f4" if size == 4 else "<f8", 1, "a number")[0])

    def read_array(self, dtype: DTypeLike, count: int, what: str = "array") -> NDArray[Any]:
        """``count`` little-endian numbers without any header, as a new array."""
        return self._numbers(dtype, count, what)

    # Vectors and matrices

    def read_int_vector(self) -> NDArray[np.int32]:
        """Integers of 32 bits."""
        if self.binary:
            return self._numbers("<i4", self._int_count(), "integers")
        start, words = self._bracketed()
        return np.array([self._to_int(word.decode("ascii", "replace"), 32, start) for word in words.split()], np.int32)

    def read_int_row(self) -> NDArray[np.int32]:
        """Integers as archives hold them: each with its size in binary, the rest of a line in text."""
        start = self.offset
        if not self.binary:
            line = self.read_line(1 << 30, may_lack_newline=True)
            return np.array([self._to_int(word, 32, start) for word in line.split()], np.int32)
        found = self._numbers([("size", "u1"), ("value", "<i4")], self._size("a number of integers"), "integers")
        if (found["size"] != 4).any():
            self.fail("integers of 32 bits were expected", start)
        return np.ascontiguousarray(found["value"])

    def read_int_pairs(self) -> NDArray[np.int32]:
        """Pairs of integers, int32 [n, 2]; in text ``[ 1,2 3,4 ]``."""
        if self.binary:
            return self._numbers("<i4", 2 * self._int_count(), "pairs of integers").reshape(-1, 2)
        start, text = self._bracketed()
        pairs = [word.decode("ascii", "replace").split(",") for word in text.split()]
        if any(len(pair) != 2 for pair in pairs):
            self.fail("pairs of integers were expected", start)
        return np.array([[self._to_int(i, 32, start) for i in pair] for pair in pairs], np.int32).reshape(-1, 2)

    def read_vector(self, dtype: DTypeLike = np.float32) -> Floats:
        """A vector of the type that a binary file says; of ``dtype`` in text."""
        if self.binary:
            kind = _KINDS[self.expect_token("FV", "DV")[0]]
            return self._numbers(kind, self._size("a vector's length"), "a vector")
        start, text = self._bracketed()
        if b"\n" in text:
            self.fail("a vector was expected, found a matrix", start)
        return self._parse(text, start, dtype)

    def read_matrix(self, dtype: DTypeLike = np.float32) -> Floats:
        """A matrix [rows, columns] of the type that a binary file says (compressed: float32); of ``dtype`` in text."""
        if not self.binary:
            return self._text_matrix(dtype)
        if self.peek_token() in ("CM", "CM2", "CM3"):
            return self.read_compressed().to_array()
        kind = _KINDS[self.expect_token("FM", "DM")[0]]
        rows, columns = self._size("a matrix' rows"), self._size("a matrix' columns")
        if (rows == 0) != (columns == 0):
            self.fail(f"a matrix of {rows} x {columns} was found")
        return self._numbers(kind, rows * columns, f"a matrix of {rows} x {columns}").reshape(rows, columns)

    def read_compressed(self) -> CompressedMatrix:
        """A compressed matrix as it is (binary only)."""
        token = cast("Token", self.expect_token("CM", "CM2", "CM3"))
        start = self.offset
        low, extent, rows, columns = HEADER.unpack(self.read_bytes(HEADER.size, "a compressed matrix' header"))
        if rows < 0 or columns < 0 or (rows == 0) != (columns == 0):
            self.fail(f"a compressed matrix of {rows} x {columns} was found", start)
        size = compressed_size(token, rows, columns)
        data = self.read_bytes(size, f"a compressed matrix of {rows} x {columns}")
        return CompressedMatrix(token, low, extent, rows, columns, data)

    def read_packed(self, dtype: DTypeLike = np.float64) -> Floats:
        """The lower triangle, row by row, of a symmetric or triangular matrix; ``dtype`` is that of text."""
        if self.peek_token() in ("FP", "DP"):
            token = self.expect_token("FP", "DP")
            size = self._size("a packed matrix' rows")
            count = size * (size + 1) // 2
            if self.binary:
                return self._numbers(_KINDS[token[0]], count, f"a packed matrix of {size} rows")
            self._need(count, f"a packed matrix of {size} rows")
            return np.array([self.read_double() for _ in range(count)], dtype)
        if self.binary:
            self.expect_token("FP", "DP")
        start, text = self._bracketed()
        values = self._parse(text, start, dtype)
        size = int(np.sqrt(2 * len(values)))
        if size * (size + 1) // 2 != len(values):
            self.fail(f"{len(values)} numbers are no packed matrix", start)
        return values

    # Parts of the above

    def _after_space(self) -> int:
        found = _SPACE.match(self._data, self.offset, self._end)
        return found.end() if found else self.offset

    def _word(self) -> tuple[str, int] | None:
        found = _WORD.match(self._data, self.offset, self._end)
        if found is None:
            return None
        try:
            return found[1].decode(), found.end()
        except UnicodeDecodeError:
            return None

    def _need(self, count: int, what: str) -> None:
        if not 0 <= count <= self.remaining:
            self.fail(f"{what} needs {count} bytes, {max(self.remaining, 0)} are left")

    def _numbers(self, dtype: DTypeLike, count: int, what: str) -> NDArray[Any]:
        stored = np.dtype(dtype)
        self._need(count * stored.itemsize, what)
        values = np.frombuffer(self._data, stored, count, self.offset) if count else np.zeros(0, stored)
        self.offset += count * stored.itemsize
        return values.astype(stored.newbyteorder("="))

    def _int(self, size: int, *, signed: bool) -> int:
        if not self.binary:
            start = self.offset
            return self._to_int(self.read_token(), 8 * size, start, signed=signed)
        if self.peek_byte() != (size if signed else 256 - size):
            self.fail(f"{'an' if signed else 'an unsigned'} integer of {8 * size} bits was expected")
        self._need(1 + size, "an integer")
        self.offset += 1
        return int.from_bytes(self.read_bytes(size), "little", signed=signed)

    def _to_int(self, word: str, bits: int, start: int, *, signed: bool = True) -> int:
        if not _INT.fullmatch(word):
            self.fail(f"'{short(word)}' is no integer", start)
        value = int(word)
        low, high = (-(1 << (bits - 1)), 1 << (bits - 1)) if signed else (0, 1 << bits)
        return value if low <= value < high else self.fail(f"{value} is no integer of {bits} bits", start)

    def _int_count(self) -> int:
        if self.peek_byte() != 4:
            self.fail("a vector of 32-bit integers was expected")
        self.offset += 1
        return int.from_bytes(self.read_bytes(4, "a vector's length"), "little", signed=True)

    def _size(self, what: str) -> int:
        start = self.offset
        size = self.read_int32()
        return size if size >= 0 else self.fail(f"{what} cannot be {size}", start)

    def _bracketed(self) -> tuple[int, bytes]:
        """What is between the brackets, and where it begins; a newline behind is read too, as Kaldi does."""
        start = self._after_space()
        if bytes(self._data[start : min(start + 1, self._end)]) != b"[":
            self.fail("'[' was expected", start)
        end = self._data.find(b"]", start, self._end)
        if end < 0:
            self.fail("'[' is not closed", start)
        self.offset = end + 1
        for newline in (b"\r\n", b"\n"):
            if self._data[self.offset : min(self.offset + len(newline), self._end)] == newline:
                self.offset += len(newline)
                break
        return start + 1, bytes(self._data[start + 1 : end])

    def _parse(self, text: bytes, start: int, dtype: DTypeLike) -> NDArray[Any]:
        if not _NUMBERS.fullmatch(text):
            self.fail("numbers were expected", start)
        try:
            values = np.array(list(map(float, text.split())), np.float64)
        except ValueError:
            self.fail("numbers were expected", start)
        with np.errstate(over="ignore"):
            return values.astype(dtype)

    def _text_matrix(self, dtype: DTypeLike) -> Floats:
        start, text = self._bracketed()
        rows = [row for row in re.split(rb"[\n;]", text) if not row.isspace() and row]
        widths = {len(row.split()) for row in rows}
        if len(widths) > 1:
            self.fail("rows of a matrix differ in length", start)
        values = self._parse(text.replace(b";", b" "), start, dtype)
        return values.reshape(len(rows), -1) if rows else values.reshape(0, 0)


_KINDS = {"F": "<f4", "D": "<f8"}


def short(word: str, most: int = 40) -> str:
    """A word for an error message, on one line and not long."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in word[:most])
    return shown if len(word) <= most else shown + "..."


def single(values: Floats) -> NDArray[np.float32]:
    """``values`` as float32; those that are too large become infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32, copy=False)
