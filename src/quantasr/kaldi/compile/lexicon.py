"""Pronunciations, and the transducer L from phones to words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantasr.errors import KaldiFileError, ModelLoadError
from quantasr.kaldi.compile.arrays import FstBuilder
from quantasr.kaldi.fst import Fst, SymbolTable
from quantasr.kaldi.stream import short

BACKOFF = "#0"  # the symbol of a grammar's backoff arcs, which passes through L


@dataclass(frozen=True)
class Pronunciation:
    """A word, its phones, and how likely it is that the word is said so."""

    word: str
    phones: tuple[str, ...]
    probability: float = 1.0


def read_lexicon(path: str | Path) -> tuple[Pronunciation, ...]:
    """Read ``lexicon.txt`` (``word phone ...``) or ``lexiconp.txt`` (``word probability phone ...``), by the name."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KaldiFileError(f"{path}: cannot be read as a lexicon: {error}") from None
    weighted = path.name.startswith("lexiconp")
    found: dict[Pronunciation, None] = {}
    for number, line in enumerate(lines, 1):
        parts = line.split()
        if not parts:
            continue
        word, rest, probability = parts[0], parts[1:], 1.0
        if weighted and rest:
            try:
                probability = float(rest.pop(0))
            except ValueError:
                probability = math.nan
            if not 0 < probability <= 1:
                raise KaldiFileError(
                    f"{path}, line {number}: '{short(parts[1])}' is no probability: write word, number, phones"
                )
        if not rest:
            raise KaldiFileError(f"{path}, line {number}: '{short(word)}' has no phones: write word, then its phones")
        found[Pronunciation(word, tuple(rest), probability)] = None
    if not found:
        raise KaldiFileError(f"{path}: no pronunciation in it: one word and its phones a line")
    return tuple(found)


def in_phones(lexicon: Sequence[Pronunciation], phones: SymbolTable) -> tuple[Pronunciation, ...]:
    """The lexicon in the model's phones: with the position in the word added (``AH_I``) where the model wants it.

    Raises ModelLoadError for a phone that the model does not know.
    """
    return tuple(
        Pronunciation(
            entry.word, tuple(_known(entry, at, phones) for at in range(len(entry.phones))), entry.probability
        )
        for entry in lexicon
    )


def _known(entry: Pronunciation, at: int, phones: SymbolTable) -> str:
    phone, last = entry.phones[at], len(entry.phones) - 1
    mark = "S" if last == 0 else "B" if at == 0 else "E" if at == last else "I"
    for name in (phone, f"{phone}_{mark}"):
        if name in phones.ids:
            return name
    raise ModelLoadError(
        f"'{entry.word}': phone '{phone}' is none of the model's (nor is {phone}_{mark}): check lexicon and phones.txt"
    )


def disambiguated(lexicon: Sequence[Pronunciation]) -> list[tuple[Pronunciation, int]]:
    """Each pronunciation with the number of the symbol (#1, #2, ...) that must end it, 0 for none.

    A symbol is needed where phones are those of another word as well, or how another word begins: else L could not be
    made deterministic.
    """
    same = Counter(entry.phones for entry in lexicon)
    beginnings = {entry.phones[:n] for entry in lexicon for n in range(1, len(entry.phones))}
    used: Counter[tuple[str, ...]] = Counter()
    result = []
    for entry in lexicon:
        number = 0
        if same[entry.phones] > 1 or entry.phones in beginnings:
            used[entry.phones] += 1
            number = used[entry.phones]
        result.append((entry, number))
    return result


@dataclass(frozen=True)
class LexiconFst:
    """L: phones (and disambiguation symbols) in, words out; ``disambiguation``: the numbers of these symbols, #0 first.

    ``phones`` is the model's table with the symbols added.
    """

    fst: Fst
    phones: SymbolTable
    disambiguation: tuple[int, ...]


def lexicon_fst(
    lexicon: Sequence[Pronunciation],
    phones: SymbolTable,
    words: SymbolTable,
    *,
    silence: str | None = "SIL",
    silence_probability: float = 0.5,
) -> LexiconFst:
    """L of a lexicon in the model's phones, with optional ``silence`` at the start and after each word.

    As Kaldi's make_lexicon_fst with disambiguation symbols: the symbol of highest number follows silence.
    """
    entries = disambiguated(lexicon)
    count = 1 + max(number for _, number in entries) + (silence is not None)
    names = [word for word in phones.words if word is not None and not _is_symbol(word)]
    table = [(name, phones.ids[name]) for name in names]
    next_id = 1 + max(i for _, i in table)
    # Symbols that the model's table has already keep their numbers.
    for number in range(count):
        known = phones.ids.get(f"#{number}")
        table.append((f"#{number}", next_id if known is None else known))
        next_id = max(next_id, table[-1][1]) + 1
    full = SymbolTable.of(table, "phones")
    builder = FstBuilder()
    start, loop = builder.state(), builder.state()
    plain, pause = 0.0, 0.0
    if silence is not None:
        if silence not in phones.ids:
            raise ModelLoadError(f"silence '{silence}' is none of the model's phones: name it, or none")
        plain, pause = -math.log(1 - silence_probability), -math.log(silence_probability)
        before, behind = builder.state(), builder.state()
        builder.arc(before, full.ids[silence], 0, 0, behind)
        builder.arc(behind, full.ids[f"#{count - 1}"], 0, 0, loop)
        builder.arc(start, 0, 0, pause, before)
    builder.arc(start, 0, 0, plain, loop)
    builder.end(loop)
    for entry, number in entries:
        labels = [full.ids[phone] for phone in entry.phones] + ([full.ids[f"#{number}"]] if number else [])
        at, olabel, cost = loop, words.ids[entry.word], -math.log(entry.probability)
        for label in labels[:-1]:
            to = builder.state()
            builder.arc(at, label, olabel, cost, to)
            at, olabel, cost = to, 0, 0.0
        builder.arc(at, labels[-1], olabel, cost + plain, loop)
        if silence is not None:
            builder.arc(at, labels[-1], olabel, cost + pause, before)
    builder.arc(loop, full.ids[BACKOFF], words.ids[BACKOFF], 0, loop)
    return LexiconFst(builder.fst(start), full, tuple(full.ids[f"#{n}"] for n in range(count)))


def _is_symbol(word: str) -> bool:
    return word[:1] == "#" and word[1:].isdecimal()
