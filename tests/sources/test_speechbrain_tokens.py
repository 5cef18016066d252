"""SpeechBrain's tokenizers: the text of any ids is its own, but for spaces around it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import sentencepiece
from speechbrain.dataio.encoder import CTCTextEncoder

from quantasr.errors import ModelLoadError
from quantasr.sources.speechbrain.tokenizer import read_tokenizer

_SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "she sells sea shells by the sea shore",
    "pack my box with five dozen liquor jugs",
    "a recogniser turns the sound of speech into text",
] * 4


def _encoder(blank: int, labels: str = " 'abcdeé") -> Any:
    encoder = CTCTextEncoder()
    encoder.update_from_iterable(labels, sequence_input=False)
    encoder.add_unk()
    encoder.insert_blank("<blank>", blank)
    encoder.ignore_len()
    return encoder


def _sentencepiece(options: dict[str, Any]) -> Any:
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_SENTENCES), model_writer=file, minloglevel=2, **{"vocab_size": 45, **options}
    )
    return sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())


@pytest.mark.parametrize("blank", [0, 4, 9])
def test_text_encoder(blank: int) -> None:
    encoder = _encoder(blank)
    tokenizer = read_tokenizer("here", encoder, len(encoder), blank, " ")
    assert tokenizer.tokens[blank] == "<blank>" and tokenizer.blank_id == blank
    _compare(tokenizer, lambda ids: "".join(encoder.decode_ndim(ids)))


@pytest.mark.parametrize("blank", [0, 3, 44])
@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "unigram"},
        {"model_type": "bpe"},
        {"model_type": "char", "vocab_size": 30},
        {"model_type": "bpe", "byte_fallback": True, "vocab_size": 300},
        {"model_type": "unigram", "bos_id": -1, "eos_id": -1, "user_defined_symbols": ["<x>"]},
    ],
    ids=str,
)
def test_sentencepiece(blank: int, options: dict[str, Any]) -> None:
    model = _sentencepiece(options)
    blank = min(blank, model.get_piece_size() - 1)
    tokenizer = read_tokenizer("here", model, model.get_piece_size(), blank, " ")
    _compare(tokenizer, model.decode_ids)


def _compare(tokenizer: Any, decode: Any) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        ids = rng.integers(0, len(tokenizer), rng.integers(0, 25))
        ids = ids[ids != tokenizer.blank_id].tolist()
        assert tokenizer.decode(ids) == decode(ids).strip()


def test_outputs_without_a_token() -> None:
    encoder = _encoder(0)
    tokenizer = read_tokenizer("here", encoder, len(encoder) + 2, 0, " ")
    assert tokenizer.tokens[-2:] == (f"<{len(encoder)}>", f"<{len(encoder) + 1}>")


def test_what_is_no_tokenizer_of_ctc() -> None:
    for nothing, said in (
        (object(), "tokenizer object is not supported"),
        (CTCTextEncoder(), "has no labels"),
        (sentencepiece.SentencePieceProcessor(), "is not loaded"),
    ):
        with pytest.raises(ModelLoadError, match=said):
            read_tokenizer("here", nothing, 5, 0, " ")
