"""What is kept of a window: searched again at higher temperatures while the text repeats itself or is improbable."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from quantasr.speech.whisper.greedy import Hypothesis
from quantasr.speech.whisper.options import WhisperOptions
from quantasr.speech.whisper.tokenizer import WhisperTokenizer
from quantasr.speech.whisper.window import Opening, WindowSearch


@dataclass(frozen=True)
class Decision:
    """The hypothesis of a window, at which ``temperature`` it was found, and whether nobody speaks there."""

    hypothesis: Hypothesis
    temperature: float
    silent: bool


def decide(
    window: WindowSearch,
    tokenizer: WhisperTokenizer,
    opening: Opening,
    random: np.random.Generator,
    *,
    timestamps: bool,
) -> Decision:
    """Search until a hypothesis passes the gates."""
    options = window.options
    for temperature in options.temperatures:
        hypothesis = window.search(opening, timestamps=timestamps, temperature=temperature, random=random)
        improbable = options.logprob_threshold is not None and hypothesis.average < options.logprob_threshold
        if improbable and options.no_speech_threshold is not None and opening.no_speech > options.no_speech_threshold:
            return Decision(hypothesis, temperature, True)
        if not improbable and not repeats(tokenizer.spelt(hypothesis.tokens), options):
            break
    return Decision(hypothesis, temperature, False)


def repeats(text: bytes, options: WhisperOptions) -> bool:
    """Whether ``text`` can be compressed too well."""
    if options.compression_ratio_threshold is None or not text:
        return False
    return len(text) / len(zlib.compress(text)) > options.compression_ratio_threshold
