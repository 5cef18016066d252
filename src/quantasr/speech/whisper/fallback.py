"""What is kept of a window: gates against invented text, and other tries at higher temperatures."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np

from quantasr.speech.whisper.greedy import Hypothesis, without_loop
from quantasr.speech.whisper.options import WhisperOptions
from quantasr.speech.whisper.tokenizer import WhisperTokenizer
from quantasr.speech.whisper.window import Opening, WindowSearch

_NOTHING = Hypothesis((), 0.0, True)


@dataclass(frozen=True)
class Decision:
    """What was found in a window, without tokens where nobody speaks, and at which ``temperature``."""

    hypothesis: Hypothesis
    temperature: float


def decide(
    window: WindowSearch,
    tokenizer: WhisperTokenizer,
    opening: Opening,
    random: np.random.Generator,
    *,
    timestamps: bool,
) -> Decision:
    """The hypothesis at the lowest temperature that does not repeat itself, unless nobody speaks.

    Where there is none, the first without its loop. OpenAI draws again for improbable texts too; what is drawn is less
    probable still, so they are kept here, and a text depends on no random number unless it repeats itself.
    """
    options = window.options
    looping: Decision | None = None
    for temperature in options.temperatures:
        found = window.search(opening, timestamps=timestamps, temperature=temperature, random=random)
        repeating = found.loops or repeats(tokenizer.spelt(found.tokens), options)
        if nobody_speaks(tokenizer.decode(found.tokens), found, opening.no_speech, options, repeating=repeating):
            return Decision(_NOTHING, temperature)
        if not repeating:
            return Decision(found, temperature)
        looping = looping or Decision(found, temperature)
    assert looping is not None  # options have a temperature
    tokens = without_loop(looping.hypothesis.tokens, window.facts.timestamp_begin)
    return replace(looping, hypothesis=replace(looping.hypothesis, tokens=tokens))


def nobody_speaks(text: str, found: Hypothesis, no_speech: float, options: WhisperOptions, *, repeating: bool) -> bool:
    """Whether a window's text was invented.

    OpenAI's rule is two thresholds: ``<|nospeech|>`` more probable than ``no_speech_threshold``, and a text whose
    log-probability per token is below ``logprob_threshold``. On silence, noise and music that keeps much of what
    Whisper invents (it is sure of "you"). Here their corner is a line: the more probable it is that nobody speaks, the
    more probable must the text be. It must not repeat itself either, and have a letter or a digit.
    """
    if not any(character.isalnum() for character in text):
        return bool(text) and options.no_speech_threshold is not None
    if options.no_speech_threshold is None:
        return False
    if repeating and no_speech > options.no_speech_threshold:
        return True
    if options.logprob_threshold is None:
        return False
    needed = options.logprob_threshold * (1.0 - no_speech) / (1.0 - options.no_speech_threshold)
    return found.average < needed


def repeats(text: bytes, options: WhisperOptions) -> bool:
    """Whether ``text`` can be compressed too well."""
    if options.compression_ratio_threshold is None or not text:
        return False
    return len(text) / len(zlib.compress(text)) > options.compression_ratio_threshold
