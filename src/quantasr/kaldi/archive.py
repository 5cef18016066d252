"""Kaldi's archives of arrays by key, ``.ark`` and ``.scp`` (https://kaldi-asr.org/doc/io.html)."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import KaldiFileError
from quantasr.kaldi.matrices import CompressedMatrix, Token, compress
from quantasr.kaldi.stream import Reader, short
from quantasr.kaldi.writer import Writer, writing

Kind: TypeAlias = Literal["matrix", "vector", "ints"]
Put: TypeAlias = Callable[[str, Any], None]

_SPECIFIER = re.compile(r"(ark|scp)((?:,[a-z]+)*):(.*)", re.DOTALL)
_PLACE = re.compile(r"(?P<file>.+?)(?::(?P<offset>[0-9]{1,18}))?(?:\[(?P<part>[0-9:,]*)\])?")
_MOST_BYTES = 4 << 30
_RANGE = re.compile(r"([0-9]{1,9}):([0-9]{1,9})")


@dataclass(frozen=True)
class _Place:
    """Where a value stands: a file, the byte behind its key, which rows and columns of it, and who says so."""

    path: Path
    offset: int
    part: str | None
    source: str


class Archive(Mapping[str, Any]):
    """The arrays of an archive by key, in the order of the file; each is read when it is asked for.

    ``where`` is a path, or as Kaldi writes it ``ark:PATH`` or ``scp:PATH``; without these, a name that ends in ``.scp``
    is a list of places. ``kind`` says what is in it: "matrix" (compressed ones too), "vector", or "ints" (alignments).
    Paths in a list are relative to its folder or to the working directory; commands in it are never run.
    A file that ends in ``.gz`` is unpacked in memory.

    Raises KaldiFileError, here or when a value is read, that names the file and the byte or line.
    """

    def __init__(self, where: str | Path, kind: Kind = "matrix") -> None:
        if kind not in get_args(Kind):
            raise ValueError(f"an archive of '{kind}': it must be one of {', '.join(get_args(Kind))}")
        self._parse = _PARSERS[kind]
        self._open: tuple[Path, Reader] | None = None
        found = _SPECIFIER.fullmatch(str(where))
        self.path = Path(found[3] if found else where)
        _refuse_commands(str(self.path), str(where))
        listed = found[1] == "scp" if found else self.path.suffix == ".scp"
        self._places = _read_list(self.path) if listed else self._scan()

    def __getitem__(self, key: str) -> Any:
        place = self._places[key]
        if self._open is None or self._open[0] != place.path:
            self._open = place.path, _whole(place.path)
        value = self._parse(self._open[1].at(place.offset))
        return value if place.part is None else _part(value, place)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def _scan(self) -> dict[str, _Place]:
        places: dict[str, _Place] = {}
        for key, reader in _entries(self.path):
            if key in places:
                reader.fail(f"the key '{short(key)}' stands twice")
            places[key] = _Place(self.path, reader.offset - 2 * reader.binary, None, str(self.path))
            self._parse(reader)
        return places


def read_in_order(path: str | Path, kind: Kind = "matrix") -> Iterator[tuple[str, Any]]:
    """Keys and arrays of an ``.ark``, one after the other, each looked at once. Raises KaldiFileError."""
    for key, reader in _entries(Path(path)):
        yield key, _PARSERS[kind](reader)


def read_table(path: str | Path) -> dict[str, str]:
    """A text file of a key and the rest of its line, such as ``utt2spk`` or ``spk2utt``. Raises KaldiFileError."""
    return {key: rest for key, (rest, _) in _lines(Path(path)).items()}


@contextmanager
def archive_writer(
    ark: str | Path, scp: str | Path | None = None, *, binary: bool = True, compression: Token | None = None
) -> Iterator[Put]:
    """Gives a function (key, array) that adds to the archive ``ark``, and to the list of places ``scp``.

    Matrices and vectors of float32 or float64 and vectors of integers can be written; with ``compression`` matrices
    become a byte (CM, CM3) or two (CM2) for each number. Both files are there only when all is written.
    Raises KaldiFileError when they cannot be, and ValueError for keys with spaces and arrays of other types.
    """
    with ExitStack() as stack:
        writer = stack.enter_context(writing(ark, binary=binary, header=False))
        places = stack.enter_context(writing(scp, binary=False)) if scp is not None else None

        def put(key: str, value: Any) -> None:
            if not key or key.split() != [key]:
                raise ValueError(f"'{key}' is no key of an archive: it needs a letter and no space")
            writer.write_token(key)
            if places is not None:
                places.write_text(f"{key} {ark}:{writer.offset}\n")
            if compression is not None and np.ndim(value) == 2:
                value = compress(value, compression)
            _write(writer, value)

        yield put


def _write(writer: Writer, value: CompressedMatrix | NDArray[Any]) -> None:
    writer.write_header()
    if isinstance(value, CompressedMatrix):
        writer.write_compressed(value)
        return
    if value.dtype.kind == "f" and value.dtype not in (np.float32, np.float64):
        value = value.astype(np.float32)
    match value.dtype.kind, value.ndim:
        case "f", 2:
            writer.write_matrix(value)
        case "f", 1:
            writer.write_vector(value)
        case "i" | "u", 1:
            writer.write_int_row(value)
        case _:
            raise ValueError(f"an array of {value.dtype} with {value.ndim} axes cannot be in an archive")


_PARSERS: dict[str, Callable[[Reader], Any]] = {
    "matrix": Reader.read_matrix,
    "vector": Reader.read_vector,
    "ints": Reader.read_int_row,
}


def _whole(path: Path) -> Reader:
    if path.suffix != ".gz":
        return Reader.open(path, mapped=True, binary=False)
    try:
        with gzip.open(path) as file:
            data = file.read(_MOST_BYTES)
            if file.read(1):
                raise KaldiFileError(
                    f"{path}: has more than {_MOST_BYTES >> 30} GiB in it: unpack it, or cut it in parts"
                )
        return Reader(data, str(path), binary=False)
    except (OSError, EOFError, zlib.error) as error:
        raise KaldiFileError(f"{path}: cannot be unpacked ({error}): is it complete?") from error


def _entries(path: Path) -> Iterator[tuple[str, Reader]]:
    """Each key, and a reader behind it that must have read the value when the next key is asked for."""
    whole = _whole(path)
    while not whole.at_end():
        if whole.peek_byte() == 0:
            whole.fail("a key was expected: this is no archive, or it holds something else")
        key = whole.read_token()
        reader = whole.at(whole.offset)
        yield key, reader
        whole.offset = reader.offset


def _lines(path: Path) -> dict[str, tuple[str, str]]:
    """First word of each line -> (the rest, 'file:line')."""
    table: dict[str, tuple[str, str]] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise KaldiFileError(f"{path}: cannot be read ({error.strerror}): check the path") from error
    except UnicodeDecodeError as error:
        raise KaldiFileError(f"{path}: byte {error.start}: is not UTF-8 text") from error
    for number, line in enumerate(text.split("\n"), 1):
        key, *rest = line.split(maxsplit=1)[:2] or [""]
        if not key:
            continue
        if key in table:
            raise KaldiFileError(f"{path}:{number}: '{short(key)}' is in {table[key][1]} already")
        table[key] = (rest[0].strip() if rest else "", f"{path}:{number}")
    return table


def _read_list(path: Path) -> dict[str, _Place]:
    places = {}
    for key, (entry, source) in _lines(path).items():
        _refuse_commands(entry, source)
        found = _PLACE.fullmatch(entry)
        if found is None:
            raise KaldiFileError(f"{source}: names no file")
        places[key] = _Place(_find(path.parent, found["file"]), int(found["offset"] or 0), found["part"], source)
    return places


def _find(folder: Path, name: str) -> Path:
    """The file ``name`` in ``folder`` or in the working directory; where there is none, reading it will say so."""
    try:
        return next((path for path in (folder / name, Path(name)) if path.is_file()), folder / name)
    except (OSError, ValueError):  # a name that no file can have
        return folder / name


def _refuse_commands(entry: str, source: str) -> None:
    entry = entry.strip()
    if entry == "-" or entry.startswith("|") or entry.endswith("|"):
        raise KaldiFileError(
            f"{source}: '{short(entry)}' is a command, and none is run: store its output as a file, with copy-feats"
        )


def _part(value: NDArray[Any], place: _Place) -> NDArray[Any]:
    """Rows, or rows and columns, ``[0:9,3:5]``; both ends are within. Kaldi lets the last row be up to 3 too far."""
    assert place.part is not None
    spans = place.part.split(",")
    if len(spans) > value.ndim:
        raise KaldiFileError(f"{place.source}: [{short(place.part)}] has more parts than the array has axes")
    for axis, span in enumerate(spans):
        if span == ":":
            continue
        found = _RANGE.fullmatch(span)
        size, slack = value.shape[axis], 3 if axis == 0 else 0
        if not found or not int(found[1]) <= int(found[2]) < size + slack or int(found[1]) >= size:
            raise KaldiFileError(f"{place.source}: [{short(place.part)}] is not within an array of {value.shape}")
        value = value[(slice(None),) * axis + (slice(int(found[1]), int(found[2]) + 1),)]
    return value
