"""From token ids to text and words, as the model's own processor does it."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

from quantasr.errors import ArtifactError

WORD_START = "\u2581"
"""SentencePiece's mark of a word's start: a low block, not an underscore."""

KINDS = ("characters", "pieces")
"""``characters``: a delimiter token parts words. ``pieces``: a mark inside the tokens starts them."""

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""How SentencePiece names the pieces that stand for one byte of a character that it has no piece for."""

_EACH_BYTE = "quantasr.each_byte"


def _mark_each_byte(error: UnicodeError) -> tuple[str, int]:
    """SentencePiece puts a mark for each byte that is part of no character, and Python one for several."""
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(_EACH_BYTE, _mark_each_byte)

# Joins that the clean-up of transformers' older tokenizers makes, in its order.
_CLEAN_UP = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)


class WordSpan(NamedTuple):
    """A word and its frames, ``start`` included, ``end`` not."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Tokenizer:
    """The vocabulary of a CTC model and the rules that make text of it.

    ``tokens[i]`` is the text of output ``i``; an id past them decodes to ``unk_token``. ``special_ids`` (blank, unk,
    sentence marks) stay in the text unless ``skip_special`` is set, just as ``processor.batch_decode(ids)`` keeps
    them. ``delimiter_text`` is what ``word_delimiter`` becomes in the text. ``lowercase`` and ``clean_up`` are
    transformers' ``do_lower_case`` and ``clean_up_tokenization_spaces``. ``punctuation`` holds the marks that take the
    space before them away, as in NeMo; ``byte_fallback`` makes characters of pieces like ``<0xE2>``.
    """

    tokens: tuple[str, ...]
    blank_id: int
    word_delimiter: str | None = "|"
    special_ids: frozenset[int] = frozenset()
    lowercase: bool = False
    kind: str = "characters"
    unk_token: str = ""
    delimiter_text: str = " "
    clean_up: bool = False
    skip_special: bool = False
    punctuation: str = ""
    byte_fallback: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ArtifactError(f"tokenizer kind {self.kind!r} is unknown; this version has {', '.join(KINDS)}")
        if not 0 <= self.blank_id < len(self.tokens):
            raise ArtifactError(f"tokenizer: blank_id {self.blank_id} is not among its {len(self.tokens)} tokens")
        if len(set(self.tokens)) != len(self.tokens):
            twice = sorted({token for token in self.tokens if self.tokens.count(token) > 1})
            raise ArtifactError(f"tokenizer: tokens must be unique; twice there: {', '.join(map(repr, twice[:5]))}")
        outside = [i for i in self.special_ids if not 0 <= i < len(self.tokens)]
        if outside:
            raise ArtifactError(f"tokenizer: special id {outside[0]} is not among its {len(self.tokens)} tokens")

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def delimiter_ids(self) -> frozenset[int]:
        """Tokens that are nothing but the space between words."""
        if self.kind == "pieces":
            return frozenset(i for i, token in enumerate(self.tokens) if token == WORD_START)
        return frozenset(i for i, token in enumerate(self.tokens) if self._surface(token) == self.delimiter_text)

    @cached_property
    def word_start_ids(self) -> frozenset[int]:
        """Pieces that open a new word; empty for characters."""
        if self.kind != "pieces":
            return frozenset()
        return frozenset(i for i, token in enumerate(self.tokens) if token.startswith(WORD_START))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids that are already collapsed: repeats merged, blanks taken out."""
        text = "".join(self._surface(token) for token, _, _ in self._spans((i, 0, 0) for i in ids)).strip()
        return self._polish(text)

    def words(self, ids: Sequence[int], starts: Sequence[int], ends: Sequence[int]) -> tuple[WordSpan, ...]:
        """Words of collapsed ids whose token ``i`` lasts from frame ``starts[i]`` to ``ends[i]``, end not included."""
        words: list[WordSpan] = []
        text, first, last = "", 0, 0
        for token, start, end in self._spans(zip(ids, starts, ends, strict=True)):
            for part in self._parts(token):
                if part is None:
                    if text:
                        words.append(WordSpan(text, first, last))
                    text = ""
                else:
                    first = first if text else start
                    text, last = text + part, end
        if text:
            words.append(WordSpan(text, first, last))
        if self.punctuation:
            words = self._attach_punctuation(words)
        return tuple(word._replace(text=word.text.lower()) for word in words) if self.lowercase else tuple(words)

    def token(self, i: int) -> str:
        """The token of output ``i``."""
        return self.tokens[i] if 0 <= i < len(self.tokens) else self.unk_token

    def join(self, words: Iterable[str]) -> str:
        """Text of whole words, as :meth:`decode` would write it."""
        between = " " if self.kind == "pieces" else self.delimiter_text
        return self._polish(between.join(words))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        row = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**row, "tokens": list(self.tokens), "special_ids": sorted(self.special_ids)}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer that :meth:`to_dict` described; raises ArtifactError when it is not one."""
        try:
            return cls(**{**row, "tokens": tuple(row["tokens"]), "special_ids": frozenset(row.get("special_ids", ()))})
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"tokenizer: {error}; was the artifact written by a newer version?") from error

    def _spans(self, rows: Iterable[tuple[int, int, int]]) -> Iterator[tuple[str, int, int]]:
        """(id, start, end) -> (token, start, end), without those to skip, and with bytes put together to characters."""
        spelt, first, last = bytearray(), 0, 0
        for i, start, end in rows:
            if self.skip_special and i in self.special_ids and i not in self.delimiter_ids:
                continue
            byte = _BYTE.fullmatch(self.token(i)) if self.byte_fallback else None
            if byte:
                first, last = (first if spelt else start), end
                spelt.append(int(byte[1], 16))
                continue
            if spelt:
                yield spelt.decode("utf-8", _EACH_BYTE), first, last
                spelt.clear()
            yield self.token(i), start, end
        if spelt:
            yield spelt.decode("utf-8", _EACH_BYTE), first, last

    def _attach_punctuation(self, words: list[WordSpan]) -> list[WordSpan]:
        """Words that begin with a punctuation mark belong to the one before, as in the text."""
        attached: list[WordSpan] = []
        for word in words:
            if attached and word.text[0] in self.punctuation:
                before = attached.pop()
                word = WordSpan(before.text + word.text, before.start, word.end)
            attached.append(word)
        return attached

    def _surface(self, token: str) -> str:
        if self.kind == "pieces":
            return token.replace(WORD_START, " ")
        return self.delimiter_text if token == self.word_delimiter else token

    def _parts(self, token: str) -> list[str | None]:
        """The token cut at word boundaries, each boundary a None."""
        if self.kind == "characters":
            surface = self._surface(token)
            return [None if surface == self.delimiter_text else surface]
        parts: list[str | None] = []
        for i, part in enumerate(token.split(WORD_START)):
            parts += ([None] if i else []) + ([part] if part else [])
        return parts

    def _polish(self, text: str) -> str:
        if self.lowercase:
            text = text.lower()
        if self.clean_up:
            for old, new in _CLEAN_UP:
                text = text.replace(old, new)
        if self.punctuation:
            text = re.sub(rf"\s([{re.escape(self.punctuation)}])", r"\1", text)
        return text
