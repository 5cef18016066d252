"""Text and words against transformers' Wav2Vec2CTCTokenizer."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from transformers import Wav2Vec2CTCTokenizer

from quantasr.errors import ArtifactError
from quantasr.speech.tokenizer import Tokenizer

LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'.,!?"]


def pair(
    folder: Path,
    tokens: list[str],
    *,
    word_delimiter: str | None = "|",
    delimiter_text: str = " ",
    lowercase: bool = False,
    clean_up: bool = False,
) -> tuple[Wav2Vec2CTCTokenizer, Tokenizer]:
    """The original and ours with the same rules."""
    path = folder / "vocab.json"
    path.write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    theirs = Wav2Vec2CTCTokenizer(
        str(path),
        word_delimiter_token=word_delimiter,
        replace_word_delimiter_char=delimiter_text,
        do_lower_case=lowercase,
        clean_up_tokenization_spaces=clean_up,
    )
    ours = Tokenizer(
        tuple(tokens),
        blank_id=theirs.pad_token_id,
        word_delimiter=word_delimiter,
        special_ids=frozenset(i for i in theirs.all_special_ids if i < len(tokens)),
        lowercase=lowercase,
        unk_token="<unk>",
        delimiter_text=delimiter_text,
        clean_up=clean_up,
    )
    return theirs, ours


def collapsed(ids: list[int], blank: int) -> list[int]:
    return [i for i, _ in itertools.groupby(ids) if i != blank]


@pytest.mark.parametrize(
    ("tokens", "rules"),
    [
        (LETTERS, {}),
        (LETTERS, {"lowercase": True}),
        (LETTERS, {"clean_up": True}),
        (LETTERS, {"delimiter_text": "_"}),
        (LETTERS, {"word_delimiter": "T"}),
        (["|", "a", "b", "ab", " ", "<unk>", "ä", "中", "<pad>", "<s>", "</s>"], {}),
        (["<pad>", "<s>", "</s>", "<unk>", "a", "b", " "], {"word_delimiter": " "}),
        (["<pad>", "<s>", "</s>", "<unk>", "中", "文", "字"], {"word_delimiter": None}),
    ],
)
def test_text_equals_transformers(tmp_path: Path, tokens: list[str], rules: dict) -> None:
    theirs, ours = pair(tmp_path, tokens, **rules)
    rng = np.random.default_rng(len(tokens))
    seen = set()
    for _ in range(300):
        weights = rng.dirichlet(np.full(len(tokens), 0.5))
        ids = rng.choice(len(tokens), size=rng.integers(0, 40), p=weights).tolist()
        expected = theirs.batch_decode([ids])[0]
        assert ours.decode(collapsed(ids, ours.blank_id)) == expected
        seen.add(expected)
    assert len(seen) > 150


def test_contractions_are_cleaned_up_as_in_transformers(tmp_path: Path) -> None:
    theirs, ours = pair(tmp_path, ["<pad>", "<s>", "</s>", "<unk>", "|", *"nistvermw'.,a"], clean_up=True)
    index = {token: i for i, token in enumerate(ours.tokens)}
    for text in ("is|n't|it|.", "i|'m|a|'ve|.", "we|'re|,|a|'s", "it|'|it", "'s|,|.|,"):
        ids = [index[c] for c in text]
        assert ours.decode(ids) == theirs.decode(ids)
    assert ours.decode([index[c] for c in "is|n't|it|."]) == "isn't it."


def test_unknown_ids_become_the_unknown_token(tmp_path: Path) -> None:
    theirs, ours = pair(tmp_path, LETTERS)
    ids = [6, 7, 99, 4, 8]
    assert ours.decode(ids) == theirs.batch_decode([ids])[0]
    assert "<unk>" in ours.decode(ids)


def test_special_tokens_are_skipped_on_request() -> None:
    tokens = ("<pad>", "<s>", "|", "a", "b")
    kept = Tokenizer(tokens, 0, special_ids=frozenset({0, 1, 2}))
    skipped = Tokenizer(tokens, 0, special_ids=frozenset({0, 1, 2}), skip_special=True)
    ids = [1, 3, 2, 4, 1]
    assert kept.decode(ids) == "<s>a b<s>"
    assert skipped.decode(ids) == "a b"
    frames = list(range(5)), list(range(1, 6))
    assert [w.text for w in skipped.words(ids, *frames)] == ["a", "b"]
    assert [w.text for w in kept.words(ids, *frames)] == ["<s>a", "b<s>"]


def test_pieces() -> None:
    tokenizer = Tokenizer(("▁the", "▁", "c", "at", "▁s", "<blank>"), 5, None, frozenset({5}), kind="pieces")
    ids, starts, ends = [0, 1, 2, 3, 4, 3], [0, 4, 6, 7, 9, 12], [2, 5, 7, 8, 10, 13]
    assert tokenizer.decode(ids) == "the cat sat"
    assert tokenizer.words(ids, starts, ends) == (("the", 0, 2), ("cat", 6, 8), ("sat", 9, 13))
    assert tokenizer.delimiter_ids == {1}
    assert tokenizer.word_start_ids == {0, 1, 4}


def test_words_joined_make_the_text() -> None:
    tokenizer = Tokenizer(("-", "|", *"ABC."), 0, lowercase=True, clean_up=True)
    ids = [1, 2, 3, 1, 1, 4, 1, 5]
    words = tokenizer.words(ids, range(8), range(1, 9))
    assert words == (("ab", 1, 3), ("c", 5, 6), (".", 7, 8))
    assert tokenizer.join(word.text for word in words) == "ab c."


def test_punctuation_takes_the_space_before_it_and_joins_the_word() -> None:
    tokens = ("▁yes", "▁", ".", "▁'", "s", "▁no", "<blank>")
    tokenizer = Tokenizer(tokens, 6, None, frozenset({6}), kind="pieces", skip_special=True, punctuation=".'")
    ids, starts, ends = [0, 1, 2, 5, 3, 4], [0, 2, 3, 5, 7, 8], [1, 3, 4, 6, 8, 9]
    assert tokenizer.decode(ids) == "yes. no's"
    assert tokenizer.words(ids, starts, ends) == (("yes.", 0, 4), ("no's", 5, 9))
    assert tokenizer.join(["yes", ".", "no"]) == "yes. no"
    assert tokenizer.decode([1, 2, 0]) == ". yes", "at the beginning there is no word to join"


def test_bytes_are_put_together_to_characters() -> None:
    tokens = ("▁a", "<0xC3>", "<0x9F>", "b", "▁c", "<blank>")
    tokenizer = Tokenizer(tokens, 5, None, frozenset({5}), kind="pieces", skip_special=True, byte_fallback=True)
    ids = [0, 1, 2, 3, 4, 1]
    assert tokenizer.decode(ids) == "aßb c\ufffd", "a byte alone is no character"
    assert tokenizer.words(ids, [0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]) == (("aßb", 0, 7), ("c\ufffd", 8, 11))
    spelt = Tokenizer(tokens, 5, None, frozenset({5}), kind="pieces")
    assert spelt.decode([0, 1]) == "a<0xC3>", "other models may have such a token in its own right"


@pytest.mark.parametrize("kind", ["characters", "pieces"])
def test_round_trip_through_json(kind: str) -> None:
    tokenizer = Tokenizer(("▁a", "|", "ß"), 1, None, frozenset({0, 1}), True, kind, "<unk>", "_", True, True, ".", True)
    assert Tokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict()))) == tokenizer


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "blank_id": 2}, "blank_id 2 is not among its 2 tokens"),
        ({"tokens": ["a", "b"], "blank_id": -1}, "blank_id -1"),
        ({"tokens": ["a", "b", "a"], "blank_id": 0}, "unique; twice there: 'a'"),
        ({"tokens": ["a"], "blank_id": 0, "special_ids": [1]}, "special id 1"),
        ({"tokens": ["a"], "blank_id": 0, "kind": "words"}, "kind 'words' is unknown"),
        ({"tokens": ["a"], "blank_id": 0, "colour": 1}, "colour"),
        ({"blank_id": 0}, "'tokens'"),
    ],
)
def test_an_unusable_vocabulary_is_refused(row: dict, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        Tokenizer.from_dict(row)
