"""Text normalisers: what counts as the same word when a transcript is scored."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache

from quantasr.errors import MissingExtraError, QuantasrError

_APOSTROPHES = dict.fromkeys(map(ord, "\u2018\u2019\u02bc\u0060\u00b4"), "'")
# An apostrophe stays where a letter or a digit stands on both sides of it.
_LONE_APOSTROPHE = re.compile(r"(?<!\w)'|'(?!\w)")


class ScoringError(QuantasrError, ValueError):
    """Texts cannot be scored: the normaliser is unknown, or there are no reference words."""


def none(text: str) -> str:
    """The text as it is."""
    return text


def upper(text: str) -> str:
    """Upper case, one space between words; punctuation stays."""
    return " ".join(text.upper().split())


def basic(text: str) -> str:
    """Lower case, punctuation and symbols out, one space between words; for any language.

    Unicode NFKC first, so that a ligature or a full-width letter is the plain one. An apostrophe inside of a
    word stays ("don't"); any other mark becomes a space ("well-known" is two words); accents stay.
    """
    # The apostrophes first: NFKC would take the acute accent apart into a space and an accent.
    text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).lower()
    text = _LONE_APOSTROPHE.sub(" ", text)
    return " ".join("".join(map(_keep, text)).split())


def _keep(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cf":  # joiners and soft hyphens have no width and stand inside of words
        return ""
    return character if character == "'" or category[0] not in "PSC" else " "


def english(text: str) -> str:
    """Whisper's normaliser for English: numbers, currencies, contractions and British spelling brought to one form.

    A. Radford and others, "Robust Speech Recognition via Large-Scale Weak Supervision", 2022, appendix C; run by
    the package ``whisper-normalizer``.

    Raises:
        MissingExtraError: that package is not installed.
    """
    return _whisper_english()(text)


@cache
def _whisper_english() -> Callable[[str], str]:
    try:
        from whisper_normalizer.english import EnglishTextNormalizer  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError as error:
        raise MissingExtraError(
            "the normaliser 'english' needs whisper-normalizer: pip install 'quantasr[english]', or choose 'basic'"
        ) from error
    normalize: Callable[[str], str] = EnglishTextNormalizer()
    return normalize


NORMALIZERS: dict[str, Callable[[str], str]] = {"none": none, "basic": basic, "english": english, "upper": upper}
"""Normalisers by name; each is applied to references and hypotheses alike."""


def normalizer(name: str) -> Callable[[str], str]:
    """The normaliser of that name.

    Raises:
        ScoringError: there is none.
        MissingExtraError: what it needs is not installed.
    """
    if name not in NORMALIZERS:
        raise ScoringError(f"text normaliser '{name}' is unknown: choose from {', '.join(NORMALIZERS)}")
    if name == "english":
        _whisper_english()  # so that a missing package shows now and not after an hour of transcribing
    return NORMALIZERS[name]
