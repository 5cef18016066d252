"""Word counts against NIST's sclite: those it gave once, and those it gives where it is installed."""

import importlib.util
import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from quantasr.speech.scoring import align, score_pair

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = [json.loads(line) for line in (ROOT / "tests/data/sclite_golden.jsonl").read_text().splitlines()]


def csdi(reference, hypothesis):
    counts = score_pair(reference, hypothesis)
    return [counts.correct, counts.substitutions, counts.deletions, counts.insertions]


def test_the_golden_file_has_errors_of_every_kind():
    assert len(GOLDEN) >= 400
    assert Counter(row["set"] for row in GOLDEN)["real"] >= 200
    totals = [sum(column) for column in zip(*(row["csdi"] for row in GOLDEN), strict=True)]
    assert min(totals) > 500
    assert sum(not row["hypothesis"] for row in GOLDEN) >= 5
    assert sum(not row["reference"] for row in GOLDEN) >= 3
    assert sum(a == b for row in GOLDEN for a, b in pairwise(row["hypothesis"].split())) > 100  # repeated words


def test_counts_are_those_of_sclite():
    different = [row for row in GOLDEN if csdi(row["reference"], row["hypothesis"]) != row["csdi"]]
    assert different == []


def test_alignments_have_the_counts_of_sclite():
    for row in GOLDEN:
        pairs = align(row["reference"], row["hypothesis"])
        assert [left for left, _ in pairs if left is not None] == row["reference"].split()
        assert [right for _, right in pairs if right is not None] == row["hypothesis"].split()
        kinds = Counter(
            "I" if left is None else "D" if right is None else "C" if left == right else "S" for left, right in pairs
        )
        assert [kinds[kind] for kind in "CSDI"] == row["csdi"]


def test_counts_are_those_of_sclite_here_and_now():
    spec = importlib.util.spec_from_file_location("sclite_agreement", ROOT / "benchmarks/sclite_agreement.py")
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    sclite = benchmark.find_sclite()
    if sclite is None:
        pytest.skip("sclite is not installed (Debian: sctk)")
    sentences = benchmark.read_sentences([benchmark.GOLDEN])
    rng = random.Random(20)  # other errors than in the golden file
    pairs = benchmark.edited_pairs(rng, sentences, 300) + benchmark.harsh_pairs(rng, 300)
    truth = benchmark.run_sclite(sclite, pairs)
    assert [tuple(csdi(*pair)) for pair in pairs] == truth
    golden = [(row["reference"], row["hypothesis"]) for row in GOLDEN]
    assert [list(counts) for counts in benchmark.run_sclite(sclite, golden)] == [row["csdi"] for row in GOLDEN]
