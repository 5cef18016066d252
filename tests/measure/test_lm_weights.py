"""Weight and penalty: chosen on one set, reported on another; counted by hand."""

import io
import json

import numpy as np
import pytest
import soundfile
from rich.console import Console

from quantasr.errors import ManifestError, RecipeError
from quantasr.kaldi.fst import SymbolTable
from quantasr.measure.lm_weights import Weights, search_weights
from quantasr.measure.report import speakers_table, weights_table
from quantasr.speech.lattice.decoder import LatticeOptions
from quantasr.speech.lattice.lattice import Lattice
from quantasr.speech.manifest import Utterance

WORDS = SymbolTable(("<eps>", "likely", "loud", "short"))


def two_paths(frames):
    """'likely' (graph 1, acoustic 6), 'loud' (4, 1), and 'short likely' (0.9, 5.9), which has a word more.

    By weight w: 1 + 6/w against 4 + 1/w: 'loud' below w = 5/3.
    """
    ints = lambda *values: np.array(values, np.int32)  # noqa: E731
    floats = lambda *values: np.array(values, np.float32)  # noqa: E731
    return Lattice(
        source=ints(0, 0, 0, 1),
        target=ints(2, 2, 1, 2),
        transition_id=ints(1, 2, 1, 0),
        word=ints(1, 2, 3, 1),
        graph_cost=floats(1, 4, 0.9, 0),
        acoustic_cost=floats(6, 1, 5.9, 0),
        final_cost=floats(np.inf, np.inf, 0),
        frame=ints(0, 1, 1),
        frames=frames,
        words=WORDS,
    )


class Recogniser:
    name, sample_rate = "small", 8000
    options = LatticeOptions(acoustic_scale=0.5)

    def logprobs(self, waves):
        return [np.zeros((1, 2), np.float32) for _ in waves]

    def lattices(self, waves):
        return [two_paths(1) for _ in waves]


@pytest.fixture
def utterances(tmp_path):
    def make(*texts, speakers=()):
        rows = []
        for i, text in enumerate(texts):
            number = len(list(tmp_path.iterdir()))  # no two recordings are the same
            path = tmp_path / f"{number}.wav"
            soundfile.write(path, np.sin(np.arange(800 + 10 * number)) * 0.5, 8000)
            rows.append(Utterance(path.stem, path, text, speaker=speakers[i] if speakers else None))
        return rows

    return make


def test_kaldis_costs(utterances):
    weights = {"lm_weights": [1.0, 2.0, 4.0], "penalties": [-1.0, 0.0, 0.5]}
    found = search_weights(Recogniser(), utterances("likely"), **weights)
    # cost = graph + acoustic / weight + penalty for each word
    for weight, penalty in found.grid.scores:
        costs = {
            "likely": 1 + 6 / weight + penalty,
            "loud": 4 + 1 / weight + penalty,
            "short likely": 0.9 + 5.9 / weight + 2 * penalty,
        }
        wrong = {"likely": 0, "loud": 1, "short likely": 1}[min(costs, key=costs.get)]
        assert found.grid.scores[weight, penalty].counts.errors == wrong
    assert found.grid.own == (2.0, 0.0)
    assert found.chosen == Weights(2.0, 0.5)  # no errors; with the same penalty at 4 too, which is farther away


def test_chosen_on_one_set_and_reported_on_another(utterances):
    tuning, evaluation = utterances("loud", "loud"), utterances("likely", "loud", "loud", speakers=("a", "b", "b"))
    found = search_weights(Recogniser(), evaluation, tuning, lm_weights=[1.0, 4.0], penalties=[0.0])
    assert found.separate and found.chosen == (1.0, 0.0)
    assert {w: s.counts.errors for w, s in found.grid.scores.items()} == {(1.0, 0.0): 0, (4.0, 0.0): 4}
    assert found.result.wer.counts.errors == 1 and found.result.hypotheses == ["loud"] * 3
    assert found.before.hypotheses == ["short likely"] * 3  # the search's own: 2.0, without penalty
    assert found.before.wer.counts.errors == 5 and found.comparison.difference == pytest.approx(-4 / 3)
    assert {name: s.counts.errors for name, s in found.speakers.items()} == {"a": 1, "b": 0}
    row = json.loads(json.dumps(found.to_dict()))
    assert row["chosen"] == {"lm_weight": 1.0, "penalty": 0.0} and not row["chosen_on_the_reported_set"]
    assert row["speakers"]["a"]["rate"] == 1.0 and len(row["grid"]) == 2


def test_the_same_set_is_said_to_be_so(utterances, tmp_path):
    found = search_weights(Recogniser(), utterances("loud", ""))
    assert not found.separate and found.to_dict()["chosen_on_the_reported_set"] and not found.speakers
    assert len(found.grid.scores) == 33 and {w.lm_weight for w in found.grid.scores} >= {1.4, 2.0, 3.4}
    screen = io.StringIO()
    Console(file=screen, width=200).print(weights_table(found))
    assert (
        "THE SAME SPEECH" in screen.getvalue()
        and f"* {100 * found.grid.scores[found.chosen].rate:.2f} %" in screen.getvalue()
    )
    found.save_utterances(tmp_path / "rows.jsonl")
    first = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])
    assert first["reference"] == "loud" and "LM weight" in first["system"]


def test_speakers_without_words_have_no_rate(utterances):
    rows = utterances("loud", "", "likely", speakers=("a", "quiet", None))
    found = search_weights(Recogniser(), rows, lm_weights=[1.0], penalties=[0.0])
    assert {name: s.counts.errors for name, s in found.speakers.items()} == {"a": 0, "?": 1}
    screen = io.StringIO()
    Console(file=screen, width=200).print(speakers_table(found.speakers))
    assert "100.00 %" in screen.getvalue()


def test_another_decoder(utterances):
    found = search_weights(
        Recogniser(), utterances("loud"), decode=lambda _: Lattice.empty(1, WORDS), lm_weights=[1.0], unit="character"
    )
    assert found.result.hypotheses == [""] and found.score(found.result).counts.deletions == 4


def test_what_is_refused(utterances, tmp_path):
    rows = utterances("loud", "loud")
    with pytest.raises(ManifestError, match="1 of 1 tuning utterances are in the evaluation manifest too"):
        search_weights(Recogniser(), rows, rows[:1])
    for wrong in ({"lm_weights": [0.0]}, {"lm_weights": []}, {"penalties": []}, {"lm_weights": [float("nan")]}):
        with pytest.raises(RecipeError, match="weights above 0"):
            search_weights(Recogniser(), rows, **wrong)
    with pytest.raises(ManifestError, match="no utterances"):
        search_weights(Recogniser(), [])
    broken = Utterance("broken", tmp_path / "not there.wav", "x")
    assert list(search_weights(Recogniser(), [*rows, broken], lm_weights=[1.0]).failures) == ["broken"]
