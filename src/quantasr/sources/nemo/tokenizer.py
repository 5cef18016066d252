"""NeMo's three kinds of tokens as a :class:`Tokenizer`; the blank is always the last output."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from quantasr.errors import ModelLoadError
from quantasr.sources.nemo.archive import NemoArchive
from quantasr.sources.nemo.config import NemoConfig
from quantasr.sources.pieces import read_pieces
from quantasr.speech.tokenizer import WORD_START, Tokenizer

BLANK = "<blank>"

# Tokens whose characters NeMo takes for no punctuation: marks of words, and what stands for something else.
_SPECIAL = re.compile(r"\[.*\]$|<.*>$|##|\u2581|\s*$")


def read_tokenizer(archive: NemoArchive, config: NemoConfig) -> Tokenizer:
    """The tokens of a model; raises :class:`ModelLoadError` when their file is missing or of another kind."""
    section = config.tokenizer
    if section is None:
        if any(len(label) == 0 for label in config.labels):
            raise ModelLoadError(f"{archive.where}: an empty label among the model's characters")
        return characters(config.labels)
    kind = str(section.get("type", "")).lower()
    if "custom_tokenizer" in section:
        raise ModelLoadError(f"{archive.where}: a tokenizer with a class of its own is not supported")
    content = read_sentencepiece(archive, config)
    if content is not None:
        return sentencepiece(archive.where, content)
    if kind == "wpe":
        return _wordpiece(archive, config)
    if kind == "agg":
        raise ModelLoadError(
            f"{archive.where}: tokenizers of several languages in one model (type agg) are not supported yet"
        )
    raise ModelLoadError(f"{archive.where}: tokenizer type {kind!r} is unknown; supported are bpe and wpe")


def read_sentencepiece(archive: NemoArchive, config: NemoConfig) -> bytes | None:
    """The SentencePiece model of a model whose tokens are its pieces."""
    section = config.tokenizer or {}
    bpe = str(section.get("type", "")).lower() == "bpe"
    return _file(archive, section, "model_path", "tokenizer.model") if bpe else None


def _file(archive: NemoArchive, section: dict[str, Any], key: str, name: str) -> bytes:
    """A tokenizer's file: the configuration has its name in the archive, behind ``nemo:``, or only its folder."""
    given = str(section.get(key) or name).removeprefix("nemo:").rsplit("/", 1)[-1]
    if given not in archive:
        raise ModelLoadError(f"{archive.where}: its tokenizer needs the file {given}, which is not in it")
    return archive.read(given)


def characters(labels: Sequence[str]) -> Tokenizer:
    """A tokenizer whose tokens are written as they are."""
    return _tokenizer(list(labels), labels, kind="characters", word_delimiter=" ")


def sentencepiece(where: str, content: bytes) -> Tokenizer:
    """The tokenizer of a SentencePiece model."""
    from sentencepiece import SentencePieceProcessor

    try:
        pieces = read_pieces(SentencePieceProcessor(model_proto=content))
    except (RuntimeError, OSError, TypeError, ValueError):
        raise ModelLoadError(f"{where}: its tokenizer is no SentencePiece model: copy it again") from None
    return _tokenizer(pieces.tokens, pieces.names, kind="pieces", silent=pieces.silent, byte_fallback=pieces.bytes)


def _wordpiece(archive: NemoArchive, config: NemoConfig) -> Tokenizer:
    """Tokens of BERT's kind: ``##`` goes on with a word, all others start one."""
    words = list(config.labels)
    if not words:
        assert config.tokenizer is not None
        words = _file(archive, config.tokenizer, "vocab_path", "vocab.txt").decode("utf-8", "replace").split("\n")
        words = words[:-1] if words[-1] == "" else words
    tokens = [word[2:] if word.startswith("##") else WORD_START + word for word in words]
    return _tokenizer(tokens, words, kind="pieces")


def _tokenizer(
    tokens: list[str],
    names: Iterable[str],
    *,
    kind: str,
    word_delimiter: str | None = None,
    silent: frozenset[int] = frozenset(),
    byte_fallback: bool = False,
) -> Tokenizer:
    blank = len(tokens)
    return Tokenizer(
        tokens=(*_unique(tokens), BLANK),
        blank_id=blank,
        word_delimiter=word_delimiter,
        special_ids=silent | {blank},
        kind=kind,
        skip_special=True,
        punctuation="".join(sorted(_punctuation(names))),
        byte_fallback=byte_fallback,
    )


def _unique(tokens: list[str]) -> list[str]:
    """Labels are unique in NeMo's own models; a name that comes twice, or is the blank's, gets a number."""
    seen: set[str] = {BLANK}
    for i, token in enumerate(tokens):
        if token in seen:
            tokens[i] = f"<{i}>"
        seen.add(tokens[i])
    return tokens


def _punctuation(names: Iterable[str]) -> set[str]:
    """Marks that the vocabulary has: NeMo takes one space before each out of its texts."""
    return {
        mark
        for name in names
        if not _SPECIAL.match(name)
        for mark in name
        if unicodedata.category(mark).startswith("P")
    }
