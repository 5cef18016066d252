"""Grammars G: which strings of words may be said, and at what cost."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from quantasr.errors import KaldiFileError, ModelLoadError
from quantasr.kaldi.compile.arrays import FstBuilder
from quantasr.kaldi.fst import Fst, SymbolTable

History = tuple[int, ...]


def word_table(words: Iterable[str]) -> SymbolTable:
    """``words.txt`` as Kaldi's recipes order it: <eps>, the words, #0, <s>, </s>."""
    special = ("<eps>", "#0", "<s>", "</s>")
    names = ["<eps>", *sorted(set(words) - set(special)), *special[1:]]
    return SymbolTable.of((name, i) for i, name in enumerate(names))


def read_phrases(path: str | Path) -> tuple[str, ...]:
    """The phrases of a text file, one a line, or of a ``.json`` file, which is a list of them as Vosk takes it.

    Empty lines are left out. Raises KaldiFileError.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KaldiFileError(f"{path}: cannot be read as text: {error}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise KaldiFileError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise KaldiFileError(f'{path}: must be a list of phrases, such as ["one two", "three"]')
    return tuple(line for line in map(str.strip, lines) if line)


def word_loop(words: Sequence[str], table: SymbolTable) -> Fst:
    """Any string of ``words``, each as likely as the end: every word and the end cost log(words + 1)."""
    ids = sorted({_id(word, table) for word in words})
    if not ids:
        raise ModelLoadError("the list of words is empty: give at least one word")
    cost = math.log(len(ids) + 1)
    builder = FstBuilder()
    state = builder.state()
    for label in ids:
        builder.arc(state, label, label, cost, state)
    builder.end(state, cost)
    return builder.fst()


def sentences(lines: Sequence[str], table: SymbolTable) -> Fst:
    """One of ``lines``, each as likely as it is frequent among them."""
    counts = Counter(tuple(_id(word, table) for word in line.split()) for line in lines)
    del counts[()]
    if not counts:
        raise ModelLoadError("the grammar is empty: give at least one line with words")
    # A tree of beginnings, so that the first words of many sentences are shared.
    total: Counter[History] = Counter()
    for sentence, count in counts.items():
        for n in range(len(sentence) + 1):
            total[sentence[:n]] += count
    builder = FstBuilder()
    states = {beginning: builder.state() for beginning in sorted(total)}
    for beginning, state in states.items():
        if beginning:
            cost = math.log(total[beginning[:-1]] / total[beginning])
            builder.arc(states[beginning[:-1]], beginning[-1], beginning[-1], cost, state)
        if beginning in counts:
            builder.end(state, math.log(total[beginning] / counts[beginning]))
    return builder.fst()


def grammar_fst(phrases: Sequence[str], table: SymbolTable, *, backoff: int = 0, discount: float = 0.5) -> Fst:
    """The G of a run-time grammar as Vosk's ``Recognizer(model, rate, grammar)`` makes it of its phrases.

    A bigram over the phrases: after each word, ``discount`` of the probability goes to the words (or the end) seen
    behind it, the rest, by an arc with the input label ``backoff``, to the state of all words. So words of a phrase are
    likely in its order, and possible in any. Words that are not in ``table`` (:func:`unknown_words`) are left out, as
    Vosk leaves them out; ModelLoadError if nothing is left. "[unk]" is a word like others.
    """
    counts: dict[History, Counter[int]] = defaultdict(Counter)
    for phrase in phrases:
        ids = [table.ids[word] for word in phrase.split() if word in table.ids]
        for before, label in zip([(), *((i,) for i in ids)], [*ids, 0], strict=True):
            counts[before][label] += 1
    if not any(set(seen) - {0} for seen in counts.values()):
        raise ModelLoadError("the grammar has no word that the model knows: check its spelling")
    everything: Counter[int] = Counter()
    for seen in counts.values():
        everything.update(seen)
    # Vosk's state for the beginning of a phrase is the state of all words.
    counts[()] = everything
    builder = FstBuilder()
    states = {history: builder.state() for history in sorted(counts)}
    for history, state in states.items():
        seen, total = counts[history], sum(counts[history].values())
        if history:
            builder.arc(state, backoff, 0, -math.log(1 - discount), states[()])
        for label, count in sorted(seen.items()):
            cost = -math.log(count * discount / total)
            if label:
                builder.arc(state, label, label, cost, states[(label,)])
            else:
                builder.end(state, cost)
    return builder.fst(states[()])


def unknown_words(phrases: Iterable[str], table: SymbolTable) -> tuple[str, ...]:
    """The words of ``phrases`` that are not in ``table``, each once, in their order."""
    return tuple(dict.fromkeys(word for phrase in phrases for word in phrase.split() if word not in table.ids))


def _id(word: str, table: SymbolTable) -> int:
    if word not in table.ids or word in ("<eps>", "#0", "<s>", "</s>"):
        raise ModelLoadError(f"'{word}' has no pronunciation: add it to the lexicon, or leave it out of the grammar")
    return table.ids[word]
