"""N-gram language models in ARPA's text form, as grammars."""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from quantasr.errors import KaldiFileError
from quantasr.kaldi.compile.arrays import FstBuilder
from quantasr.kaldi.compile.lexicon import BACKOFF
from quantasr.kaldi.fst import Fst, SymbolTable

BEGIN, END = "<s>", "</s>"
_COUNT = re.compile(r"ngram\s+([0-9]{1,2})\s*=\s*([0-9]{1,12})")
_SECTION = re.compile(r"\\([0-9]{1,2})-grams:")
LN10 = math.log(10)


@dataclass(frozen=True)
class Ngram:
    """Words, the natural logarithm of the probability of the last one, and that of backing off from them all."""

    words: tuple[str, ...]
    log_probability: float
    log_backoff: float


def read_arpa(path: str | Path) -> Iterator[Ngram]:
    """The n-grams of an ARPA file (``.gz`` too), as they stand. Raises KaldiFileError, with the line."""
    path = Path(path)
    try:
        file: IO[str]
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            yield from _ngrams(file, path)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise KaldiFileError(f"{path}: cannot be read as an ARPA file: {error}") from None


def _ngrams(file: IO[str], path: Path) -> Iterator[Ngram]:
    counts: dict[int, int] = {}
    order, seen, ended = 0, 0, False

    def fail(problem: str) -> KaldiFileError:
        return KaldiFileError(f"{path}, line {line_number}: {problem}")

    line_number = 0
    for line in file:
        line_number += 1
        text = line.strip()
        if not text or (text == "\\data\\" and not order):
            continue
        section = _SECTION.fullmatch(text)
        if section or text == "\\end\\":
            if not counts:
                raise fail("an ARPA file begins with \\data\\ and the numbers of n-grams")
            if seen != counts.get(order, 0):
                raise fail(f"{counts.get(order, 0)} {order}-grams were announced, there are {seen}")
            if not section:
                ended = True
                break
            order, seen = int(section[1]), 0
        elif not order:
            found = _COUNT.fullmatch(text)
            if found:
                counts[int(found[1])] = int(found[2])
        else:
            parts = text.split()
            if len(parts) not in (order + 1, order + 2):
                raise fail(f"a {order}-gram is a number, {order} words and perhaps a number, not '{text[:60]}'")
            try:
                numbers = [float(parts[0]), *(float(x) for x in parts[order + 1 :])]
            except ValueError:
                raise fail(f"'{text[:60]}' has no number where one must be") from None
            if any(math.isnan(x) or x == math.inf for x in numbers) or numbers[0] > 1e-3:
                raise fail(f"{numbers[0]:g} is no logarithm of a probability")
            seen += 1
            yield Ngram(tuple(parts[1 : order + 1]), numbers[0] * LN10, (numbers[1] if numbers[1:] else 0.0) * LN10)
    if not ended:
        raise fail("ends without \\end\\; is the file complete?")


def arpa_fst(path: str | Path, table: SymbolTable) -> tuple[Fst, int]:
    """The G of an ARPA file, and how many n-grams were left out because ``table`` lacks one of their words.

    As Kaldi's arpa2fst makes it: a state for each history; arcs of backing off have #0 on their input side; <s> and
    </s> are the start and the end. Raises KaldiFileError, with the line.
    """
    table_backoff = table.ids[BACKOFF]
    builder = FstBuilder()
    states: dict[tuple[str, ...], int] = {}
    left_out = 0
    arcs = []
    for ngram in read_arpa(path):
        *before, word = ngram.words
        if word == BEGIN and before:
            continue  # no sentence goes on into another
        if any(w not in table.ids and w not in (BEGIN, END) for w in ngram.words):
            left_out += 1
            continue
        arcs.append(ngram)
    # Only what something follows, or backs off from, needs a state.
    for ngram in arcs:
        states.setdefault(ngram.words[:-1], -1)
        if ngram.log_backoff or ngram.words == (BEGIN,):
            states.setdefault(ngram.words, -1)
    states = {history: builder.state() for history in states if not history or history[-1] != END}
    if not arcs:
        raise KaldiFileError(f"{path}: none of its n-grams has only words of the lexicon: is it of another language?")
    costs = {ngram.words: -ngram.log_backoff for ngram in arcs}

    def longest(history: tuple[str, ...]) -> int:
        while history not in states:
            history = history[1:]
        return states[history]

    for ngram in arcs:
        *before, word = ngram.words
        start = states[tuple(before)]
        if word == END:
            builder.end(start, -ngram.log_probability)
        elif word != BEGIN:
            label = table.ids[word]
            builder.arc(start, label, label, -ngram.log_probability, longest(ngram.words))
    for history, state in states.items():
        if history:
            builder.arc(state, table_backoff, 0, costs.get(history, 0.0), longest(history[1:]))
    return builder.fst(longest((BEGIN,))), left_out
