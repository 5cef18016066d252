"""The training script: sets that never share a recording, the same for a seed, and errors counted right."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "train_digits.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_digits", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_digits"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def corpus(script):
    """Two speakers, every take of two digits; the text of each names the take it is."""
    tone = np.sin(np.arange(2000, dtype=np.float32) / 5)
    return [
        script.Recording(f"{digit}/{take}", speaker, take, (tone,))
        for speaker in ("ann", "bob")
        for take in range(50)
        for digit in range(2)
    ]


def takes(examples) -> set[int]:
    return {int(word.partition("/")[2]) for example in examples for word in example.text.split()}


def test_each_set_is_made_of_its_own_takes(script, corpus):
    assert takes(script.fixed_set(corpus, "evaluation", 0)) == set(range(5))
    assert takes(script.fixed_set(corpus, "calibration", 0)) == set(range(5, 10))
    assert takes(script.fixed_set(corpus, "validation", 0)) == set(range(10, 15))
    part = [r for r in corpus if r.take in script.TAKES["training"]]
    batches = list(script.training_batches(part, 4, seed=0, first=0, steps=24))
    assert [len(batch) for batch in batches] == [4] * 24
    assert takes(e for batch in batches for e in batch) <= set(range(15, 50))


def test_a_seed_gives_the_same_strings(script, corpus):
    one, two, other = (script.fixed_set(corpus, "calibration", seed) for seed in (0, 0, 1))
    assert all(a.text == b.text and np.array_equal(a.wave, b.wave) for a, b in zip(one, two, strict=True))
    assert [e.text for e in one] != [e.text for e in other]


def test_resumed_training_sees_the_batches_it_would_have_seen(script, corpus):
    whole = list(script.training_batches(corpus, 2, seed=0, first=0, steps=24))
    resumed = list(script.training_batches(corpus, 2, seed=0, first=16, steps=24))
    assert [[e.text for e in batch] for batch in resumed] == [[e.text for e in batch] for batch in whole[16:]]


def test_a_string_has_gaps_of_the_length_promised(script):
    waves = [np.ones(800, np.float32)] * 3  # 0.1 s each
    for seed in range(20):
        joined = script.string_together(waves, np.random.default_rng(seed))
        assert 0.3 + 2 * 0.05 + 2 * 0.05 <= len(joined) / 8000 <= 0.3 + 2 * 0.2 + 2 * 0.4
        assert np.abs(joined).max() == pytest.approx(0.7)


def test_word_errors_are_counted(script):
    counts = script.word_errors(["one two three", "four"], ["one too three four", ""])
    assert counts == {"sub": 1, "del": 1, "ins": 1, "words": 4}
    assert script.wer(counts) == pytest.approx(75)
