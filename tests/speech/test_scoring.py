"""Counts worked by hand, intervals against another implementation, and two systems compared."""

import json
import random

import kaldialign
import numpy as np
import pytest

from quantasr.speech.scoring import (
    ErrorCounts,
    PairedComparison,
    Score,
    align,
    by_group,
    compare,
    compare_scores,
    score,
    score_pair,
)
from quantasr.speech.text import ScoringError


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("the cat sat", "the cat sat", (0, 0, 0, 3)),
        ("the cat sat", "the dog sat", (1, 0, 0, 3)),
        ("the cat sat", "the sat", (0, 1, 0, 3)),
        ("the cat sat", "the the cat sat", (0, 0, 1, 3)),
        ("the cat sat", "", (0, 3, 0, 3)),
        ("", "the cat", (0, 0, 2, 0)),
        ("", "", (0, 0, 0, 0)),
        ("  the\tcat \n sat", "the cat sat ", (0, 0, 0, 3)),
        ("The cat", "the cat", (1, 0, 0, 2)),
        # Three substitutions tie with two insertions, two deletions and a correct word: sclite takes the former.
        ("a b c", "c x y", (3, 0, 0, 3)),
        ("größe naïve", "grösse naïve", (1, 0, 0, 2)),
    ],
)
def test_words(reference, hypothesis, expected):
    counts = score_pair(reference, hypothesis)
    assert (counts.substitutions, counts.deletions, counts.insertions, counts.reference_length) == expected
    assert counts.errors == sum(expected[:3])
    assert counts.correct == expected[3] - expected[0] - expected[1]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("kitten", "sitting", (2, 0, 1, 6)),
        ("a cat", "acat", (0, 1, 0, 5)),  # the space is a character
        ("a  cat ", "a cat", (0, 0, 0, 5)),  # but a second one is not
        ("abc", "", (0, 3, 0, 3)),
        ("", "ab", (0, 0, 2, 0)),
        ("größe", "grosse", (2, 0, 1, 5)),
    ],
)
def test_characters(reference, hypothesis, expected):
    counts = score_pair(reference, hypothesis, "character")
    assert (counts.substitutions, counts.deletions, counts.insertions, counts.reference_length) == expected


def test_a_corpus_is_all_errors_over_all_words():
    result = score(["a b c d", "a", ""], ["a x c", "a", "y"])
    assert result.counts == ErrorCounts(1, 1, 1, 5)
    assert result.utterances == (ErrorCounts(1, 1, 0, 4), ErrorCounts(0, 0, 0, 1), ErrorCounts(0, 0, 1, 0))
    assert result.rate == 3 / 5  # and not the mean of the utterances' rates
    assert [u.rate for u in result.utterances] == [0.5, 0.0, float("inf")]
    assert str(result.counts) == "60.00 % (S 1 + D 1 + I 1 of 5)"
    assert str(result).startswith("60.00 % [")
    row = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (row["rate"], row["utterances"], row["insertions"], row["unit"]) == (0.6, 3, 1, "word")


def test_what_cannot_be_scored():
    with pytest.raises(ScoringError, match="the references of all 2 utterances are empty"):
        score(["", " "], ["a", ""])
    with pytest.raises(ScoringError, match="there are no utterances to score"):
        score([], [])
    with pytest.raises(ScoringError, match="2 references but 1 hypotheses"):
        score(["a", "b"], ["a"])
    with pytest.raises(ScoringError, match="unit 'phone' is unknown: choose 'word' or 'character'"):
        score(["a"], ["a"], "phone")  # type: ignore[arg-type]


def corpus(count, share, seed):
    """References, and hypotheses with a share of the words wrong (substitutions alone, so no ties)."""
    rng = random.Random(seed)
    references = [" ".join(rng.choices("abcdefgh", k=rng.randint(3, 20))) for _ in range(count)]
    hypotheses = [" ".join(w if rng.random() > share else "x" for w in text.split()) for text in references]
    return references, hypotheses


def test_the_interval_is_the_one_of_bisani_and_ney():
    references, hypotheses = corpus(300, 0.15, seed=1)
    result = score(references, hypotheses)
    low, high = result.interval
    truth = kaldialign.bootstrap_wer_ci([r.split() for r in references], [h.split() for h in hypotheses])
    assert result.rate == pytest.approx(truth["wer"], abs=2e-4)
    # Theirs is 1.96 standard deviations, this percentiles; both from 10,000 resamples.
    assert low == pytest.approx(truth["ci95min"], abs=1e-3)
    assert high == pytest.approx(truth["ci95max"], abs=1e-3)
    assert score(references, hypotheses).interval == (low, high)
    assert score(references, hypotheses, seed=1).interval != (low, high)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(300):
        wrong = rng.binomial(10, 0.1, size=80)
        low, high = Score("word", tuple(ErrorCounts(int(w), 0, 0, 10) for w in wrong), 500, seed).interval
        covered += low <= 0.1 <= high
    assert 0.90 <= covered / 300 <= 0.985


def test_intervals_at_the_edges():
    assert score(["a b"], ["a x"]).interval == (0.5, 0.5)
    assert score(["a b", "c"], ["a b", "c"]).interval == (0.0, 0.0)
    # Nearly all references empty: resamples without any word have no rate and do not count.
    few = score(["a b", *[""] * 30], ["a x", *[""] * 30])
    assert few.interval == (0.5, 0.5)


def test_resampling_in_parts_gives_the_same_length(monkeypatch):
    monkeypatch.setattr("quantasr.speech.scoring._CELLS", 1000)
    references, hypotheses = corpus(300, 0.15, seed=1)
    low, high = score(references, hypotheses).interval
    assert high - low == pytest.approx(0.024, abs=0.003)


def test_two_systems():
    references, worse = corpus(200, 0.2, seed=2)
    # b mends a third of a's errors and makes none of its own.
    rng = random.Random(3)
    better = [
        " ".join(r if h != r and rng.random() < 1 / 3 else h for r, h in zip(left.split(), right.split(), strict=True))
        for left, right in zip(references, worse, strict=True)
    ]
    result = compare(references, worse, better)
    assert isinstance(result, PairedComparison)
    assert result.difference == pytest.approx(result.b.rate - result.a.rate)
    assert result.interval[0] < result.difference < result.interval[1] < 0
    assert (result.probability_better, result.probability_worse) == (1.0, 0.0)
    assert result.worse == 0
    assert result.better == sum(left != right for left, right in zip(worse, better, strict=True))
    assert result.better + result.equal == 200
    # Pairing is the point: the difference is known better than either rate.
    assert result.interval[1] - result.interval[0] < 0.7 * (result.a.interval[1] - result.a.interval[0])
    truth = kaldialign.bootstrap_wer_ci(*([t.split() for t in texts] for texts in (references, worse, better)))
    assert truth["p_s2_improv_over_s1"] == 1.0
    back = compare(references, better, worse)
    assert back.difference == -result.difference
    assert back.interval == pytest.approx((-result.interval[1], -result.interval[0]))
    assert (back.better, back.worse, back.probability_worse) == (0, result.better, 1.0)
    json.dumps(result.to_dict(), allow_nan=False)


def test_two_systems_as_good_as_each_other():
    references, a = corpus(200, 0.2, seed=4)
    same = compare(references, a, a)
    assert (same.difference, same.interval) == (0.0, (0.0, 0.0))
    assert (same.probability_better, same.probability_worse, same.equal) == (0.0, 0.0, 200)
    rng = random.Random(5)
    b = [" ".join(w if rng.random() > 0.2 else "x" for w in text.split()) for text in references]
    other = compare(references, a, b)
    assert other.interval[0] < 0 < other.interval[1]
    truth = kaldialign.bootstrap_wer_ci(*([t.split() for t in texts] for texts in (references, a, b)))
    assert other.probability_better == pytest.approx(truth["p_s2_improv_over_s1"], abs=0.02)


def test_scores_of_different_references_are_not_compared():
    with pytest.raises(ScoringError, match="scored on different references"):
        compare_scores(score(["a b"], ["a"]), score(["a"], ["a"]))
    with pytest.raises(ScoringError, match="scored on different references"):
        compare_scores(score(["a"], ["a"]), score(["a"], ["a"], "character"))


def test_by_group():
    result = score(["a b", "c d", "e f g"], ["a x", "c d", "e"])
    groups = by_group(result, ["ann", "bob", "ann"])
    assert list(groups) == ["ann", "bob"]
    assert groups["ann"].counts == ErrorCounts(1, 2, 0, 5)
    assert groups["bob"].rate == 0.0
    assert sum((g.counts for g in groups.values()), ErrorCounts(0, 0, 0, 0)) == result.counts
    with pytest.raises(ScoringError, match="2 groups for 3 utterances"):
        by_group(result, ["ann", "bob"])
    with pytest.raises(ScoringError, match="group 'bob': the references of all 1 utterances are empty"):
        by_group(score(["a", ""], ["a", "x"]), ["ann", "bob"])


def test_align():
    assert align("the cat sat", "the cat sat") == [("the", "the"), ("cat", "cat"), ("sat", "sat")]
    assert align("a b c", "a x c d") == [("a", "a"), ("b", "x"), ("c", "c"), (None, "d")]
    assert align("a b", "") == [("a", None), ("b", None)]
    assert align("", "a") == [(None, "a")]
    assert align("", "") == []


def test_a_long_recording_as_one_utterance():
    rng = random.Random(0)
    words = rng.choices("abcdefghijklmnopqrstuvwxyz", k=3000)
    heard = [word for number, word in enumerate(words) if number % 10]
    counts = score_pair(" ".join(words), " ".join(heard))
    assert counts == ErrorCounts(0, 300, 0, 3000)
