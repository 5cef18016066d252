"""Gates against invented text, on a decoder that writes what it is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from quantasr.errors import ModelLoadError
from quantasr.speech.frontend import WhisperMelFrontend
from quantasr.speech.parts import Arrays
from quantasr.speech.whisper import WhisperOptions, WhisperTokenizer, WhisperTranscriber
from quantasr.speech.whisper.fallback import nobody_speaks, repeats
from quantasr.speech.whisper.greedy import Hypothesis

TEXT, END, START, NO_SPEECH, NO_TIMESTAMPS = 26, 26, 27, 28, 29
VOCABULARY = NO_TIMESTAMPS + 1 + 101
DECODING: dict[str, Any] = {
    "layers": 1,
    "heads": 1,
    "head_dim": 2,
    "vocabulary": VOCABULARY,
    "start": START,
    "end": END,
    "no_timestamps": NO_TIMESTAMPS,
    "no_speech": NO_SPEECH,
    "frames": 100,
}
TOKENIZER = WhisperTokenizer((*(chr(ord("a") + i) for i in range(TEXT)), "<|endoftext|>"), TEXT)
SOUND = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)


class Scripted:
    """A decoder whose ``next_token`` tells what follows so many tokens after the prompt, and how sure it is."""

    def __init__(self, next_token: Callable[[int], int], *, sure: float = 12.0, no_speech: float = 0.0) -> None:
        self.next_token, self.sure, self.no_speech = next_token, sure, no_speech
        self.read: list[int] = []

    def __call__(self, feed: Arrays) -> dict[str, Any]:
        tokens, past = feed["tokens"], feed["past_key_0"].shape[2]
        logits = np.zeros((len(tokens), len(feed["rows"]), VOCABULARY), np.float32)
        for i, row in enumerate(feed["rows"]):
            written = past + int(row) - 1  # behind a prompt of two tokens
            if written >= 0:
                logits[:, i, self.next_token(written)] = self.sure
            else:
                others = (1 - self.no_speech) / (VOCABULARY - 1)
                logits[:, i] = np.log(max(others, 1e-9))
                logits[:, i, NO_SPEECH] = np.log(max(self.no_speech, 1e-9))
        self.read.append(tokens.shape[1])
        grown = np.zeros((len(tokens), 1, past + tokens.shape[1], 2), np.float32)
        return {"logits": logits, "key_0": grown, "value_0": grown}


def _text(decoder: Scripted, wave: np.ndarray = SOUND, **options: Any) -> str:
    parts = {"encoder": lambda feed: {"cross_key_0": feed["features"]}, "decoder": decoder}
    frontend = WhisperMelFrontend(chunk_seconds=2.0)
    named: dict[str, Any] = {"name": "scripted", "frame_seconds": 0.02, "min_samples": 1}
    search = WhisperTranscriber(parts, frontend, TOKENIZER, DECODING, **named, **options)
    return search.transcribe([wave])[0].text


def _said(text: str) -> Callable[[int], int]:
    return lambda written: ord(text[written]) - ord("a") if written < len(text) else END


@pytest.mark.parametrize(
    ("average", "no_speech", "silent"),
    [
        (-1.01, 0.6, True),  # OpenAI's corner
        (-0.99, 0.6, False),
        (-0.38, 0.95, True),  # "you", which tiny.en hears in silence
        (-0.97, 0.90, True),  # and in white noise
        (-1.60, 0.49, True),  # a sentence, in a row of clicks
        (-1.08, 0.20, False),  # the least probable of 120 recordings of learners
        (-0.41, 0.02, False),  # of 32 read by a professional
        (-0.92, 0.61, False),  # a digit of half a second
    ],
)
def test_the_less_it_seems_that_somebody_speaks_the_more_probable_must_a_text_be(
    average: float, no_speech: float, silent: bool
) -> None:
    found = Hypothesis((1,), 2 * average, True)
    assert nobody_speaks("you", found, no_speech, WhisperOptions(), repeating=False) is silent
    for name in ("no_speech_threshold", "logprob_threshold"):
        assert not nobody_speaks("you", found, no_speech, WhisperOptions(**{name: None}), repeating=False)


def test_what_repeats_itself_and_what_has_no_letter() -> None:
    found, options = Hypothesis((1,), -0.02, True), WhisperOptions()
    assert nobody_speaks("you you", found, 0.7, options, repeating=True)
    assert not nobody_speaks("you you", found, 0.3, options, repeating=True)
    assert nobody_speaks(" . . .", found, 0.0, options, repeating=False)
    assert not nobody_speaks("", found, 1.0, options, repeating=False)
    assert repeats(b"thank you " * 20, options) and not repeats(b"printing, in the only sense", options)
    assert not repeats(b"thank you " * 20, WhisperOptions(compression_ratio_threshold=None))


def test_a_probable_text_is_kept_and_an_improbable_one_dropped() -> None:
    assert _text(Scripted(_said("hello"))) == "hello"
    assert _text(Scripted(_said("hello"), no_speech=0.9)) == "hello"
    assert _text(Scripted(_said("hello"), sure=5.0, no_speech=0.9)) == ""
    assert _text(Scripted(_said("hello"), sure=5.0, no_speech=0.9), no_speech_threshold=None) == "hello"


@pytest.mark.parametrize("beam_width", [1, 3])
def test_a_decoder_that_never_ends_is_stopped(beam_width: int) -> None:
    decoder = Scripted(lambda written: written % 25)
    text = _text(decoder, beam_width=beam_width, temperatures=[0.0], compression_ratio_threshold=None)
    assert len(text) == DECODING.get("max_length", 448) - 2
    assert decoder.read == [2] + [1] * (len(text) - 1)
    assert len(_text(Scripted(lambda written: written % 25), beam_width=beam_width, max_tokens=30)) == 30


def test_a_loop_is_given_up_and_cut() -> None:
    decoder = Scripted(lambda written: written if written < 4 else 4 + written % 3)
    assert _text(decoder, temperatures=[0.0]) == "abcdfge"  # the loop has gone round once
    assert len(decoder.read) < 70
    assert _text(decoder, temperatures=[0.0, 0.2]) == "abcdfge"


def test_broken_weights_are_named() -> None:
    with pytest.raises(ModelLoadError, match="'scripted' gives NaN"):
        _text(Scripted(_said("hello"), sure=float("nan")))


def test_a_sound_that_does_not_change_is_not_heard() -> None:
    tone = (0.2 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)).astype(np.float32)
    rising = (tone * np.linspace(0.2, 1.0, tone.size)).astype(np.float32)
    assert _text(Scripted(_said("you")), tone) == ""
    assert _text(Scripted(_said("you")), tone, steady_threshold=None) == "you"
    assert _text(Scripted(_said("you")), tone[:4000]) == "you", "too short to tell"
    assert _text(Scripted(_said("you")), rising) == "you"
    assert _text(Scripted(_said("you"))) == "you", "noise changes"
