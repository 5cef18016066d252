"""Prefix probabilities of CTC: by hand, by listing every alignment, and frame by frame."""

from __future__ import annotations

from itertools import groupby, product

import numpy as np
import pytest

from quantasr.speech.seq2seq.ctc_prefix import NEVER, CtcPrefix

BLANK, END = 0, 3


def listed(probabilities: np.ndarray, prefix: tuple[int, ...], whole: bool = False) -> float:
    """Probability that the text begins with ``prefix`` (or is it), from all alignments; the end has no frames."""
    total = 0.0
    for path in product(range(probabilities.shape[1]), repeat=len(probabilities)):
        text = tuple(token for token, _ in groupby(path) if token != BLANK)
        if text == prefix if whole else text[: len(prefix)] == prefix:
            total += float(np.prod(probabilities[range(len(path)), path]))
    return total


def test_by_hand() -> None:
    """Two frames, tokens a = 1 and b = 2, with 0.6 for the blank, 0.3 for a and 0.1 for b in both."""
    prefix = CtcPrefix(np.log([[0.6, 0.3, 0.1, 1e-30]] * 2).astype(np.float32), BLANK, END, 1)
    first = np.exp(prefix.score(np.array([END])))[0]
    # a: a at once and then anything, or a blank and then a.
    np.testing.assert_allclose(first[[1, 2]], [0.3 + 0.6 * 0.3, 0.1 + 0.6 * 0.1], rtol=1e-5)
    assert first[END] == pytest.approx(0.6 * 0.6, rel=1e-5)  # nothing but blanks
    assert first[BLANK] == 0
    prefix.advance(np.array([0]), np.array([1]))
    second = np.exp(prefix.score(np.array([1])))[0]
    # After an a: b follows in one path; a second a has no blank between; the text is a in the other three.
    np.testing.assert_allclose(second[[1, 2]], [0, 0.3 * 0.1 / 0.48], atol=1e-6)
    assert second[END] == pytest.approx((0.3 * 0.3 + 0.3 * 0.6 + 0.6 * 0.3) / 0.48, rel=1e-5)


def test_every_alignment() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3) / 2, 6)
    logprobs = np.log(np.concatenate([probabilities, np.full((6, 1), 1e-30)], 1)).astype(np.float32)
    texts = [(1, 2, 1), (1, 1, 2), (2, 2, 2), (2, 1, 1)]
    prefix = CtcPrefix(logprobs, BLANK, END, len(texts))
    total, last = np.zeros(len(texts)), np.full(len(texts), END)
    rows = np.arange(len(texts))
    for i in range(3):
        scores = prefix.score(last)
        for row, text in enumerate(texts):
            before = listed(probabilities, text[:i])
            assert np.exp(scores[row, END]) * before == pytest.approx(listed(probabilities, text[:i], True), rel=1e-4)
            for token in (1, 2):
                expected = listed(probabilities, (*text[:i], token))
                assert np.exp(scores[row, token]) * before == pytest.approx(expected, rel=1e-4, abs=1e-9)
        last = np.array([text[i] for text in texts])
        total += scores[rows, last]
        prefix.advance(rows, last)
    np.testing.assert_allclose(np.exp(total), [listed(probabilities, text) for text in texts], rtol=1e-4)


def test_rows_go_on_with_the_prefixes_that_they_are_given() -> None:
    logprobs = np.log(np.random.default_rng(1).dirichlet(np.ones(5), 9)).astype(np.float32)
    two, one = CtcPrefix(logprobs, BLANK, END, 2), CtcPrefix(logprobs, BLANK, END, 1)
    two.score(np.array([END, END]))
    one.score(np.array([END]))
    two.advance(np.array([1, 1]), np.array([2, 4]))
    one.advance(np.array([0]), np.array([4]))
    both, alone = two.score(np.array([2, 4])), one.score(np.array([4]))
    np.testing.assert_allclose(both[1], alone[0], atol=1e-12)
    two.advance(np.array([1, 0]), np.array([1, 1]))
    one.advance(np.array([0]), np.array([1]))
    np.testing.assert_allclose(two.score(np.array([1, 1]))[0], one.score(np.array([1]))[0], atol=1e-12)


def test_candidates_alone_happen() -> None:
    logprobs = np.log(np.random.default_rng(2).dirichlet(np.ones(6), 8)).astype(np.float32)
    prefix, every = CtcPrefix(logprobs, BLANK, END, 2), CtcPrefix(logprobs, BLANK, END, 2)
    last = np.array([END, END])
    some, all_ = prefix.score(last, candidates=np.array([[1, 4], [5, 2]])), every.score(last)
    np.testing.assert_array_equal(some[0, [1, 4, END]], all_[0, [1, 4, END]])
    assert (some[0, [2, 5, BLANK]] == NEVER).all() and (some[1, [1, 4]] == NEVER).all()


def test_what_is_next_to_impossible_keeps_its_digits() -> None:
    """Probabilities far below the smallest number, for which the product of matrices has nothing left."""
    logprobs = np.full((4, 4), -2000.0, np.float32)
    logprobs[:, BLANK] = 0
    scores = CtcPrefix(logprobs, BLANK, END, 1).score(np.array([END]))
    assert scores[0, 1] == pytest.approx(-2000 + np.log(4), abs=1e-6)


def test_texts_longer_than_the_recording_are_out_of_question() -> None:
    logprobs = np.log(np.random.default_rng(3).dirichlet(np.ones(4), 2)).astype(np.float32)
    prefix, last = CtcPrefix(logprobs, BLANK, END, 1), np.array([END])
    for token in (1, 2, 1):
        scores = prefix.score(last)
        last = np.array([token])
        prefix.advance(np.array([0]), last)
    assert scores[0, 1] < -1e19
    assert np.isfinite(prefix.score(last)).all()


@pytest.mark.parametrize("window", [0, 2])
def test_speechbrain_says_the_same(window: int) -> None:
    speechbrain = pytest.importorskip("speechbrain.decoders.ctc")
    import torch

    rng, rows = np.random.default_rng(4), 3
    logprobs = np.log(rng.dirichlet(np.ones(7), 12)).astype(np.float32)
    theirs = speechbrain.CTCPrefixScore(torch.from_numpy(logprobs.copy())[None], torch.tensor([12]), BLANK, END, window)
    ours = CtcPrefix(logprobs, BLANK, END, rows, window)
    last, states = np.full(rows, 1), None
    for step in range(5):
        attention = rng.dirichlet(np.ones(12) / 3, rows).astype(np.float32)
        candidates = None if step % 2 else rng.permuted(np.tile(np.arange(7), (rows, 1)), axis=1)[:, :4].copy()
        wanted, states = theirs.forward_step(
            torch.from_numpy(last),
            states,
            None if candidates is None else torch.from_numpy(candidates),
            torch.from_numpy(attention),
        )
        found = ours.score(last, attention, candidates)
        clear = (wanted.numpy() > -1e10) & (found > -1e10)
        assert clear[:, END].all() or window
        np.testing.assert_array_equal(wanted.numpy() > -1e10, found > -1e10)
        np.testing.assert_allclose(found[clear], wanted.numpy()[clear], atol=2e-4)
        chosen = np.array([1, 2, 4]) if candidates is None else candidates[:, 0]
        chosen = np.where(chosen == BLANK, 1 if candidates is None else candidates[:, 1], chosen)
        order = np.array([2, 0, 0])
        last = chosen[order]
        states = theirs.permute_mem(states, torch.from_numpy(order * 7 + last)[None])
        ours.advance(order, last)
