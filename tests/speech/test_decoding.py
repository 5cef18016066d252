"""The greedy decoder against transformers' processor: text, word offsets, score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_tokenizer import LETTERS, pair

from quantasr.speech.decoding import Decoded, GreedyDecoder, collapse, decode
from quantasr.speech.tokenizer import Tokenizer


def random_logprobs(rng: np.random.Generator, frames: int, tokens: int, blank: int) -> np.ndarray:
    """Peaky and full of blanks and repeats, as a CTC model's output is."""
    logits = rng.normal(size=(frames, tokens)) * 2
    logits[:, blank] += 2
    logits[:, 4] += 1
    logits = np.repeat(logits, rng.integers(1, 4, size=frames), axis=0)[:frames]
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)


@pytest.mark.parametrize("lowercase", [False, True])
def test_text_and_word_offsets_equal_transformers(tmp_path: Path, lowercase: bool) -> None:
    theirs, ours = pair(tmp_path, LETTERS, lowercase=lowercase)
    rng = np.random.default_rng(0)
    for _ in range(200):
        logprobs = random_logprobs(rng, int(rng.integers(1, 80)), len(LETTERS), ours.blank_id)
        expected = theirs.decode(logprobs.argmax(1), output_word_offsets=True)
        found = decode(GreedyDecoder(), ours, logprobs)
        assert found.text == expected.text
        words = [(w["word"], w["start_offset"], w["end_offset"]) for w in expected.word_offsets]
        if lowercase:  # transformers leaves the words of the offsets in upper case
            words = [(word.lower(), start, end) for word, start, end in words]
        assert list(found.words) == words
        assert found.score == pytest.approx(logprobs.max(1).mean(), abs=1e-5)
        assert found.frames == len(logprobs)


def test_a_stream_in_pieces_is_the_whole() -> None:
    tokenizer = Tokenizer(tuple(LETTERS), 0)
    rng = np.random.default_rng(1)
    for _ in range(50):
        logprobs = random_logprobs(rng, 60, len(LETTERS), 0)
        stream = GreedyDecoder().stream(tokenizer)
        for part in np.split(logprobs, np.sort(rng.integers(0, 61, size=5))):
            stream.accept(part)
        whole, pieces = decode(GreedyDecoder(), tokenizer, logprobs), stream.finish()
        assert (pieces.text, pieces.words, pieces.frames) == (whole.text, whole.words, whole.frames)
        assert pieces.score == pytest.approx(whole.score)


def test_nothing_decodes_to_nothing() -> None:
    tokenizer = Tokenizer(("-", "|", "a"), 0)
    assert decode(GreedyDecoder(), tokenizer, np.zeros((0, 3), np.float32)) == Decoded("", (), None, 0)
    silence = np.log(np.tile(np.array([[0.98, 0.01, 0.01]], np.float32), (7, 1)))
    found = decode(GreedyDecoder(), tokenizer, silence)
    assert (found.text, found.words, found.frames) == ("", (), 7)


def test_collapse_counts_frames() -> None:
    assert collapse(np.array([5, 5, 0, 5, 2]), offset=10).tolist() == [
        [5, 10, 12],
        [0, 12, 13],
        [5, 13, 14],
        [2, 14, 15],
    ]
