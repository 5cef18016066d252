"""Determinized lattices, their n best paths and minimum Bayes risk: real Kaldi's, and numbers worked by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantasr.errors import ModelLoadError
from quantasr.kaldi.nnet3.model import read_model
from quantasr.speech.lattice.align import align_words, read_boundaries
from quantasr.speech.lattice.archives import read_lattice
from quantasr.speech.lattice.compact import CompactLattice
from quantasr.speech.lattice.decoder import LatticeOptions
from quantasr.speech.lattice.determinize import determinize
from quantasr.speech.lattice.lattice import Lattice
from quantasr.speech.lattice.mbr import minimum_bayes_risk

DATA = Path(__file__).parents[1] / "data" / "kaldi"
GOLDEN = DATA / "golden"
RISKS = json.loads((GOLDEN / "mbr.json").read_text())


@pytest.fixture(scope="module")
def raw():
    """A lattice by Kaldi that is not determinized."""
    return read_lattice((GOLDEN / "lattice.txt").read_text().splitlines(), "here", 1.0, None)


def _lattice(arcs, final, scale=1.0):
    """Arcs are (from, to, transition-id, word, graph cost, acoustic cost); ``final``: costs by state."""
    columns = list(zip(*sorted(arcs), strict=True))
    states = max(*columns[1], *final) + 1
    ends = np.full(states, np.inf, np.float32)
    frame = np.zeros(states, np.int32)
    for source, target, tid, *_ in sorted(arcs):
        frame[target] = frame[source] + (tid > 0)
    for state, cost in final.items():
        ends[state] = cost
    ints = [np.array(column, np.int32) for column in columns[:4]]
    floats = [np.array(column, np.float32) for column in columns[4:]]
    return Lattice(*ints, *floats, ends, frame, int(frame.max()), acoustic_scale=scale)


def _kaldis_paths(text):
    """Words -> (graph cost, acoustic cost, alignment) of a text lattice that is determinized."""
    arcs, final = {}, {}
    for line in text.strip().split("\n")[1:]:
        state, *rest = line.split("\t")
        graph, acoustic, tids = rest[-1].split(",")
        weight = float(graph), float(acoustic), tuple(int(t) for t in tids.split("_") if t)
        if len(rest) == 1:
            final[int(state)] = weight
        else:
            arcs.setdefault(int(state), []).append((int(rest[0]), int(rest[1]), weight))
    found, open_paths = {}, [(0, (), (0.0, 0.0, ()))]
    while open_paths:
        state, words, so_far = open_paths.pop()
        if state in final:
            found[words] = tuple(a + b for a, b in zip(so_far, final[state], strict=True))
        for to, word, weight in arcs.get(state, ()):
            open_paths.append((to, (*words, word), tuple(a + b for a, b in zip(so_far, weight, strict=True))))
    return found


# ---- determinization ----


def test_every_path_is_kaldis(raw):
    theirs = _kaldis_paths((GOLDEN / "determinized.txt").read_text())
    found = determinize(raw, 4.0)
    assert len(theirs) > 100 and len(found.source) == 74
    ours = {path.words: path for path in found.n_best(10 * len(theirs))}
    assert ours.keys() == theirs.keys()
    for words, (graph, acoustic, alignment) in theirs.items():
        assert ours[words].alignment == alignment
        np.testing.assert_allclose((ours[words].graph_cost, ours[words].acoustic_cost), (graph, acoustic), atol=1e-3)


def test_paths_come_best_first_and_the_best_is_the_lattices(raw):
    found = determinize(raw, 2.0)
    paths = found.n_best(1000)
    totals = [path.total for path in paths]
    assert totals == sorted(totals) and len({path.words for path in paths}) == len(paths) >= 5
    best = raw.best_path()
    assert (paths[0].words, paths[0].alignment) == (best.words, best.alignment) and found.best_path() == paths[0]
    assert paths[0].total == pytest.approx(best.total, abs=1e-4)
    assert found.n_best(3) == paths[:3]
    # one beam wider holds all of the narrow one
    assert {path.words for path in paths} <= {path.words for path in determinize(raw, 3.0).n_best(1000)}


def test_scales_are_those_of_the_search(raw):
    quiet = replace(raw, acoustic_scale=0.1)
    found = determinize(quiet, 3.0)
    best = found.best_path()
    assert best.words == quiet.best_path().words and best.total == pytest.approx(quiet.best_path().total, abs=1e-3)
    assert best.acoustic_cost == pytest.approx(quiet.best_path().acoustic_cost, abs=1e-3)  # unscaled


def test_one_path_for_each_sequence_of_words():
    # word 5 by two alignments, the second cheaper; word 6 late, where the first path has it early
    arcs = [
        (0, 1, 1, 5, 1.0, 0.5),
        (0, 2, 2, 5, 0.5, 0.0),
        (1, 3, 3, 0, 0, 0),
        (2, 3, 4, 0, 0, 0),
        (0, 4, 7, 0, 0.2, 1.0),
    ]
    found = determinize(_lattice([*arcs, (4, 3, 8, 6, 0.1, 0)], {3: 0.25}), 10.0)
    assert [(p.words, p.alignment) for p in found.n_best(9)] == [((5,), (2, 4)), ((6,), (7, 8))]
    assert [p.total for p in found.n_best(9)] == pytest.approx([0.75, 1.55])
    assert found.n_best(1)[0].graph_cost == 0.75 and len(found.source) == 2
    assert len(determinize(_lattice([*arcs, (4, 3, 8, 6, 0.1, 0)], {3: 0.25}), 0.7).source) == 1


def test_silent_paths_and_dead_ends():
    silent = determinize(_lattice([(0, 1, 1, 0, 0.5, 0), (1, 2, 2, 0, 0.5, 0), (0, 3, 9, 4, 0, 0)], {2: 0.0}), 5.0)
    (only,) = silent.n_best(5)
    assert only.words == () and only.alignment == (1, 2) and only.total == 1.0 and silent.states == 1
    for nothing in (Lattice.empty(3), _lattice([(0, 1, 1, 1, 0, 0)], {0: np.inf})):
        found = determinize(nothing, 5.0)
        assert found.states == 0 and found.n_best(2) == [] and minimum_bayes_risk(found).words == ()
    with pytest.raises(ValueError, match="above 0"):
        determinize(Lattice.empty(1), 0.0)
    with pytest.raises(ValueError, match="1 or more"):
        silent.n_best(0)


def test_a_lattice_without_room_keeps_its_best_paths():
    # Two tracks with the same words at other costs: each of the 2 ** 12 histories is a set of its own.
    costs = np.random.default_rng(3).uniform(0, 2, (12, 2, 2)).tolist()
    arcs = [
        (max(0, 2 * step + track - 1), 2 * step + track + 1, 1 + track, 1 + word, costs[step][track][word], 0)
        for step in range(12) for track in range(2) for word in range(2)
    ]  # fmt: skip
    whole = _lattice(arcs, {23: 0.0, 24: 0.1})
    full, cut = determinize(whole, 100.0), determinize(whole, 100.0, room=1)
    assert len(full.n_best(20000)) == 2**12 and full.states > 1000 > cut.states
    assert cut.best_path().words == full.best_path().words == whole.best_path().words
    best = {path.words: path.total for path in full.n_best(20000)}
    assert all(best[path.words] == pytest.approx(path.total, abs=1e-3) for path in cut.n_best(500))


# ---- minimum Bayes risk ----


@pytest.mark.parametrize("row", RISKS, ids=lambda row: f"{row['lm_scale']},{row['acoustic_scale']}")
def test_bayes_risk_is_kaldis(row, raw):
    found = minimum_bayes_risk(determinize(raw, 4.0), row["lm_scale"], row["acoustic_scale"])
    assert list(found.words) == row["words"] and found.risk == pytest.approx(row["risk"], abs=1e-4)
    # Where alignments are equally good, rounding chooses in Kaldi; a fixed order does here.
    np.testing.assert_allclose(found.confidences, row["confidences"], atol=0.01)
    if len(row["words"]) == 2:
        np.testing.assert_allclose(found.confidences, row["confidences"], atol=1e-4)
        np.testing.assert_allclose(np.stack((found.begin, found.end), 1), row["times"], atol=1e-3)


def test_the_words_may_be_no_path_of_the_lattice():
    # three paths: a b (0.4), c b (0.3), a d (0.3): each first word and second word is the likeliest by itself
    rows = ((1, 2, 0.4), (3, 2, 0.3), (1, 4, 0.3))
    arcs = [(0, k + 1, 1, a, -np.log(p), 0) for k, (a, _, p) in enumerate(rows)]
    arcs += [(k + 1, 4, 2, b, 0, 0) for k, (_, b, _) in enumerate(rows)]
    found = minimum_bayes_risk(determinize(_lattice(arcs, {4: 0.0}), 10.0))
    assert found.words == (1, 2) and found.risk == pytest.approx(0.6, abs=1e-6)
    assert found.confidences == pytest.approx((0.7, 0.7), abs=1e-6)
    assert found.begin == pytest.approx((0, 1)) and found.end == pytest.approx((1, 2))


def test_the_best_path_may_lose():
    # the best path x x (0.4) against y z (0.3) and w z (0.3): z is likelier than x, and any first word is wrong
    rows = ((1, 1, 0.4), (2, 3, 0.3), (4, 3, 0.3))
    arcs = [(0, k + 1, 1, a, -np.log(p), 0) for k, (a, _, p) in enumerate(rows)]
    arcs += [(k + 1, 4, 2, b, 0, 0) for k, (_, b, _) in enumerate(rows)]
    found = minimum_bayes_risk(determinize(_lattice(arcs, {4: 0.0}), 10.0))
    assert found.words == (1, 3)
    assert found.risk == pytest.approx(1.0, abs=1e-6) and found.confidences == pytest.approx((0.4, 0.6), abs=1e-6)


def test_one_path_is_certain():
    found = minimum_bayes_risk(determinize(_lattice([(0, 1, 1, 7, 3.0, 2.0), (1, 2, 2, 0, 0, 0)], {2: 1.0}), 5.0))
    assert (found.words, found.confidences, found.begin, found.end) == ((7,), (1.0,), (0.0,), (2.0,))
    assert found.risk == 0.0


# ---- words ----


@pytest.fixture(scope="module")
def boundaries(tmp_path_factory):
    """Phones of the model of digits, as if 1 were silence, 2 began words and the others ended them."""
    transitions = read_model(DATA / "digits" / "final.mdl").transitions
    path = tmp_path_factory.mktemp("phones") / "word_boundary.int"
    kinds = ["nonword", "begin", *["end"] * (len(transitions.topology.phones) - 2)]
    path.write_text("".join(f"{p} {k}\n" for p, k in zip(transitions.topology.phones.tolist(), kinds, strict=True)))
    return read_boundaries(path, transitions)


def _tids(boundaries, kind):
    """A transition-id of a phone of this kind that ends it, and its self-loop."""
    of_kind = np.flatnonzero((boundaries & 7) == kind)
    return int(of_kind[boundaries[of_kind] & 8 > 0][0]), int(of_kind[boundaries[of_kind] & 16 > 0][0])


def test_arcs_are_words(boundaries):
    (sil, sil_loop), (begin, _), (end, end_loop) = (_tids(boundaries, kind) for kind in (1, 2, 3))
    # the word stands on the silence before it, and its last frames on the final weight
    lattice = CompactLattice(
        source=np.array([0], np.int32), target=np.array([1], np.int32), word=np.array([5], np.int32),
        graph_cost=np.array([1.5], np.float32), acoustic_cost=np.array([2.0], np.float32),
        begin=np.array([0, 4]), alignment=np.array([sil, sil_loop, begin, end], np.int32),
        final_graph=np.array([np.inf, 0.5], np.float32), final_acoustic=np.array([np.inf, 0.25], np.float32),
        final_begin=np.array([0, 0, 2]), final_alignment=np.array([end_loop, sil], np.int32),
        frame=np.array([0, 4], np.int32), frames=6,
    )  # fmt: skip
    found = align_words(lattice, boundaries)
    assert found.word.tolist() == [0, 5, 0] and np.diff(found.begin).tolist() == [2, 3, 1]
    (path,) = found.n_best(3)
    assert path.words == (5,) and (path.begin, path.end) == ((2,), (5,))
    assert path.alignment == (sil, sil_loop, begin, end, end_loop, sil)
    assert (path.graph_cost, path.acoustic_cost) == (2.0, 2.25)
    heard = minimum_bayes_risk(found)
    assert (heard.words, heard.begin, heard.end) == ((5,), (2.0,), (5.0,))


def test_alignment_keeps_paths_and_costs(raw, boundaries):
    lattice = determinize(raw, 2.0)
    found = align_words(lattice, boundaries)
    theirs = {p.alignment: p.total for p in found.n_best(1000)}
    assert {p.alignment for p in lattice.n_best(1000)} <= theirs.keys()
    for path in lattice.n_best(1000):
        assert theirs[path.alignment] == pytest.approx(path.total, abs=1e-3)


@pytest.mark.parametrize("text", ["1 nonword\n2\n", "x begin\n", "1 middle\n"])
def test_damaged_boundaries(text, tmp_path):
    path = tmp_path / "word_boundary.int"
    path.write_text(text)
    with pytest.raises(ModelLoadError, match="cannot be read as phones"):
        read_boundaries(path, read_model(DATA / "digits" / "final.mdl").transitions)


def test_options():
    assert LatticeOptions.from_dict({"beam": 3.0}).text == "mbr"  # artifacts of before
    for wrong in ({"text": "loud"}, {"lm_scale": 0.0}):
        with pytest.raises(ValueError, match="must be"):
            LatticeOptions(**wrong)


def test_paths_of_other_lengths_than_the_frames():
    """A lattice from anywhere may lie about its frames."""
    arcs = [(s, s + 1, s + 1, s % 2, 0.1, 0) for s in range(40)]
    whole = replace(_lattice([*arcs, (0, 40, 1, 9, 0.0, 0)], {40: 0.0}), frames=1)
    assert {len(path.alignment) for path in determinize(whole, 50.0).n_best(3)} == {1, 40}
