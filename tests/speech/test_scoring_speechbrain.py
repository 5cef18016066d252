"""Our word error rate beside SpeechBrain's, on the same hypotheses."""

from __future__ import annotations

import random

import pytest

from quantasr.speech.scoring import score

metric_stats = pytest.importorskip("speechbrain.utils.metric_stats")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def edited(words: list[str], edits: int, rng: random.Random) -> list[str]:
    words = list(words)
    for _ in range(edits):
        place = rng.randrange(len(words) + 1)
        kind = rng.choice(("insert", "delete", "substitute"))
        if kind == "insert":
            words.insert(place, rng.choice(WORDS))
        elif place < len(words):
            words[place : place + 1] = [] if kind == "delete" else [rng.choice(WORDS)]
    return words


def test_the_same_rate_as_speechbrains() -> None:
    """With up to two errors a recording, sclite's weights (4, 3, 3) and edit distance have the same least number."""
    rng = random.Random(0)
    references = [rng.choices(WORDS, k=rng.randint(3, 9)) for _ in range(400)]
    hypotheses = [edited(words, rng.randint(0, 2), rng) for words in references]
    stats = metric_stats.ErrorRateStats()
    stats.append(list(range(400)), hypotheses, references)
    theirs = stats.summarize()
    ours = score([" ".join(words) for words in references], [" ".join(words) for words in hypotheses])
    assert ours.counts.errors == theirs["num_edits"] > 200
    assert 100 * ours.rate == pytest.approx(theirs["WER"], abs=1e-9)
