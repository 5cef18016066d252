"""What a transducer's search may be told, and what its hypotheses become."""

from __future__ import annotations

import math
from typing import Any

import pytest

from quantasr.errors import ArtifactError, RecipeError
from quantasr.speech.tokenizer import Tokenizer
from quantasr.speech.transducer.hypothesis import Hypothesis
from quantasr.speech.transducer.options import settings

STATES = {"state_h": {"shape": [2, 8], "type": "float32", "fill": 0}}


def test_the_users_options_win_over_the_models() -> None:
    decoding = {"durations": [0, 1, 2], "states": STATES, "max_symbols": 4, "blank_penalty": 0.5}
    facts, options = settings(decoding, {"blank_penalty": 1.0, "beam_width": 3})
    assert facts.durations == (0, 1, 2) and facts.states == STATES
    assert (options.max_symbols, options.blank_penalty, options.beam_width, options.head) == (4, 1.0, 3, "transducer")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 4}, "a transducer's search has no option 'beam'; near it: beam_width"),
        ({"beam_width": 0}, "beam_width is 0; it must be a whole number of at least 1"),
        ({"beam_width": 2.5}, "beam_width is 2.5; it must be a whole number"),
        ({"max_symbols": 0}, "max_symbols is 0; it must be a whole number of at least 1"),
        ({"blank_penalty": math.nan}, "blank_penalty is nan; it must be a finite number of nats"),
        ({"length_bonus": "much"}, "an option has the wrong type"),
        ({"head": "attention"}, "head 'attention' is unknown: transducer, ctc"),
        ({"head": "ctc", "beam_width": 4}, "head 'ctc' is searched greedily here: leave beam_width"),
    ],
)
def test_impossible_options_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        settings({"states": STATES}, options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        ({"vocabulary": 7}, "decoding has an unknown key 'vocabulary'; was it written by a newer version?"),
        ({"durations": [0]}, r"durations are \[0\]; none may be below 0, one must be above"),
        ({"states": {"state_h": {"shape": [1]}}}, "state 'state_h' needs a shape, a fill, and float32 or int64"),
    ],
)
def test_a_description_that_is_no_transducers(decoding: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        settings(decoding, {})


def test_words_have_the_times_and_probabilities_of_their_tokens() -> None:
    tokenizer = Tokenizer(("\u2581on", "e", "\u2581two", ".", "<b>"), 4, None, frozenset({4}), kind="pieces",
                          skip_special=True, punctuation=".")  # fmt: skip
    found = Hypothesis(
        tokens=[0, 1, 2, 3], frames=[2, 4, 9, 30], durations=[2, 3, 4, 1], score=-4.0, heard=40,
        logprobs=[math.log(0.5), math.log(0.125), math.log(0.9), math.log(0.9)],
    )  # fmt: skip
    transcript = found.transcript(tokenizer, 0.08, 0.9)
    assert (transcript.text, transcript.score) == ("one two.", -0.1)
    one, two = transcript.words
    assert (one.text, one.start, one.end) == ("one", pytest.approx(0.16), pytest.approx(0.56))
    assert one.confidence == pytest.approx(0.25)
    # The mark was said at 2.4 s, behind the end of the recording: it has no length of its own.
    assert (two.text, two.start, two.end) == ("two.", pytest.approx(0.72), pytest.approx(0.9))
