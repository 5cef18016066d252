"""Another vocabulary for a trained CTC model: a new output layer on the encoder that it has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantasr.errors import TrainingError
from quantasr.sources.asr_model import CtcModel
from quantasr.speech.tokenizer import Tokenizer

_SOURCES = ("huggingface", "nemo")
_SENTENCEPIECE = ".model"


def new_vocabulary(
    model: CtcModel, tokens: Sequence[str] | str | Path, *, keep_shared: bool = False, seed: int = 0
) -> CtcModel:
    """``model`` with an output layer for other ``tokens``, drawn with ``seed``; it must be trained before it is of use.

    ``tokens`` are those of a text, a space for what parts words; the blank, and what Hugging Face's tokenizers need
    besides, is added where it is not among them. Or they are the path of a text file with one a line, or, for NeMo, of
    a SentencePiece model (``.model``). With ``keep_shared`` the rows of tokens that the old vocabulary has too, the
    blank's among them, are kept. The encoder is the same, and ``model`` is not to be used any more. Raises
    :class:`TrainingError` when the tokens or the model do not fit.
    """
    source = model.provenance.get("source")
    if source not in _SOURCES:
        raise TrainingError(
            f"{model.name}: models of source {source} cannot be given a new vocabulary: only those of "
            f"{' and '.join(_SOURCES)} can"
        )
    if model.exportable:
        raise TrainingError(f"{model.name}: was made ready for export: load it again to give it a new vocabulary")
    given: list[str] | bytes
    if isinstance(tokens, str | Path):
        given = _read(Path(tokens)) if Path(tokens).suffix == _SENTENCEPIECE else read_tokens(Path(tokens))
    else:
        given = list(tokens)
        _check(given, model.name)
    replaced: CtcModel = import_module(f"quantasr.sources.{source}.vocabulary").replace_vocabulary(
        model, given, keep_shared=keep_shared, seed=seed
    )
    return replaced


def characters_of(texts: Iterable[str]) -> list[str]:
    """The characters of transcripts in their order, first a space, if any text has two words."""
    found: set[str] = set()
    for text in texts:
        found.update(" ".join(text.split()))
    return sorted(found)


def read_tokens(path: Path) -> list[str]:
    """The tokens of a text file, one a line; raises :class:`TrainingError` on an empty or a repeated one."""
    try:
        lines = _read(path).decode("utf-8").replace("\r\n", "\n").removeprefix("\ufeff").split("\n")
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path}: is no text in UTF-8: {error.reason} at byte {error.start}") from None
    lines = lines[:-1] if lines[-1] == "" else lines
    _check(lines, str(path))
    return lines


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read: {error.strerror or error}") from None


def _check(tokens: list[str], where: str) -> None:
    if not tokens:
        raise TrainingError(f"{where}: the new vocabulary has no tokens")
    if "" in tokens:
        raise TrainingError(f"{where}: token {tokens.index('') + 1} of the new vocabulary is empty: a space is ' '")
    refuse_repeated(tokens, where)


def refuse_repeated(tokens: Sequence[str], where: str) -> None:
    """Raise :class:`TrainingError` when a token comes twice."""
    repeated = sorted({token for token in tokens if tokens.count(token) > 1})
    if repeated:
        raise TrainingError(f"{where}: twice in the new vocabulary: {', '.join(map(repr, repeated[:5]))}")


@torch.no_grad()
def keep_rows(old: Any, new: Any, before: Tokenizer, after: Tokenizer) -> None:
    """Copy the rows of one output layer to another for the tokens that both have, the blank's included."""
    places = {token: i for i, token in enumerate(before.tokens) if i != before.blank_id}
    pairs = [(places[token], i) for i, token in enumerate(after.tokens) if token in places and i != after.blank_id]
    rows, targets = zip((before.blank_id, after.blank_id), *pairs, strict=True)
    for name in ("weight", "bias"):
        source, target = getattr(old, name), getattr(new, name)
        if source is not None:
            copied: Tensor = source[list(rows)]
            target[list(targets)] = copied.to(target)
