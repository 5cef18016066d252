"""Greedy and beam search of transducers, against the plain loops of the papers and against all that can be said."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
from fake_transducer import FakeTransducer, log_softmax

from quantasr.errors import ModelLoadError, RecipeError
from quantasr.speech.transducer.beam import BeamSearch
from quantasr.speech.transducer.greedy import BLOCK, GreedySearch
from quantasr.speech.transducer.hypothesis import Hypothesis
from quantasr.speech.transducer.network import Network
from quantasr.speech.transducer.options import TransducerOptions

TOKENS = 5
KINDS = [(), (0, 1, 2, 3, 4), (0, 1, 2, 4, 8), (1, 3)]


def fake(rng: np.random.Generator, durations: tuple[int, ...], tokens: int = TOKENS) -> FakeTransducer:
    after = rng.normal(0, 2, (tokens + 1, tokens + 1 + len(durations)))
    return FakeTransducer(after, durations, turn=True)


def encodings(rng: np.random.Generator, model: FakeTransducer, *frames: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.full((len(frames), max(frames), model.after.shape[1]), 99.0, np.float32)  # padding nobody may read
    for row, count in zip(rows, frames, strict=True):
        row[:count] = rng.normal(0, 2, (count, rows.shape[2]))
        row[:count, model.blank] += 1.5
    return rows, np.array(frames)


def plain(model: FakeTransducer, frames: np.ndarray, most: int, penalty: float = 0.0) -> Hypothesis:
    """One frame and one decision after the other (arXiv 1211.3711, and arXiv 2304.06795, algorithm 2)."""
    found, time, here, durations = Hypothesis(heard=len(frames)), 0, 0, model.facts.durations
    while time < len(frames):
        scores = model.scores(frames[time], found.tokens)
        scores[model.blank] -= penalty
        logprobs = log_softmax(scores[: model.blank + 1])
        token = int(logprobs.argmax())
        found.score += logprobs[token]
        lasting = int(token == model.blank)
        if durations:
            sure = log_softmax(scores[model.blank + 1 :])
            lasting = durations[int(sure.argmax())]
            found.score += sure.max()
        if token == model.blank:
            lasting = max(1, lasting)
            found.path.append((token, lasting))
        else:
            found.tokens.append(token)
            found.frames.append(time)
            found.durations.append(lasting if durations else 1)
            found.logprobs.append(logprobs[token])
            here = here + 1 if lasting == 0 else 0
            if here == most:
                lasting = 1
            found.path.append((token, lasting))
        time += lasting
        here = here if lasting == 0 else 0
    return found


def same(mine: Hypothesis, other: Hypothesis) -> None:
    assert (mine.tokens, mine.frames, mine.durations, mine.path, mine.heard) == (
        other.tokens, other.frames, other.durations, other.path, other.heard,
    )  # fmt: skip
    assert mine.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert mine.score == pytest.approx(other.score, rel=1e-4)


@pytest.mark.parametrize("durations", KINDS)
@pytest.mark.parametrize("most", [1, 2, 10])
def test_greedy_is_the_plain_loop_whatever_the_batch_and_the_pieces(durations: tuple[int, ...], most: int) -> None:
    rng = np.random.default_rng(0)
    model = fake(rng, durations)
    options = TransducerOptions(max_symbols=most, blank_penalty=0.25, length_bonus=0.25)
    encoded, counts = encodings(rng, model, 57, 1, 30, 8, 33)
    expected = [plain(model, row[:count], most, 0.5) for row, count in zip(encoded, counts, strict=True)]
    assert len({tuple(one.tokens) for one in expected}) > 3 and len(expected[0].tokens) > 5
    together = GreedySearch(model.network(), options, len(counts))
    together.accept(encoded, counts)
    for mine, other in zip(together.finish(), expected, strict=True):
        same(mine, other)
    for pieces in ([57], [20, 37], [1, 1, 8, 9, 30, 8]):
        alone = GreedySearch(model.network(), options, 1)
        for end, size in zip(np.cumsum(pieces), pieces, strict=True):
            alone.accept(encoded[:1, end - size : end], np.array([size]))
        same(alone.finish()[0], expected[0])


def test_blanks_cost_one_call_for_a_block() -> None:
    model = FakeTransducer(np.zeros((TOKENS + 1, TOKENS + 1)))
    encoded = np.zeros((1, 10 * BLOCK, TOKENS + 1), np.float32)
    encoded[..., model.blank] = 9
    encoded[0, 5 * BLOCK + 3, 2] = 99
    search = GreedySearch(model.network(), TransducerOptions(max_symbols=1), 1)
    search.accept(encoded, np.array([10 * BLOCK]))
    assert search.finish()[0].tokens == [2]
    assert model.calls == {"decoder": 2, "joiner": 11}


@pytest.mark.parametrize("width", [1, 4])
def test_a_model_that_never_gives_a_blank_comes_to_an_end(width: int) -> None:
    model = FakeTransducer(np.zeros((TOKENS + 1, TOKENS + 1)))
    encoded = np.zeros((1, 20, TOKENS + 1), np.float32)
    encoded[..., model.blank] = -1e4
    options = TransducerOptions(max_symbols=3, beam_width=width)
    search = (BeamSearch if width > 1 else GreedySearch)(model.network(), options, 1)
    search.accept(encoded, np.array([20]))
    (found,) = search.finish()
    assert len(found.tokens) == 60
    assert found.frames == sorted(list(range(20)) * 3)


def everything(model: FakeTransducer, frames: np.ndarray, most: int) -> dict[tuple[int, ...], float]:
    """The probability of every string of tokens, over all alignments."""
    durations = model.facts.durations
    found: dict[tuple[int, ...], float] = defaultdict(lambda: -math.inf)

    def walk(time: int, here: int, said: list[int], score: float) -> None:
        if time >= len(frames):
            found[tuple(said)] = float(np.logaddexp(found[tuple(said)], score))
            return
        scores = model.scores(frames[time], said)
        logprobs = log_softmax(scores[: model.blank + 1])
        lasting = log_softmax(scores[model.blank + 1 :]) if durations else np.zeros(1)
        for token, logprob in enumerate(logprobs):
            for duration, sure in zip(durations or (int(token == model.blank),), lasting, strict=True):
                if token == model.blank:
                    walk(time + max(1, duration), 0, said, score + logprob + sure)
                elif here < most:
                    walk(time + duration, 0 if duration else here + 1, [*said, token], score + logprob + sure)

    walk(0, 0, [], 0.0)
    return found


def test_a_beam_wide_enough_finds_the_most_probable_text() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        model = fake(rng, (), tokens=2)
        encoded, counts = encodings(rng, model, 3)
        options = TransducerOptions(beam_width=100, max_symbols=3, score_norm=False)
        search = BeamSearch(model.network(), options, 1)
        search.accept(encoded, counts)
        (found,) = search.finish()
        texts = everything(model, encoded[0], 3)
        best = max(texts, key=lambda text: texts[text])
        assert tuple(found.tokens) == best
        # Alignments with more or fewer tokens on the last frame become one: its limit is felt a little otherwise.
        assert found.score == pytest.approx(texts[best], abs=0.05)


@pytest.mark.parametrize("durations", KINDS[:3])
def test_beams_are_the_same_in_a_batch_and_find_what_is_more_probable(durations: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    model = fake(rng, durations)
    encoded, counts = encodings(rng, model, 21, 3, 40)
    encoded[..., model.blank] += 3  # so that no frame has all the tokens that it may have: greedy leaves it for nothing
    options = TransducerOptions(beam_width=6, score_norm=False)
    together = BeamSearch(model.network(), options, 3)
    together.accept(encoded, counts)
    greedy = GreedySearch(model.network(), options, 3)
    greedy.accept(encoded, counts)
    for row, (batched, one) in enumerate(zip(together.finish(), greedy.finish(), strict=True)):
        alone = BeamSearch(model.network(), options, 1)
        alone.accept(encoded[row : row + 1, : counts[row]], counts[row : row + 1])
        same(batched, alone.finish()[0])
        assert batched.score >= one.score - 1e-4
        assert sum(lasting for _, lasting in batched.path) >= counts[row]
        assert [token for token, _ in batched.path if token != model.blank] == batched.tokens


def test_a_bonus_for_tokens_makes_texts_longer_and_a_malus_shorter() -> None:
    rng = np.random.default_rng(2)
    model = fake(rng, ())
    encoded, counts = encodings(rng, model, 40)
    for width in (1, 4):
        lengths = []
        for bonus in (-3.0, 0.0, 3.0):
            options = TransducerOptions(beam_width=width, length_bonus=bonus, score_norm=False, max_symbols=3)
            search = (BeamSearch if width > 1 else GreedySearch)(model.network(), options, 1)
            search.accept(encoded, counts)
            lengths.append(len(search.finish()[0].tokens))
        assert lengths[0] < lengths[1] < lengths[2]


def test_a_beam_too_wide_for_memory_is_one_line() -> None:
    network = FakeTransducer(np.zeros((TOKENS + 1, TOKENS + 1))).network()
    with pytest.raises(
        RecipeError, match="beam_width is 100000: too wide for memory; with 5 tokens, 4096 is the widest"
    ):
        BeamSearch.check(network, TransducerOptions(beam_width=100_000))
    BeamSearch.check(network, TransducerOptions(beam_width=64))


@pytest.mark.parametrize("width", [1, 4])
def test_scores_that_are_no_numbers_or_of_another_vocabulary(width: int) -> None:
    model = FakeTransducer(np.zeros((TOKENS + 1, TOKENS + 1)))
    search = (BeamSearch if width > 1 else GreedySearch)(model.network(), TransducerOptions(beam_width=width), 1)
    with pytest.raises(ModelLoadError, match="gives NaN scores; its weights or scales are damaged"):
        search.accept(np.full((1, 4, TOKENS + 1), np.nan, np.float32), np.array([4]))
    parts = {"decoder": model.decode, "joiner": model.join}
    other = Network(parts, model.facts, None, TOKENS + 1, "fake")  # type: ignore[arg-type]
    with pytest.raises(ModelLoadError, match="gives 6 outputs, but its tokens and durations are 7: its parts do not"):
        other.join(np.zeros((1, 4, 6), np.float32), np.zeros((1, 6), np.float32))
