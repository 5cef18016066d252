"""SpeechBrain's two kinds of tokens as a :class:`Tokenizer`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantasr.errors import ModelLoadError
from quantasr.sources.pieces import read_pieces
from quantasr.speech.tokenizer import Tokenizer


def read_tokenizer(where: str, tokenizer: Any, outputs: int, blank_id: int, delimiter: str) -> Tokenizer:
    """The tokens of a model with so many outputs, whose text is that of SpeechBrain without spaces around it.

    For an attention model, which has no blank, ``blank_id`` is the end's. Raises :class:`ModelLoadError` when the
    tokenizer is of another kind, or was not loaded.
    """
    import sentencepiece
    from speechbrain.dataio.encoder import CTCTextEncoder

    if isinstance(tokenizer, CTCTextEncoder):
        return _labels(where, tokenizer, outputs, blank_id, delimiter)
    if isinstance(tokenizer, sentencepiece.SentencePieceProcessor):
        return _pieces(where, tokenizer, outputs, blank_id)
    raise ModelLoadError(
        f"{where}: tokenizer {type(tokenizer).__name__} is not supported: use CTCTextEncoder or SentencePiece"
    )


def _labels(where: str, tokenizer: Any, outputs: int, blank_id: int, delimiter: str) -> Tokenizer:
    labels = {int(i): str(label) for i, label in tokenizer.ind2lab.items()}
    if not labels:
        raise ModelLoadError(f"{where}: its tokenizer has no labels: is its file missing, or not loaded?")
    return Tokenizer(
        tokens=tuple(_named([labels.get(i) for i in range(outputs)])),
        blank_id=blank_id,
        word_delimiter=delimiter,
        special_ids=frozenset({blank_id}),
        kind="characters",
    )


def _pieces(where: str, tokenizer: Any, outputs: int, blank_id: int) -> Tokenizer:
    try:
        pieces = read_pieces(tokenizer)
    except (RuntimeError, ValueError, LookupError) as error:
        raise ModelLoadError(f"{where}: its SentencePiece model is not loaded: {error}") from error
    if not pieces.tokens:
        raise ModelLoadError(f"{where}: its SentencePiece model is not loaded: list it in the pretrainer's loadables")
    spare = [None] * (outputs - len(pieces.tokens))
    return Tokenizer(
        tokens=tuple(_named([*pieces.tokens, *spare][:outputs])),
        blank_id=blank_id,
        word_delimiter=None,
        special_ids=frozenset(i for i in pieces.silent if i < outputs) | {blank_id},
        kind="pieces",
        skip_special=True,
        byte_fallback=pieces.bytes,
    )


def _named(tokens: Sequence[str | None]) -> list[str]:
    """Outputs that no token stands for, and tokens that come twice, get a name of their own."""
    seen: set[str] = set()
    named = []
    for i, token in enumerate(tokens):
        name = f"<{i}>" if token is None or token in seen else token
        seen.add(name)
        named.append(name)
    return named
