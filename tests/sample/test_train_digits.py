"""The training script: sets that never share a recording, the same for a seed, and errors counted right."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def training():
    """``train_digits``, which finds ``digit_strings`` beside it as it does when run as a script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module("train_digits")
        del sys.modules["train_digits"], sys.modules["digit_training"], sys.modules["digit_strings"]


@pytest.fixture(scope="module")
def strings(training):
    return sys.modules["digit_strings"]


@pytest.fixture(scope="module")
def corpus(strings):
    """Two speakers, every take of two digits; the text of each names the take it is."""
    tone = np.sin(np.arange(2000, dtype=np.float32) / 5)
    return [
        strings.Recording(f"{digit}/{take}", speaker, take, (tone,))
        for speaker in ("ann", "bob")
        for take in range(50)
        for digit in range(2)
    ]


def takes(examples) -> set[int]:
    return {int(word.partition("/")[2]) for example in examples for word in example.text.split()}


def test_each_set_is_made_of_its_own_takes(strings, corpus):
    assert takes(strings.fixed_set(corpus, "evaluation", 0)) == set(range(5))
    assert takes(strings.fixed_set(corpus, "calibration", 0)) == set(range(5, 10))
    assert takes(strings.fixed_set(corpus, "validation", 0)) == set(range(10, 15))
    part = [r for r in corpus if r.take in strings.TAKES["training"]]
    batches = list(strings.training_batches(part, 4, seed=0, first=0, steps=24))
    assert [len(batch) for batch in batches] == [4] * 24
    assert takes(e for batch in batches for e in batch) <= set(range(15, 50))


def test_a_seed_gives_the_same_strings(strings, corpus):
    one, two, other = (strings.fixed_set(corpus, "calibration", seed) for seed in (0, 0, 1))
    assert all(a.text == b.text and np.array_equal(a.wave, b.wave) for a, b in zip(one, two, strict=True))
    assert [e.text for e in one] != [e.text for e in other]


def test_resumed_training_sees_the_batches_it_would_have_seen(strings, corpus):
    whole = list(strings.training_batches(corpus, 2, seed=0, first=0, steps=24))
    resumed = list(strings.training_batches(corpus, 2, seed=0, first=16, steps=24))
    assert [[e.text for e in batch] for batch in resumed] == [[e.text for e in batch] for batch in whole[16:]]


def test_a_string_has_gaps_of_the_length_promised(strings):
    waves = [np.ones(800, np.float32)] * 3  # 0.1 s each
    for seed in range(20):
        joined = strings.string_together(waves, np.random.default_rng(seed))
        assert 0.3 + 2 * 0.05 + 2 * 0.05 <= len(joined) / 8000 <= 0.3 + 2 * 0.2 + 2 * 0.4
        assert np.abs(joined).max() == pytest.approx(0.7)


def test_word_errors_are_counted(training):
    counts = training.word_errors(["one two three", "four"], ["one too three four", ""])
    assert counts == {"sub": 1, "del": 1, "ins": 1, "words": 4}
    assert training.wer(counts) == pytest.approx(75)


def test_the_learning_rate_rises_then_falls(strings):
    assert strings.schedule(0, 400) == pytest.approx(1 / 20)
    assert strings.schedule(20, 400) == pytest.approx(1)
    assert strings.schedule(210, 400) == pytest.approx(0.01 + 0.99 / 2)
    assert strings.schedule(400, 400) == pytest.approx(0.01)
