"""Normalisers against worked examples, and Whisper's against Whisper's own in Transformers."""

import builtins
import json

import pytest

from quantasr.errors import MissingExtraError, QuantasrError
from quantasr.speech import text as text_module
from quantasr.speech.text import NORMALIZERS, ScoringError, normalizer


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Hello, World!", "hello world"),
        ("  two\t\nlines ", "two lines"),
        ("DON'T don’t don`t don´t", "don't don't don't don't"),
        ("'quoted' the dogs' 'tis rock'n'roll", "quoted the dogs tis rock'n'roll"),
        ("a '' b ' c", "a b c"),
        ("well-known and/or re–do", "well known and or re do"),
        ("3.5 % of $20", "3 5 of 20"),
        ("ﬁne ＦＵＬＬ ①", "fine full 1"),  # NFKC
        ("Größe ÉTÉ cafe\u0301", "größe été café"),  # accents stay, and are composed
        ("हिन्दी में", "हिन्दी में"),  # vowel signs are marks, not punctuation
        ("می\u200cروم soft\u00adly", "میروم softly"),  # joiners have no width
        ("你好，世界。", "你好 世界"),
        ("¿Qué? «sí»", "qué sí"),
        ("snake_case", "snake case"),
        ("", ""),
        ("?!", ""),
    ],
)
def test_basic(given, expected):
    assert NORMALIZERS["basic"](given) == expected
    assert NORMALIZERS["basic"](expected) == expected


def test_none_and_upper():
    assert normalizer("none")(" As it, is ") == " As it, is "
    assert normalizer("upper")(" as it,  is größe") == "AS IT, IS GRÖSSE"


ENGLISH = [
    ("Mr. Smith's colour, isn't it?", "mister smith is color is not it"),
    ("It cost $20 million.", "it cost $20000000"),
    ("twenty-one point five percent", "21.5%"),
    ("um, I'll've gone [noise] (laughs)", "i will have gone"),
]


@pytest.mark.parametrize(("given", "expected"), ENGLISH)
def test_english(given, expected):
    pytest.importorskip("whisper_normalizer")
    assert normalizer("english")(given) == expected


def test_english_is_the_one_in_transformers():
    whisper = pytest.importorskip("whisper_normalizer.english")
    theirs = pytest.importorskip("transformers.models.whisper.english_normalizer")
    spelling = whisper.EnglishSpellingNormalizer().mapping
    assert spelling["colour"] == "color"
    truth = theirs.EnglishTextNormalizer(json.loads(json.dumps(spelling)))
    texts = [given for given, _ in ENGLISH]
    texts += [
        "The centre's 2nd programme: one hundred and twenty three",
        "£5 don’t",
        "Gov. O'Neil, Ph.D.",
        "double oh seven",
    ]
    assert [normalizer("english")(text) for text in texts] == [truth(text) for text in texts]


def test_unknown_names_list_the_choices():
    with pytest.raises(ScoringError, match="'whisper' is unknown: choose from none, basic, english, upper"):
        normalizer("whisper")
    assert issubclass(ScoringError, QuantasrError)
    assert issubclass(ScoringError, ValueError)


def test_a_missing_package_is_said_before_any_work(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("whisper_normalizer"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    text_module._whisper_english.cache_clear()
    with pytest.raises(MissingExtraError, match="needs whisper-normalizer: pip install"):
        normalizer("english")
    normalizer("basic")  # the others need nothing
