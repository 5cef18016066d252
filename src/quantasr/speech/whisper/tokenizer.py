"""From Whisper's token ids to text: byte-level byte-pair encoding (Radford et al., 2019), read backwards."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from quantasr.errors import ArtifactError

UNSPACED = frozenset(("zh", "ja", "th", "lo", "my", "yue"))
"""Languages written without spaces: each character counts as a word."""

_LOST = "\ufffd"
_PREPENDED = "\"'“¿([{-"
_APPENDED = "\"'.。,，!！?？:：”)]}、"


def _alphabet() -> dict[str, int]:
    """GPT-2's printable character of each byte -> the byte."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


_BYTES = _alphabet()


class WordTokens(NamedTuple):
    """A word as it is written, with the space before it, and which of the tokens are in it: ``start`` up to ``end``."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class WhisperTokenizer:
    """Whisper's vocabulary: ``tokens[i]`` is token ``i`` in GPT-2's alphabet of bytes.

    From ``first_special`` on (``<|endoftext|>``) they are marks and times, and no text; they need not be among
    ``tokens``.
    """

    kind: ClassVar[str] = "byte_level"

    tokens: tuple[str, ...]
    first_special: int

    def __post_init__(self) -> None:
        if not 0 < self.first_special <= len(self.tokens):
            raise ArtifactError(
                f"tokenizer: first_special is {self.first_special}, with {len(self.tokens)} tokens of text and marks"
            )
        for i, token in enumerate(self.tokens[: self.first_special]):
            if not all(character in _BYTES for character in token):
                raise ArtifactError(f"tokenizer: token {i} is {token!r}, which is not in GPT-2's alphabet of bytes")

    def __len__(self) -> int:
        return len(self.tokens)

    def token(self, i: int) -> str:
        """Token ``i`` as the vocabulary writes it."""
        return self.tokens[i] if 0 <= i < len(self.tokens) else f"<|{i}|>"

    def spelt(self, ids: Iterable[int]) -> bytes:
        """The bytes of all ids that are text."""
        texts = (self.tokens[i] for i in ids if 0 <= i < self.first_special)
        return bytes(_BYTES[character] for text in texts for character in text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text, as it is written, with the space that most begin with; what is no UTF-8 becomes a mark."""
        return self.spelt(ids).decode("utf-8", "replace")

    def words(self, ids: Sequence[int], language: str | None = None) -> list[WordTokens]:
        """Words of ids that are all text, with the punctuation that belongs to them, as OpenAI's Whisper parts them."""
        parts = self._characters(ids) if language in UNSPACED else self._spaced(ids)
        return _with_punctuation(parts)

    def _characters(self, ids: Sequence[int]) -> list[WordTokens]:
        """Parted wherever the bytes are whole characters."""
        whole, done = self.decode(ids), 0
        found: list[WordTokens] = []
        start = 0
        for end in range(1, len(ids) + 1):
            text = self.decode(ids[start:end])
            lost = text.find(_LOST)
            # A mark that the whole text has there too is no half of a character.
            if lost < 0 or done + lost >= len(whole) or whole[done + lost] == _LOST:
                found.append(WordTokens(text, start, end))
                start, done = end, done + len(text)
        if start < len(ids):
            found.append(WordTokens(self.decode(ids[start:]), start, len(ids)))
        return found

    def _spaced(self, ids: Sequence[int]) -> list[WordTokens]:
        """Parted at spaces and punctuation."""
        found: list[WordTokens] = []
        for part in self._characters(ids):
            if not found or part.text.startswith(" ") or part.text.strip() in string.punctuation:
                found.append(part)
            else:
                found[-1] = WordTokens(found[-1].text + part.text, found[-1].start, part.end)
        return found

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {"kind": self.kind, "tokens": list(self.tokens), "first_special": self.first_special}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> WhisperTokenizer:
        """The tokenizer that :meth:`to_dict` described; raises ArtifactError when it is not one."""
        try:
            parameters = {name: value for name, value in row.items() if name != "kind"}
            return cls(**{**parameters, "tokens": tuple(row["tokens"])})
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"tokenizer: {error}; was the artifact written by a newer version?") from error


def _with_punctuation(words: list[WordTokens]) -> list[WordTokens]:
    """Opening marks go to the word behind them, closing ones to the word before."""
    opened: list[WordTokens] = []
    for word in reversed(words):
        if opened and word.text.startswith(" ") and word.text.strip() in _PREPENDED:
            opened[-1] = WordTokens(word.text + opened[-1].text, word.start, opened[-1].end)
        else:
            opened.append(word)
    closed: list[WordTokens] = []
    for word in reversed(opened):
        if closed and not closed[-1].text.endswith(" ") and word.text in _APPENDED:
            closed[-1] = WordTokens(closed[-1].text + word.text, closed[-1].start, word.end)
        else:
            closed.append(word)
    return closed
