"""Transformers' CTC tokenizer as a :class:`Tokenizer`."""

from __future__ import annotations

from typing import Any

from quantasr.errors import ModelLoadError
from quantasr.speech.tokenizer import Tokenizer


def read_tokenizer(where: str, tokenizer: Any, vocab_size: int) -> Tokenizer:
    """The tokens of a model with so many outputs; raises :class:`ModelLoadError` when they are of another kind."""
    if type(tokenizer).__name__ != "Wav2Vec2CTCTokenizer":
        raise ModelLoadError(
            f"{where}: tokenizer {type(tokenizer).__name__} is not a CTC tokenizer (Wav2Vec2CTCTokenizer)"
        )
    tokens: list[str] = []
    for i in range(vocab_size):
        token = tokenizer.convert_ids_to_tokens(i)
        # Heads wider than the vocabulary exist; their spare outputs still need names of their own.
        tokens.append(token if token is not None and token not in tokens else f"<{i}>")
    if tokenizer.pad_token_id is None:
        raise ModelLoadError(f"{where}: the tokenizer has no pad token, which is the CTC blank of these models")
    return Tokenizer(
        tokens=tuple(tokens),
        blank_id=int(tokenizer.pad_token_id),
        word_delimiter=tokenizer.word_delimiter_token,
        delimiter_text=tokenizer.replace_word_delimiter_char,
        special_ids=frozenset(i for i in tokenizer.all_special_ids if i < vocab_size),
        lowercase=bool(tokenizer.do_lower_case),
        unk_token=str(tokenizer.unk_token or ""),
        clean_up=bool(tokenizer.clean_up_tokenization_spaces),
    )
