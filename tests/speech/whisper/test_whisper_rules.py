"""What may be written, where windows are cut and how words are parted and aligned: as transformers does each."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_whisper
import torch
from transformers import GenerationConfig
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor
from transformers.models.whisper.generation_whisper import (
    WhisperGenerationMixin,
    _dynamic_time_warping,
    _median_filter,
)
from transformers.models.whisper.tokenization_whisper import _combine_tokens_into_words

from quantasr.errors import ArtifactError, RecipeError
from quantasr.speech.whisper import WhisperFacts, WhisperOptions, WhisperTokenizer
from quantasr.speech.whisper.beam import _best
from quantasr.speech.whisper.greedy import loop_period, without_loop
from quantasr.speech.whisper.memory import beam_bytes
from quantasr.speech.whisper.options import language_code, settings
from quantasr.speech.whisper.rules import Rules
from quantasr.speech.whisper.segments import cut
from quantasr.speech.whisper.words import best_path, smoothed

RANDOM = np.random.default_rng(3)
FACTS = WhisperFacts(
    layers=2,
    heads=4,
    head_dim=8,
    vocabulary=90,
    end=20,
    start=21,
    no_timestamps=39,
    no_speech=38,
    prev_sot=37,
    transcribe=36,
    translate=35,
    languages={"en": 22, "de": 23, "fr": 24, "es": 25},
    alignment_heads=((0, 1), (1, 0)),
)
BEGIN = FACTS.timestamp_begin


def _written(length: int) -> list[int]:
    """Text and times as a search might have written them: times never go back."""
    found, time = [], BEGIN
    for _ in range(length):
        if RANDOM.random() < 0.4:
            time = int(RANDOM.integers(time, min(FACTS.vocabulary, time + 4)))
            found.append(time)
        else:
            found.append(int(RANDOM.integers(0, FACTS.end)))
    return found


@pytest.mark.parametrize("latest", [None, 7])
def test_the_grammar_of_times_is_transformers_own(latest: int | None) -> None:
    config = GenerationConfig(eos_token_id=FACTS.end, bos_token_id=FACTS.end)
    config.no_timestamps_token_id, config.max_initial_timestamp_index = FACTS.no_timestamps, latest
    theirs = WhisperTimeStampLogitsProcessor(config, begin_index=3)
    rules = Rules(FACTS, WhisperOptions(max_initial_timestamp_index=latest), timestamps=True)
    for i in range(300):
        written = _written(i % 12)
        scores = RANDOM.normal(0, 3, FACTS.vocabulary).astype(np.float32)
        want = theirs(torch.tensor([[21, 22, 36, *written]]), torch.from_numpy(scores[None].copy()))[0].numpy()
        rules.apply(scores, written)
        np.testing.assert_array_equal(scores, want, err_msg=str(written))


def test_what_is_suppressed() -> None:
    options = WhisperOptions(suppress_tokens=(3, 4), begin_suppress_tokens=(5, FACTS.end))
    rules = Rules(FACTS, options, timestamps=False)
    for written, hidden in (([], {3, 4, 5, FACTS.end}), ([1], {3, 4})):
        scores = np.zeros(FACTS.vocabulary, np.float32)
        rules.apply(scores, written)
        assert set(np.flatnonzero(np.isneginf(scores))) == hidden


def test_windows_are_cut_where_transformers_cuts_them() -> None:
    for i in range(300):
        tokens = _written(i % 14)
        rows = int(RANDOM.integers(50, 101)) * 2
        theirs, advance = WhisperGenerationMixin._retrieve_segment(
            seek_sequence=torch.tensor(tokens, dtype=torch.long),
            seek_outputs=[torch.tensor(tokens, dtype=torch.long)],
            time_offset=torch.tensor([1.5], dtype=torch.float64),
            timestamp_begin=BEGIN,
            seek_num_frames=torch.tensor([rows]),
            time_precision=0.02,
            time_precision_features=0.01,
            input_stride=2,
            prev_idx=0,
            idx=0,
            return_token_timestamps=False,
            decoder_input_ids=torch.zeros((1, 3)),
        )
        ours, ahead = cut(tokens, FACTS, offset=1.5, rows=rows)
        assert ahead == int(advance), tokens
        assert [list(segment.tokens) for segment in ours] == [row["tokens"].tolist() for row in theirs]
        times = [(float(row["start"]), float(row["end"])) for row in theirs]
        # transformers cuts the number of steps of a window of 1.2 s to 59, because 0.01 and 0.02 are no binary numbers.
        np.testing.assert_allclose([(segment.start, segment.end) for segment in ours], times, atol=0.0201)


def test_alignment_is_transformers_own() -> None:
    for rows, columns in ((1, 1), (1, 9), (7, 3), (12, 80)):
        costs = RANDOM.normal(size=(rows, columns))
        np.testing.assert_array_equal(best_path(costs), np.stack(_dynamic_time_warping(costs)))
    weights = torch.from_numpy(RANDOM.random((3, 6, 40)).astype(np.float32)).softmax(-1)
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    want = _median_filter(((weights - mean) / deviation)[None], 7)[0].mean(0)
    np.testing.assert_allclose(smoothed(weights.numpy(), 7), want, atol=1e-4)


@pytest.mark.parametrize(
    "text", ["The “theatre” in Köln, isn't a the-ory (in the 19th c.).", "東京 in the 日本、です。", " a "]
)
@pytest.mark.parametrize("language", ["en", "ja"])
def test_words_are_parted_as_transformers_does(text: str, language: str) -> None:
    theirs = tiny_whisper.make_tokenizer(("en", "de", "ja"))
    end = theirs.get_added_vocab()["<|endoftext|>"]
    ours = WhisperTokenizer(tuple(theirs.convert_ids_to_tokens(range(end + 1))), end)
    ids = theirs.encode(text, add_special_tokens=False)
    names = {"en": "english", "ja": "japanese"}
    words, _, indices = _combine_tokens_into_words(theirs, ids, names[language])
    found = ours.words(ids, language)
    assert [word.text for word in found] == words
    assert [list(range(word.start, word.end)) for word in found] == indices
    assert ours.decode([*ids, end]) == text
    assert WhisperTokenizer.from_dict(ours.to_dict()) == ours


def test_the_best_of_many_scores() -> None:
    for columns in (5, 64, 200, 1000):
        scores = RANDOM.normal(size=(3, columns)).astype(np.float32)
        want = np.argsort(-scores.ravel())[:6]
        found = _best(scores, 6)
        assert [(row, column) for _, row, column in found] == [divmod(int(i), columns) for i in want]


def test_loops_are_seen_and_cut() -> None:
    said = [1, 2, 3, 4, 5]
    assert loop_period([*said * 3, *range(100, 150)], 1000) == 0
    looping = [9, 8, *[1, 2, 3] * 30]
    assert loop_period(looping, 1000) == 3
    assert without_loop(looping, 1000) == (9, 8, 1, 2, 3)
    timed = [token for i in range(40) for token in (1, 2, 500 + i, 500 + i)]
    assert loop_period(timed, 500) == 2
    assert without_loop(timed, 500) == (1, 2)


def test_options_that_cannot_be() -> None:
    decoding = {"layers": 1, "heads": 1, "head_dim": 4, "vocabulary": 50, "start": 21, "end": 20}
    decoding |= {"no_timestamps": 30, "no_speech": 29}
    facts, options = settings({**decoding, "suppress_tokens": [1]}, {"beam_width": 2})
    assert options.suppress_tokens == (1,) and options.beam_width == 2 and not facts.is_multilingual
    for wrong, said in (
        ({"beam": 2}, "no option 'beam'; near it: beam_width"),
        ({"beam_width": 0}, "beam_width is 0"),
        ({"beam_width": "two"}, "wrong type"),
        ({"language": "de"}, "English-only"),
        ({"task": "translate"}, "English-only models only transcribe"),
        ({"task": "sing"}, "'sing' is unknown: transcribe, translate"),
        ({"encode": "half"}, "'half' is unknown: window, audio"),
        ({"word_timestamps": True}, "names no alignment_heads"),
        ({"suppress_tokens": [50]}, "token 50 is not among the 50"),
        ({"temperatures": [-1.0]}, "none below 0"),
        ({"chunk_seconds": 40.0}, "1 to 30 s"),
        ({"no_speech_threshold": 1.0}, "less than 1"),
        ({"logprob_threshold": 0.5}, "below 0"),
    ):
        with pytest.raises(RecipeError, match=said):
            settings(decoding, wrong)
    for name, value in (("start", 60), ("heads", 0), ("median_filter_width", 4), ("colour", "red")):
        with pytest.raises(ArtifactError, match=name):
            settings({**decoding, name: value}, {})
    with pytest.raises(ArtifactError, match="incomplete"):
        settings({"layers": 1}, {})


def test_languages_are_known_by_code_and_name() -> None:
    assert language_code(FACTS, "German") == language_code(FACTS, "de") == "de"
    with pytest.raises(RecipeError, match=r"near it: .*spanish") as caught:
        language_code(FACTS, "spannish")
    assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError, match="this model has it not"):
        language_code(FACTS, "japanese")


def test_what_a_beam_takes() -> None:
    # 3 caches of 2 x 2 layers x 4 heads x 8 x 448 floats, 6 rows of 90 scores.
    assert beam_bytes(FACTS, 5) == 5 * 4 * (3 * 2 * 2 * 4 * 8 * 448 + 6 * 90)
