"""Texts as the token ids that a CTC model is trained on: the inverse of the tokenizer's ``decode``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from operator import eq
from typing import Any

from quantasr.errors import MissingExtraError, ModelLoadError
from quantasr.sources.asr_model import CtcModel
from quantasr.speech.tokenizer import WORD_START, Tokenizer

_WORDS_KEPT = 200_000
_NO_TEXT = re.compile("<.+>")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class LabelEncoder:
    """Text to token ids, so that ``tokenizer.decode(encode(text)) == text`` but for case and repeated spaces.

    Letters take the case of the vocabulary where it has only one. Characters become one token each, or the longest
    that fits where a vocabulary has tokens of several characters; a space becomes the word delimiter. Pieces are those
    of the model's own SentencePiece model, if its bytes are given as ``sentencepiece``: unigram or BPE segmentation and
    normalization are then its own. Else each word is cut into the longest piece that fits, from the left, as WordPiece
    does, and into as few pieces as possible where that leads nowhere.
    """

    def __init__(self, tokenizer: Tokenizer, sentencepiece: bytes | None = None) -> None:
        self.tokenizer = tokenizer
        self._pieces = tokenizer.kind == "pieces"
        self._ids = _usable(tokenizer)
        self._longest = max(map(len, self._ids), default=0)
        self._alone = frozenset(token for token in self._ids if len(token) == 1)
        self._bytes = _bytes(tokenizer)
        self._case = _case(tokenizer, self._ids)
        self._delimiter = _delimiter(tokenizer, self._ids)
        self._model: Any = _open(sentencepiece) if sentencepiece is not None and self._pieces else None
        self._word = lru_cache(_WORDS_KEPT)(self._cut_word)

    @classmethod
    def of(cls, model: CtcModel) -> LabelEncoder:
        """With the model's own SentencePiece model, where it is among its files."""
        content = [content for name, content in model.files.items() if name.endswith(".model")]
        return cls(model.tokenizer, content[0] if len(content) == 1 else None)

    def normalize(self, text: str) -> str:
        """``text`` with single spaces, in the case of the vocabulary."""
        return self._in_case(" ".join(text.split()))

    def encode(self, text: str) -> list[int]:
        """Token ids; what the vocabulary lacks is left out, and :meth:`unknown` names it."""
        text = self.normalize(text)
        if self._model is not None:
            lost = {int(self._model.unk_id()), *self.tokenizer.special_ids}
            return [i for i in self._model.encode(text) if i not in lost]
        if self._pieces:
            return [i for word in text.split(" ") if word for i in self._word(word)[0]]
        ids: list[int] = []
        for n, word in enumerate(text.split(" ")):
            ids += [self._delimiter] if n and self._delimiter is not None else []
            ids += self._word(word)[0]
        return ids

    def unknown(self, text: str) -> Counter[str]:
        """The characters of ``text`` that no token stands for, as they are written there, with how often they come.

        A space is one of them where a vocabulary of characters has no word delimiter.
        """
        strange = set(self._in_case(text)) - self._alone
        if (self._pieces or self._delimiter is not None) and all(map(str.isspace, strange)):
            return Counter()
        if self._model is not None:
            return self._unknown_pieces(" ".join(text.split()))
        lost: Counter[str] = Counter()
        words = text.split()
        for word in words:
            lost.update(self._lost(word))
        if not self._pieces and self._delimiter is None and len(words) > 1:
            lost[" "] += len(words) - 1
        return lost

    def _lost(self, word: str) -> list[str]:
        cased = self._in_case(word)
        # A change of case may make two characters of one; then they are named as they became.
        named = word if len(word) == len(cased) else cased
        return [named[at] for at in self._word(cased)[1]]

    def _unknown_pieces(self, text: str) -> Counter[str]:
        unknown = int(self._model.unk_id())
        if unknown not in self._model.encode(self._in_case(text)):
            return Counter()
        return Counter(c for c in text if c != " " and unknown in self._model.encode(self._in_case(c)))

    def _in_case(self, text: str) -> str:
        return text.upper() if self._case == "upper" else text.lower() if self._case == "lower" else text

    def _cut_word(self, word: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids of one word, and the places of characters that had to be left out."""
        mark = WORD_START if self._pieces else ""
        greedy = self._greedy(mark + word)
        if greedy is not None:
            return tuple(greedy), ()
        ids: list[int] = []
        lost = []
        for at, piece in self._fewest(mark + word):
            i = self._ids.get(piece)
            spelt = [i] if i is not None else [self._bytes.get(byte) for byte in piece.encode()]
            if None not in spelt:
                ids += [i for i in spelt if i is not None]
            elif piece != WORD_START:
                lost.append(at - len(mark))
        return tuple(ids), tuple(lost)

    def _greedy(self, text: str) -> list[int] | None:
        ids, at = [], 0
        while at < len(text):
            for end in range(min(len(text), at + self._longest), at, -1):
                i = self._ids.get(text[at:end])
                if i is not None:
                    break
            else:
                return None
            ids.append(i)
            at = end
        return ids

    def _fewest(self, text: str) -> list[tuple[int, str]]:
        """Pieces and where they begin: as few characters left out as possible, and as few pieces."""
        # Of each place, from the end: what is to come costs (characters left out, pieces), where its piece ends.
        best: list[tuple[tuple[int, int], int]] = [((0, 0), len(text))]
        for at in range(len(text) - 1, -1, -1):
            (lost, count), _ = best[len(text) - at - 1]
            options = [((lost + (text[at] not in self._ids), count + 1), at + 1)]
            for end in range(at + 2, min(len(text), at + self._longest) + 1):
                if text[at:end] in self._ids:
                    (lost, count), _ = best[len(text) - end]
                    options.append(((lost, count + 1), end))
            best.append(min(options, key=lambda option: (option[0], -option[1])))
        pieces, at = [], 0
        while at < len(text):
            end = best[len(text) - at][1]
            pieces.append((at, text[at:end]))
            at = end
        return pieces


def frames_needed(ids: Sequence[int]) -> int:
    """How many frames CTC needs for ``ids``: one each, and a blank between two that are equal."""
    return len(ids) + int(sum(map(eq, ids, ids[1:])))


def _usable(tokenizer: Tokenizer) -> dict[str, int]:
    """Tokens that text may become. What stands for no text, or for all that is unknown, is not among them."""
    left_out = {tokenizer.blank_id, *tokenizer.special_ids} - tokenizer.delimiter_ids
    named = {tokenizer.unk_token, *(() if tokenizer.kind == "pieces" else (tokenizer.word_delimiter,))}
    named.add(f"{WORD_START}\u2047{WORD_START}")
    return {
        token: i
        for i, token in enumerate(tokenizer.tokens)
        if token and i not in left_out and token not in named and not _NO_TEXT.fullmatch(token)
    }


def _bytes(tokenizer: Tokenizer) -> dict[int, int]:
    """Byte -> the piece that stands for it, where a vocabulary spells out what it lacks."""
    if not tokenizer.byte_fallback:
        return {}
    return {int(found[1], 16): i for i, token in enumerate(tokenizer.tokens) if (found := _BYTE.fullmatch(token))}


def _delimiter(tokenizer: Tokenizer, usable: dict[str, int]) -> int | None:
    if tokenizer.kind == "pieces" or tokenizer.word_delimiter is None:
        return usable.get(" ") if tokenizer.kind != "pieces" else None
    if tokenizer.word_delimiter in tokenizer.tokens:
        return tokenizer.tokens.index(tokenizer.word_delimiter)
    return usable.get(" ")


def _case(tokenizer: Tokenizer, usable: dict[str, int]) -> str | None:
    """The only case that the vocabulary's letters have. ``lowercase`` means that its texts were upper-cased."""
    letters = [c for token in usable for c in token]
    upper, lower = any(c.isupper() for c in letters), any(c.islower() for c in letters)
    if upper != lower:
        return "upper" if upper else "lower"
    return "upper" if tokenizer.lowercase and upper else None


def _open(content: bytes) -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise MissingExtraError("the model's pieces need sentencepiece: pip install sentencepiece") from error
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=content)
    except (RuntimeError, OSError, TypeError, ValueError):
        raise ModelLoadError("the model's tokenizer is no SentencePiece model: copy the model again") from None
