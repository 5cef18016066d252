"""Searching while the speech comes in: weights of silence by hand, best paths so far, and i-vectors that follow."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantasr.errors import ModelLoadError
from quantasr.kaldi.fst import read_fst
from quantasr.kaldi.ivector import load_extractor
from quantasr.kaldi.nnet3.model import read_model
from quantasr.speech.frontend import KaldiFrontend
from quantasr.speech.frontend.kaldi_features import KaldiFeatures
from quantasr.speech.lattice.decoder import LatticeOptions, Search
from quantasr.speech.lattice.files import DecodingFiles, find_graph
from quantasr.speech.lattice.online import SilenceWeights, search_online
from quantasr.speech.lattice.transcriber import LatticeTranscriber

DATA = Path(__file__).parents[1] / "data" / "kaldi"
TRANSITIONS = read_model(DATA / "digits" / "final.mdl").transitions
PDFS = TRANSITIONS.num_pdfs


class BestPath:
    """A search whose best path so far is known."""

    def __init__(self, *tids):
        self.tids = tids

    @property
    def frames(self):
        return len(self.tids)

    def trace_back(self, tids, states):
        tids[:] = self.tids


def test_weights_by_hand():
    silent = np.array([False, True, False])  # transition-id 1 is silence
    search = BestPath()
    weights = SilenceWeights(search, silent, 0.001, subsampling=3)
    assert weights.at(4) == pytest.approx([0.001] * 6)  # nothing is decoded: all is silence, in whole frames of three
    search.tids = (2, 1)
    assert weights.at(9) == pytest.approx([1] * 3 + [0.001] * 6)  # the newest frame tells those behind it
    search.tids = (1, 1, 2)
    assert weights.at(15) == pytest.approx([0.001] * 6 + [1] * 9)  # it has changed its mind about the first


def test_weights_of_long_ago_stay():
    silent = np.array([False, True, False])
    search = BestPath(*[2] * 150)
    weights = SilenceWeights(search, silent, 0.0, subsampling=1)
    assert weights.at(150).sum() == 100  # Kaldi starts 100 frames before the newest that the search had
    search.tids = (1,) * 160
    found = weights.at(170)
    assert not found[60:].any() and found[50:60].all() and not found[:50].any()


@pytest.fixture(scope="module")
def digits():
    files = DecodingFiles(find_graph(DATA / "digits" / "graph"), TRANSITIONS.pdf_of_tid, LatticeOptions(beam=12.0))
    return files.decoder


def test_best_path_so_far_is_the_cheapest(digits):
    scores = np.random.default_rng(3).normal(scale=8, size=(60, PDFS)).astype(np.float32)
    search = Search(digits)
    tids, states = np.zeros(0, np.int32), np.full(0, -1, np.int32)
    for begin in range(0, 60, 7):
        search.advance(scores[begin : begin + 7])
        tids = np.append(tids, np.zeros(search.frames - len(tids), np.int32))
        states = np.append(states, np.full(search.frames - len(states), -1, np.int32))
        search.trace_back(tids, states)
        alone, whole = np.zeros_like(tids), np.full_like(states, -1)
        search.trace_back(alone, whole)  # without what an earlier call found
        np.testing.assert_array_equal(states, whole)
        end = slice(int(search.work.frame[search.frames]), int(search.work.frame[search.frames + 1]))
        least = float(search.work.cost[end].min() - search.work.offset[: search.frames].sum())
        acoustic = -sum(float(row[digits.pdf_of_tid[t]]) for row, t in zip(scores, alone, strict=False))
        cost = acoustic * digits.options.acoustic_scale + graph_cost(alone)
        assert cost == pytest.approx(least, rel=1e-4)


def graph_cost(tids):
    """The least cost of a path through the graph of digits that takes just these transition-ids."""
    fst = read_fst(DATA / "digits" / "graph" / "HCLG.fst")
    weights = fst.arcs.view(np.float32)

    def arcs(state, tid):
        rows = range(fst.first[state], fst.first[state + 1])
        return [(int(fst.arcs[i, 3]), float(weights[i, 2])) for i in rows if fst.arcs[i, 0] == tid]

    def closed(costs):
        pending = list(costs)
        while pending:
            state = pending.pop()
            for to, weight in arcs(state, 0):
                if costs[state] + weight < costs.get(to, np.inf):
                    costs[to] = costs[state] + weight
                    pending.append(to)
        return costs

    costs = closed({fst.start: 0.0})
    for tid in tids:
        after = {}
        for state, cost in costs.items():
            for to, weight in arcs(state, tid):
                after[to] = min(cost + weight, after.get(to, np.inf))
        costs = closed(after)
    return min(costs.values())


def frontend(**changes):
    features = KaldiFeatures(num_ceps=4, use_energy=False)
    extractor = load_extractor(DATA / "ivector")
    return replace(KaldiFrontend(features, 3, 5, ivector_mode="looped", extractor=extractor, chunk=24), **changes)


class Acoustic:
    """A layer over single frames, every third: what is in a row decides what comes out."""

    padded_batches = True

    def __init__(self, front):
        self.front, self.heard = front, []
        columns = front.feature_dim + front.ivector_dim
        self.matrix = np.random.default_rng(5).normal(size=(columns, PDFS)).astype(np.float32)

    def __call__(self, features, lengths):
        self.heard.append(features[0, -1, self.front.feature_dim :])
        middle = features[:, self.front.left_context : lengths[0] - self.front.right_context : 3]
        return middle @ self.matrix, np.array([middle.shape[1]])


def wave(seconds):
    samples = np.arange(int(16000 * seconds))
    noise = np.random.default_rng(2).normal(0, 0.05, len(samples))
    return (noise * (1.2 + np.sin(samples / 3000))).astype(np.float32)


@pytest.mark.parametrize("seconds", [0.05, 0.7, 3.1])
def test_without_silence_it_is_the_whole_recording_at_once(digits, seconds):
    front = frontend(silence_weight=0.001)
    acoustic = Acoustic(front)
    found = search_online(wave(seconds), front, acoustic, digits, np.zeros(len(TRANSITIONS.pdf_of_tid), bool), 3)
    features = front.features(wave(seconds))
    rows = front(wave(seconds), np.ones(len(features), bool))
    expected = digits(Acoustic(front)(rows[None], np.array([len(rows)]))[0][0])
    assert found.frames == expected.frames == -(-len(features) // 3)
    assert found.best_path().alignment == expected.best_path().alignment
    assert found.best_path().total == pytest.approx(expected.best_path().total, rel=1e-4)


def test_silence_changes_the_ivectors(digits):
    front = frontend(silence_weight=0.001)
    heard = []
    for silent in (False, True):
        acoustic = Acoustic(front)
        search_online(wave(3.1), front, acoustic, digits, np.full(len(TRANSITIONS.pdf_of_tid), silent), 3)
        heard.append(np.array(acoustic.heard))
    speech, silence = heard
    np.testing.assert_array_equal(speech[0], silence[0])  # before anything is decoded, all counts as silence
    assert np.abs(speech[2:] - silence[2:]).max() > 10 * np.abs(silence[2:] - silence[0]).max()


def test_a_model_that_gives_nan_is_said_to_be_damaged(digits):
    acoustic = Acoustic(frontend(silence_weight=0.001))
    acoustic.matrix[0] = np.nan
    with pytest.raises(ModelLoadError, match="NaN log-likelihoods"):
        search_online(wave(0.7), acoustic.front, acoustic, digits, np.zeros(len(TRANSITIONS.pdf_of_tid), bool), 3)
    assert not digits.graph.lock.locked()


def test_transcriber_takes_turns_where_silence_is_known(tmp_path):
    front = frontend(silence_weight=0.001)
    silent = np.isin(TRANSITIONS.phone_of_tid, [1])
    files = DecodingFiles(find_graph(DATA / "digits" / "graph"), TRANSITIONS.pdf_of_tid, silent=silent)
    (tmp_path / "kept").mkdir()
    files.copy_to(tmp_path / "kept")
    kept = DecodingFiles.read(files.to_dict(), tmp_path / "kept")
    np.testing.assert_array_equal(kept.silent, silent)
    calls = []
    for decoder in (kept, replace(kept, silent=None)):
        acoustic = Acoustic(front)
        system = LatticeTranscriber(
            acoustic, front, name="x", frame_seconds=0.03, min_samples=front.min_samples, decoder=decoder
        )
        system.transcribe([wave(1.0)])
        calls.append(len(acoustic.heard))
    assert calls == [5, 1]  # 98 frames in chunks of 24, and all at once
