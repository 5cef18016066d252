"""Kaldi's compressed and packed matrices as arrays, and back (its matrix/compressed-matrix, matrix/packed-matrix)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Token = Literal["CM", "CM2", "CM3"]

HEADER = struct.Struct("<ffii")
"""What follows the token: smallest value, range, rows, columns."""

_MOST = np.array([65532, 65533, 65534, 65535], np.int64)


@dataclass(frozen=True)
class CompressedMatrix:
    """A matrix of one byte (``CM``: with quartiles of each column; ``CM3``) or two bytes (``CM2``) a value.

    ``data`` is what the file holds behind the header: of ``CM`` the four quartiles of each column as uint16, then the
    bytes column by column; of the others the values row by row.
    """

    token: Token
    low: float
    extent: float
    rows: int
    columns: int
    data: bytes

    def __post_init__(self) -> None:
        if len(self.data) != compressed_size(self.token, self.rows, self.columns):
            raise ValueError(f"{len(self.data)} bytes are not a {self.token} of {self.rows} x {self.columns}")

    def to_array(self) -> NDArray[np.float32]:
        """The values, float32 [rows, columns]; rounded as Kaldi rounds them."""
        if self.token == "CM":
            return self._by_quartiles()
        levels, kind = (65535, "<u2") if self.token == "CM2" else (255, "u1")
        step = np.float32(self.extent * (1.0 / levels))
        codes = np.frombuffer(self.data, kind).reshape(self.rows, self.columns).astype(np.float32)
        with np.errstate(all="ignore"):  # a damaged header may hold any number
            return np.float32(self.low) + codes * step

    def _by_quartiles(self) -> NDArray[np.float32]:
        heads = np.frombuffer(self.data, "<u2", 4 * self.columns).reshape(self.columns, 4, 1)
        codes = np.frombuffer(self.data, "u1", offset=8 * self.columns).reshape(self.columns, self.rows)
        code = codes.astype(np.float32)
        with np.errstate(all="ignore"):
            p0, p25, p75, p100 = _quartile_values(heads, self.low, self.extent).transpose(1, 0, 2)
            low = p0 + ((p25 - p0) * code).astype(np.float64) * (1 / 64)
            middle = p25 + ((p75 - p25) * (code - 64)).astype(np.float64) * (1 / 128)
            high = p75 + ((p100 - p75) * (code - 192)).astype(np.float64) * (1 / 63)
            values = np.where(codes <= 64, low, np.where(codes <= 192, middle, high))
            return np.ascontiguousarray(values.T.astype(np.float32))


def compressed_size(token: Token, rows: int, columns: int) -> int:
    """Bytes behind the header of a compressed matrix."""
    if token == "CM":
        return columns * (8 + rows)
    return rows * columns * (2 if token == "CM2" else 1)


def compress(values: Floats, token: Token | None = None) -> CompressedMatrix:
    """``values`` [rows, columns] compressed as Kaldi does it: ``CM``, or ``CM2`` where there are at most 8 rows.

    Raises ValueError for values that are not finite, which no compressed matrix can hold.
    """
    values = np.asarray(values, np.float32)
    rows, columns = values.shape
    if rows == 0:
        return CompressedMatrix("CM", 0.0, 0.0, 0, 0, b"")
    if not np.isfinite(values).all():
        raise ValueError("a matrix with NaN or infinite values cannot be compressed")
    token = token or ("CM" if rows > 8 else "CM2")
    low, high = values.min(), values.max()
    if low == high:
        high = np.float32(low + (1.0 + abs(float(low))))
    extent = np.float32(high - low)
    if token == "CM":
        data = _quartile_bytes(values, low, extent)
    elif token == "CM2":
        data = _codes(values, low, extent, 65535).astype("<u2").tobytes()
    else:
        data = _codes(values, low, extent, 255).astype("u1").tobytes()
    return CompressedMatrix(token, float(low), float(extent), rows, columns, data)


def _codes(values: Floats, low: np.float32, extent: np.float32, levels: int) -> NDArray[np.int64]:
    share = ((values - low) / extent).clip(0, 1)
    return ((share * np.float32(levels)).astype(np.float64) + 0.499).astype(np.int64)


def _quartile_values(heads: NDArray[Any], low: float, extent: float) -> NDArray[np.float32]:
    unit = np.float32(np.float32(extent) * np.float32(1.52590218966964e-05))
    return np.float32(low) + unit * heads.astype(np.float32)


def _quartile_bytes(values: Floats, low: np.float32, extent: np.float32) -> bytes:
    rows, columns = values.shape
    sorted_values = np.sort(values, axis=0)
    at = (0, rows // 4, 3 * (rows // 4), rows - 1) if rows >= 5 else (0, 1, 2, 3)
    heads = np.zeros((4, columns), np.int64)
    for i, row in enumerate(at):  # each quartile is above the one before, so that no division is by zero
        code = _codes(sorted_values[row], low, extent, 65535) if row < rows else heads[i]
        heads[i] = np.minimum(code if i == 0 else np.maximum(code, heads[i - 1] + 1), _MOST[i])
    p0, p25, p75, p100 = _quartile_values(heads, float(low), float(extent))
    parts = ((p0, p25, 0, 64), (p25, p75, 64, 192), (p75, p100, 192, 255))
    coded = [
        _rounded((values - start) / (end - start) * np.float32(last - first)).clip(0, last - first) + first
        for start, end, first, last in parts
    ]
    codes = np.where(values < p25, coded[0], np.where(values < p75, coded[1], coded[2]))
    return heads.T.astype("<u2").tobytes() + codes.T.astype("u1").tobytes()


def _rounded(values: Floats) -> NDArray[np.int64]:
    return (values.astype(np.float64) + 0.5).astype(np.int64)


def unpack_symmetric(packed: Floats) -> Floats:
    """The symmetric matrix [n, n] whose lower triangle ``packed`` is, row by row: n (n + 1) / 2 values."""
    n = int((np.sqrt(8 * packed.size + 1) - 1) / 2)
    full = np.zeros((n, n), packed.dtype)
    rows, columns = np.tril_indices(n)
    full[rows, columns] = packed
    full[columns, rows] = packed
    return full


def pack_symmetric(full: Floats) -> Floats:
    """The lower triangle of ``full`` [n, n], row by row."""
    packed: Floats = full[np.tril_indices(len(full))]
    return packed
