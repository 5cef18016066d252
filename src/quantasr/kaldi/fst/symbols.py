"""Symbol tables: which word an integer stands for, in OpenFst's binary form and as text (``word 12``)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from quantasr.errors import KaldiFileError
from quantasr.kaldi.fst.source import Source

MAGIC = 2125658996
MAX_ID = 1 << 26


@dataclass(frozen=True)
class SymbolTable:
    """Words by their integers; ``words[i]`` is None where no word has the integer ``i``."""

    words: tuple[str | None, ...]

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, int]], name: str = "symbol table") -> SymbolTable:
        """From pairs of word and integer. Raises KaldiFileError for negative or absurdly large integers."""
        known = list(pairs)
        size = 1 + max((i for _, i in known), default=-1)
        if any(i < 0 for _, i in known) or size > max(1 << 20, 64 * len(known)) or size > MAX_ID:
            raise KaldiFileError(f"{name}: integers of words must run from 0 without large gaps")
        words: list[str | None] = [None] * size
        for word, i in known:
            words[i] = word
        return cls(tuple(words))

    @cached_property
    def ids(self) -> dict[str, int]:
        """The integer of each word."""
        return {word: i for i, word in enumerate(self.words) if word is not None}

    def __len__(self) -> int:
        return len(self.words)


def read_symbols(source: Source) -> SymbolTable:
    """The binary table at the position of ``source``."""
    at = source.at
    if source.int32() != MAGIC:
        raise source.error("a symbol table must be here and is not", at)
    source.text()
    source.int64()
    at, count = source.at, source.int64()
    if not 0 <= count <= source.left // 12:
        raise source.error(f"a symbol table of {count} words cannot be here", at)
    pairs = []
    data, here = source.data, source.at
    try:
        for _ in range(count):
            (size,) = struct.unpack_from("<i", data, here)
            here += 4
            if not 0 <= size <= len(data) - here - 8:
                raise source.error(f"a word of {size} bytes cannot be here", here - 4)
            word = data[here : here + size].decode("utf-8", "replace")
            here += size
            pairs.append((word, struct.unpack_from("<q", data, here)[0]))
            here += 8
    except struct.error:
        raise source.error("the symbol table ends early; is the file complete?", here) from None
    source.at = here
    return SymbolTable.of(pairs, source.path)


def write_symbols(table: SymbolTable, name: str) -> bytes:
    """``table`` in OpenFst's binary form."""
    pairs = [(word.encode(), i) for i, word in enumerate(table.words) if word is not None]
    title = name.encode()
    head = struct.pack("<ii", MAGIC, len(title)) + title + struct.pack("<qq", len(table.words), len(pairs))
    return head + b"".join(struct.pack("<i", len(word)) + word + struct.pack("<q", i) for word, i in pairs)


def read_words(path: str | Path) -> SymbolTable:
    """The table of a text file such as ``words.txt``: a word and its integer in each line."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KaldiFileError(f"{path}: cannot be read as a table of words: {error}") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        parts = line.split()
        if not parts:
            continue
        if len(parts) != 2 or not parts[1].isdecimal() or len(parts[1]) > 18:
            raise KaldiFileError(f"{path}, line {number}: expected a word and an integer, found {line[:60]!r}")
        pairs.append((parts[0], int(parts[1])))
    return SymbolTable.of(pairs, str(path))
