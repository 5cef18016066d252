"""Greedy and beam search over parts whose every number is known, and what a user may ask of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from quantasr.errors import ArtifactError, AudioError, RecipeError
from quantasr.speech.frontend import WaveFrontend
from quantasr.speech.seq2seq import SearchTranscriber
from quantasr.speech.tokenizer import Tokenizer

BOS, END, A, B = 0, 1, 2, 3
TOKENIZER = Tokenizer(("<s>", "</s>", "a", "b"), blank_id=END, word_delimiter=None)

# What follows what: a is likelier at first, but only b leads to something good.
CHAIN = np.array([[1e-9, 0.1, 0.5, 0.4], [0.25] * 4, [1e-9, 0.3, 0.35, 0.35], [1e-9, 0.9, 0.05, 0.05]])
# Never an end.
ENDLESS = np.array([[1e-9, 1e-12, 0.6, 0.4]] * 4)


class Toy:
    """Parts of a recogniser of 10 samples a frame, whose decoder only looks at the token before."""

    def __init__(self, chain: np.ndarray, lm: np.ndarray | None = None, ctc: np.ndarray | None = None) -> None:
        self.chain, self.lm, self.ctc = np.log(chain), lm, ctc
        self.calls = 0

    def encoder(self, feed: Any) -> dict[str, np.ndarray]:
        frames = feed["features"].shape[1] // 10
        encoded = np.zeros((1, frames, 1), np.float32)
        return {"encoded": encoded} | ({} if self.ctc is None else {"ctc": self.ctc[None, :frames]})

    def decoder(self, feed: Any) -> dict[str, np.ndarray]:
        self.calls += 1
        tokens = feed["tokens"]
        attention = np.zeros((len(tokens), feed["encoded"].shape[1]), np.float32)
        attention[:, 0] = 1
        return {
            "logprobs": self.chain[tokens].astype(np.float32),
            "attention": attention,
            "next_last": tokens[:, None].astype(np.float32),
            "next_count": np.concatenate([feed["count"], np.ones((len(tokens), 1, 1), np.float32)], 2),
        }

    def transcriber(self, decoding: dict[str, Any] | None = None, **options: Any) -> SearchTranscriber:
        row: dict[str, Any] = {"bos": BOS, "eos": END, "vocabulary": 4, "memory": ["encoded"], "attention": True}
        states = {"last": {"shape": [1], "uniform": False}, "count": {"shape": [1, 0], "uniform": False}}
        row["states"] = {"decoder": states}
        parts = {"encoder": self.encoder, "decoder": self.decoder}
        if self.lm is not None:
            row["states"]["lm"] = {"last": {"shape": [1], "uniform": False}}
            parts["lm"] = lambda feed: {
                "logprobs": np.log(self.lm)[feed["tokens"]].astype(np.float32),
                "next_last": feed["last"],
            }
        frontend = WaveFrontend(100, normalize=False)
        named: dict[str, Any] = {"name": "toy", "frame_seconds": 0.1, "min_samples": 10}
        return SearchTranscriber(parts, frontend, TOKENIZER, {**row, **(decoding or {})}, **named, **options)


BEAM = {"beam_width": 2, "length_normalization": False, "eos_threshold": None}
WAVE = np.zeros(100, np.float32)


def test_greedy_takes_the_best_of_each_step() -> None:
    found = Toy(CHAIN).transcriber().search(WAVE)
    # a, then a or b alike: the first; its last step has a still.
    assert found.tokens.tolist() == [A] * 10
    assert found.score == pytest.approx(np.log(0.5) + 9 * np.log(0.35), rel=1e-5)


def test_a_beam_finds_what_greedy_misses() -> None:
    found = Toy(CHAIN).transcriber(BEAM).search(WAVE)
    assert found.tokens.tolist() == [B]
    assert found.score == pytest.approx(np.log(0.4 * 0.9), rel=1e-5)


def test_length_normalization_divides_by_the_tokens_and_the_end() -> None:
    found = Toy(CHAIN).transcriber({**BEAM, "length_normalization": True}).search(WAVE)
    assert found.tokens.tolist() == [B]
    assert found.score == pytest.approx(np.log(0.4 * 0.9) / 2, rel=1e-5)


def test_the_end_must_be_likely_enough() -> None:
    """After b the end has log-prob -0.105 and is the best: -0.105 > 1.5 * -0.105. After a, -1.2 <= 1.1 * -1.05."""
    found = Toy(CHAIN).transcriber({**BEAM, "eos_threshold": 1.1}).search(WAVE)
    assert found.tokens.tolist() == [B]
    found = (
        Toy(CHAIN).transcriber({**BEAM, "beam_width": 1, "eos_threshold": 1.1, "max_decode_ratio": 0.3}).search(WAVE)
    )
    assert END not in found.tokens and len(found.tokens) == 2  # the third stands where an end should


def test_scorers_are_weighed_and_added() -> None:
    lm = np.array([[1e-9, 0.05, 0.9, 0.05], [0.25] * 4, [1e-9, 0.9, 0.05, 0.05], [1e-9, 0.9, 0.05, 0.05]])
    toy = Toy(CHAIN, lm=lm)
    found = toy.transcriber({**BEAM, "lm_weight": 2.0}).search(WAVE)
    assert found.tokens.tolist() == [A]
    assert found.score == pytest.approx(np.log(0.5 * 0.3) + 2 * np.log(0.9 * 0.9), rel=1e-5)
    assert toy.transcriber({**BEAM, "lm_weight": 2.0}, lm_weight=0.0).search(WAVE).tokens.tolist() == [B]
    longer = toy.transcriber(BEAM, length_weight=3.0, max_decode_ratio=0.5).search(WAVE)
    assert longer.tokens.tolist() == [A, A, B]
    assert longer.score == pytest.approx(np.log(0.5 * 0.35 * 0.35 * 0.9) + 4 * 3, rel=1e-5)
    # The first frame alone is attended to: above the threshold by 0.5, then 1.5, over the number of steps.
    covered = Toy(CHAIN).transcriber(BEAM, coverage_weight=1.0).search(WAVE)
    assert covered.score == pytest.approx(np.log(0.4 * 0.9) - 0.5 - 1.5 / 2, rel=1e-5)


def test_ctc_takes_its_share_from_the_decoder() -> None:
    ctc = np.log(np.array([[0.9, 1e-9, 0.05, 0.05]] * 9 + [[0.05, 1e-9, 0.9, 0.05]])).astype(np.float32)
    decoding = {**BEAM, "blank": BOS, "ctc_weight": 0.5}
    found = Toy(CHAIN, ctc=ctc).transcriber(decoding).search(WAVE)
    assert found.tokens.tolist() == [A]
    alone = Toy(CHAIN, ctc=ctc).transcriber(decoding, ctc_weight=0.0).search(WAVE)
    assert alone.tokens.tolist() == [B]


@pytest.mark.parametrize("decoding", [{}, BEAM, {**BEAM, "beam_width": 40, "length_normalization": True}])
def test_a_decoder_that_never_ends_is_stopped(decoding: dict[str, Any]) -> None:
    toy = Toy(ENDLESS)
    found = toy.transcriber(decoding).search(WAVE)
    assert toy.calls == 10
    assert len(found.tokens) == (9 if decoding else 10)
    toy = Toy(ENDLESS)
    toy.transcriber({**decoding, "max_tokens": 4}).search(WAVE)
    assert toy.calls == 4


def test_short_recordings_and_none() -> None:
    transcriber = Toy(CHAIN).transcriber(BEAM)
    assert transcriber.transcribe([np.zeros(1, np.float32)])[0].text == ""  # one step, which ends nothing
    with pytest.raises(AudioError, match="one channel with at least one sample is needed"):
        transcriber.transcribe([np.zeros(0, np.float32)])
    with pytest.raises(AudioError, match="no samples"):
        transcriber.transcribe_stream([])
    with pytest.raises(AudioError, match=r"2.0 s is too long: the model has positions for 1.5 s: set chunk_seconds"):
        Toy(CHAIN).transcriber({**BEAM, "max_seconds": 1.5}).search(np.zeros(200, np.float32))


def test_along_a_path() -> None:
    transcriber = Toy(CHAIN).transcriber({**BEAM, "temperature": 2.0})
    (rows,) = transcriber.logprobs([WAVE], [np.array([B, A])])
    expected = np.sqrt(CHAIN[[BOS, B, A]])
    np.testing.assert_allclose(np.exp(rows), expected / expected.sum(1, keepdims=True), rtol=1e-5)
    assert transcriber.logprobs([WAVE], [np.array([], np.int64)])[0].shape == (1, 4)


_WRONG = [
    ({"beam_size": 3}, "toy: has no option beam_size: it decodes with beam_width, ctc_weight"),
    ({"beam_width": 5000}, "beam_width is 5000; give 0 .greedy. to 1024, or memory does not do"),
    ({"beam_width": -1}, "beam_width is -1"),
    ({"beam_width": "wide"}, "an option is of the wrong type"),
    ({"ctc_weight": 0.3}, "the model has no CTC scorer"),
    ({"ctc_weight": 1.0}, "ctc_weight is 1.0; it must be at least 0 and less than 1"),
    ({"lm_weight": 0.3}, "the model has no language model"),
    ({"lm_weight": -0.3}, "lm_weight is -0.3; it must be 0 or more"),
    ({"temperature": 0.0}, "temperature is 0.0; it must be more than 0"),
    ({"max_decode_ratio": float("nan")}, "max_decode_ratio is nan"),
    ({"length_weight": 0.5, "length_normalization": True}, "length_weight does nothing with length_normalization"),
    ({"chunk_seconds": 1.0}, "chunk_seconds is 1.0; give 4 or more"),
    ({"batch_size": 0}, "batch_size is 0"),
]


@pytest.mark.parametrize(("options", "message"), _WRONG)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Toy(CHAIN).transcriber(BEAM, **options)


def test_no_attention_no_coverage() -> None:
    with pytest.raises(RecipeError, match="does not give its attention"):
        Toy(CHAIN).transcriber({**BEAM, "attention": False}, coverage_weight=1.0)


def test_parts_that_do_not_belong_together() -> None:
    with pytest.raises(ArtifactError, match="has no part lm, which its decoding needs"):
        Toy(CHAIN).transcriber({"states": {"decoder": {}, "lm": {}}})
    with pytest.raises(ArtifactError, match="4 tokens for a decoder with 7 outputs"):
        Toy(CHAIN).transcriber({"vocabulary": 7})
    with pytest.raises(ArtifactError, match="decoding: 'shape'; was the artifact written by a newer version"):
        Toy(CHAIN).transcriber({"states": {"decoder": {"last": {}}}})
    with pytest.raises(ArtifactError, match="a state of shape"):
        Toy(CHAIN).transcriber({"states": {"decoder": {"last": {"shape": [-1], "uniform": False}}}})
