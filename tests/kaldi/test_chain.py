"""Phone language models, denominators, numerators and alignments, against Kaldi's own chain programs."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import kaldifst
import numpy as np
import pytest
import torch

from quantasr.errors import KaldiFileError, ModelLoadError
from quantasr.kaldi.archive import archive_writer
from quantasr.kaldi.chain import (
    Alignments,
    Normalization,
    PhoneLm,
    Pronunciations,
    Segment,
    TimedGraph,
    initial_probs,
    make_denominator,
    normalization_of,
    pdf_acceptor,
    phone_graph,
    read_alignments,
    segments_of,
)
from quantasr.kaldi.compile import Pronunciation, read_tree
from quantasr.kaldi.compile.arrays import FstBuilder, from_kaldifst, to_kaldifst
from quantasr.kaldi.fst import Fst, SymbolTable, read_fst
from quantasr.kaldi.nnet3.transitions import TransitionModel, read_transition_model
from quantasr.kaldi.stream import Reader
from quantasr.training.lf_mmi.graph import denominator_of, hmm_of
from quantasr.training.lf_mmi.objective import likelihoods

CHAIN = Path(__file__).parents[1] / "data" / "kaldi" / "chain"
FILES = CHAIN.parent / "files"
GOLDEN = json.loads((CHAIN / "golden.json").read_text())
ARRAYS = dict(np.load(CHAIN / "golden.npz"))
TREE = read_tree(CHAIN / "tree")
SCORES = torch.from_numpy(ARRAYS["scores"])[None]
COUNTS = torch.tensor([len(ARRAYS["scores"])])


@pytest.fixture(scope="module")
def transitions() -> TransitionModel:
    return read_transition_model(Reader.open(CHAIN / "0.trans_mdl"))


def cost(fst: Fst, labels: Sequence[int]) -> float:
    """Of the only path with these labels, final cost included; infinite if there is none."""
    state, total = fst.start, 0.0
    for label in labels:
        rows = range(int(fst.first[state]), int(fst.first[state + 1]))
        found = [row for row in rows if fst.arcs[row, 0] == label]
        if not found:
            return float("inf")
        total += float(fst.weights[found[0]])
        state = int(fst.arcs[found[0], 3])
    return total + float(fst.final[state])


def test_the_language_model_is_kaldis() -> None:
    lm = PhoneLm(4, GOLDEN["extra_states"])
    for phones in GOLDEN["sentences"]:
        lm.add(phones)
    ours, kaldis = lm.fst(), read_fst(CHAIN / "phone_lm.fst")
    assert (ours.states, len(ours.arcs)) == (kaldis.states, len(kaldis.arcs))
    assert np.allclose(np.sort(ours.weights), np.sort(kaldis.weights), atol=1e-5)
    unseen = [[1, 3, 3, 4, 1], [1, 2, 3, 4, 5, 1], [2, 2], [1]]
    costs = [(cost(ours, phones), cost(kaldis, phones)) for phones in GOLDEN["sentences"] + unseen]
    assert np.allclose(*zip(*costs, strict=True), atol=1e-4)
    assert any(np.isinf(one) for one, _ in costs) and np.isfinite(costs[0]).all()


def test_an_unpruned_language_model_counts() -> None:
    lm = PhoneLm(2, 1000)
    lm.add([7, 8, 7])
    lm.add([8])
    # P(8 | begin) = 1/2, P(end | 8) = 1/2; 7 is followed by 8 and by the end.
    assert cost(lm.fst(), [8]) == pytest.approx(-np.log(1 / 4), abs=1e-6)
    assert cost(lm.fst(), [7, 8, 7]) == pytest.approx(-np.log(1 / 2 * 1 / 2 * 1 / 2 * 1 / 2), abs=1e-6)
    assert cost(lm.fst(), [7, 7]) == np.inf


def test_choices_are_counted_by_their_share() -> None:
    mixed, plain = PhoneLm(3), PhoneLm(3)
    mixed.add_choices([{(1,): 0.75, (): 0.25}, {(2, 3): 1.0}])
    for phones in ([1, 2, 3], [1, 2, 3], [1, 2, 3], [2, 3]):
        plain.add(phones)
    for phones in ([1, 2, 3], [2, 3]):
        assert cost(mixed.fst(), phones) == pytest.approx(cost(plain.fst(), phones), abs=1e-6)


@pytest.mark.parametrize("leak", [1e-5, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_backward_is_kaldis(leak: float, dtype: torch.dtype) -> None:
    hmm = denominator_of(read_fst(CHAIN / "den.fst"))
    logs, posteriors = likelihoods(SCORES, COUNTS, hmm, leak=leak, dtype=dtype)
    assert logs.item() == pytest.approx(GOLDEN[f"likelihood {leak:g}"], abs=3e-5)
    assert np.abs(posteriors[0].numpy() - ARRAYS[f"posteriors {leak:g}"]).max() < 1e-5


def test_the_denominator_says_what_kaldis_says(transitions: TransitionModel) -> None:
    ours = make_denominator(read_fst(CHAIN / "phone_lm.fst"), TREE, transitions)
    kaldis = read_fst(CHAIN / "den.fst")
    assert (ours.arcs[:, 0] > 0).all()
    assert len(ours.arcs) < 1.3 * len(kaldis.arcs)
    for frames in (8, 40):
        scores = torch.cat([SCORES[:, :frames], SCORES[:, :frames].flip(1)])
        counts = torch.tensor([frames, frames])
        # From the start to the ends, both are the language model with its phones' durations.
        one, slopes = likelihoods(scores, counts, [hmm_of(ours)] * 2)
        other, wanted = likelihoods(scores, counts, [hmm_of(kaldis)] * 2)
        assert torch.allclose(one - one[0], other - other[0], atol=0.05)  # weights are rounded to 1/1024 or 1/100
        assert (slopes - wanted).abs().max() < 0.01
        # From any state to any, the first frames differ by how a graph's weights were pushed.
        one, slopes = likelihoods(scores, counts, denominator_of(ours), leak=1e-5)
        other, wanted = likelihoods(scores, counts, denominator_of(kaldis), leak=1e-5)
        assert torch.allclose(one, other, atol=0.05 * frames)


def test_minimizing_keeps_all_likelihoods(transitions: TransitionModel) -> None:
    lm = read_fst(CHAIN / "phone_lm.fst")
    plain, small = pdf_acceptor(lm, TREE, transitions), make_denominator(lm, TREE, transitions)
    assert len(small.arcs) <= len(plain.arcs)
    one, slopes = likelihoods(SCORES, COUNTS, [hmm_of(plain)])
    other, wanted = likelihoods(SCORES, COUNTS, [hmm_of(small)])
    assert torch.allclose(one, other, atol=40 / 1024)
    assert (slopes - wanted).abs().max() < 1e-2


def test_the_normalization_is_kaldis() -> None:
    den = read_fst(CHAIN / "den.fst")
    assert initial_probs(den).sum() == pytest.approx(1)
    ours, kaldis = normalization_of(den), read_fst(CHAIN / "normalization.fst")
    assert len(ours.arcs) - len(kaldis.arcs) in (0, 1, 2)  # of a state that nothing leads to: Kaldi leaves it out
    costs = [np.sort(fst.weights[fst.first[fst.start] : fst.first[fst.start + 1]]) for fst in (ours, kaldis)]
    assert len(costs[0]) == len(costs[1]) > 50
    assert (costs[0] <= costs[1] + 1e-5).all()  # sums instead of the best
    one, slopes = likelihoods(SCORES, COUNTS, [hmm_of(ours)])
    other, wanted = likelihoods(SCORES, COUNTS, [hmm_of(kaldis)])
    assert 0 < one - other < 1
    assert (slopes - wanted)[:, 10:].abs().max() < 1e-3
    # Where nothing leaks, that is the denominator: begun anywhere, ended anywhere.
    everything, _ = likelihoods(SCORES, COUNTS, denominator_of(den))
    assert torch.allclose(one, everything, atol=1e-4)


def printed(lines: Sequence[str]) -> Fst:
    """An FST as golden.json has it."""
    builder = FstBuilder()
    rows = [line.split() for line in lines if line and not line.startswith("start")]
    for _ in range(1 + max(int(n) for row in rows for n in (row[:2] if len(row) == 4 else row[:1]))):
        builder.state()
    for row in rows:
        if len(row) == 4:
            builder.arc(int(row[0]), int(row[2]), int(row[2]), float(row[3]), int(row[1]))
        else:
            builder.end(int(row[0]), float(row[1]))
    return builder.fst(int(lines[0].split()[1]))


def determinized(fst: Fst | None) -> Fst:
    assert fst is not None
    return from_kaldifst(kaldifst.determinize(to_kaldifst(fst)))


def test_what_an_alignment_allows_is_what_kaldi_allows(transitions: TransitionModel) -> None:
    tids = np.array(GOLDEN["alignment"])
    segments = segments_of(tids, transitions)
    assert [segment.phone for segment in segments] == GOLDEN["sentences"][0]
    timed = TimedGraph(segments, TREE, transitions)
    assert timed.frames == -(-len(tids) // 3)
    normalization = Normalization(read_fst(CHAIN / "normalization.fst"))
    parts = {
        "whole": (timed.part(0, timed.frames), timed.frames),
        # Kaldi determinizes what it has weighted: of several paths for the same pdfs the best remains.
        "part": (determinized(normalization.weighted(timed.part(3, 9))), 6),
    }
    for name, (ours, frames) in parts.items():
        counts = torch.tensor([frames])
        one, slopes = likelihoods(SCORES[:, :frames], counts, [hmm_of(ours)])
        other, wanted = likelihoods(SCORES[:, :frames], counts, [hmm_of(printed(GOLDEN[name]))])
        assert torch.allclose(one, other, atol=2e-3), name  # Kaldi has rounded weights when it determinized
        assert (slopes - wanted).abs().max() < 2e-3, name
        for length in {frames - 1, min(frames + 1, 40)} - {frames}:
            assert likelihoods(SCORES[:, :length], torch.tensor([length]), [hmm_of(ours)])[0].item() == -np.inf


def test_a_numerator_is_part_of_the_denominator(transitions: TransitionModel) -> None:
    den, normalization = read_fst(CHAIN / "den.fst"), Normalization(read_fst(CHAIN / "normalization.fst"))
    everything, _ = likelihoods(SCORES, COUNTS, denominator_of(den))
    for phones in GOLDEN["sentences"][:10]:
        twice = phone_graph([{tuple(phones): 0.5}, {(): 1.0}, {(): 0.5}])
        found = normalization.weighted(pdf_acceptor(twice, TREE, transitions, scale=0.0))
        assert found is not None
        assert likelihoods(SCORES, COUNTS, [hmm_of(found)])[0] < everything
    impossible = phone_graph([{(1,) * 9: 1.0}])
    assert normalization.weighted(pdf_acceptor(impossible, TREE, transitions, scale=0.0)) is None


def test_more_ways_to_say_it_are_likelier(transitions: TransitionModel) -> None:
    normalization = Normalization(read_fst(CHAIN / "normalization.fst"))
    one, other = (tuple(phones) for phones in GOLDEN["sentences"][:2])
    found = []
    for choice in ({one: 1.0}, {other: 1.0}, {one: 0.3, other: 0.7}):
        graph = normalization.weighted(pdf_acceptor(phone_graph([choice]), TREE, transitions, scale=0.0))
        assert graph is not None
        found.append(likelihoods(SCORES, COUNTS, [hmm_of(graph)])[0].item())
    assert found[2] == pytest.approx(np.logaddexp(*found[:2]), abs=1e-6)


def test_pronunciations() -> None:
    phones = SymbolTable.of([("<eps>", 0), ("SIL", 1), ("A_S", 2), ("A_B", 3), ("B_E", 4), ("C_E", 5)], "phones")
    entries = [Pronunciation("a", ("A",)), Pronunciation("ab", ("A", "B")), Pronunciation("ab", ("A", "C"), 0.5)]
    words = Pronunciations(entries, phones, silence_probability=0.4)
    assert words.unknown(["ab", "x", "a", "x"]) == ["x"]
    assert words.fewest_phones(["ab", "a"]) == 3
    pause = {(1,): 0.4, (): 0.6}
    assert words.choices(["ab", "a"]) == [pause, {(3, 4): pytest.approx(2 / 3), (3, 5): pytest.approx(1 / 3)}, pause,
                                          {(2,): 1.0}, pause]  # fmt: skip
    assert Pronunciations(entries, phones, silence=None).choices(["a"]) == [{(): 1.0}, {(2,): 1.0}, {(): 1.0}]
    with pytest.raises(ModelLoadError, match="silence 'sil' is none of the model's phones"):
        Pronunciations(entries, phones, silence="sil")


@pytest.mark.parametrize("reordered", [True, False])
def test_phones_of_an_hmms_alignment(reordered: bool) -> None:
    model = read_transition_model(Reader.open(FILES / "transitions_hmm.bin"))
    durations = {}
    tids: list[int] = []
    for phone in [1, 1, 2, 1]:  # through all of a phone's states, each with two self-loops
        states = model.topology.states_of(phone)
        begin = len(tids)
        for state in range(len(states) - 1):
            (row,) = [r for r, t in enumerate(model.tuples.tolist()) if t[:2] == [phone, state]][:1]
            first = model.first_tid(*model.tuples[row].tolist())
            loop = int(model.self_loop_of_state[row + 1])
            leaving = next(first + k for k, (to, _) in enumerate(states[state].transitions) if to == state + 1)
            loops = [loop, loop] if loop else []
            tids += [leaving, *loops] if reordered else [*loops, leaving]
        durations[len(durations)] = Segment(phone, 2 * (len(tids) - begin))
    assert segments_of(np.array(tids), model, subsampling=2) == list(durations.values())


def test_alignments_from_a_folder(tmp_path: Path, transitions: TransitionModel) -> None:
    with pytest.raises(ModelLoadError, match=r"has no final\.mdl"):
        read_alignments(tmp_path)
    (tmp_path / "final.mdl").write_bytes((CHAIN / "0.trans_mdl").read_bytes())
    with pytest.raises(ModelLoadError, match=r"has no ali\.\*\.gz"):
        read_alignments(tmp_path)
    for name, keys in (("1", "ab"), ("2", "c")):
        with archive_writer(tmp_path / "ark") as put:
            for key in keys:
                put(key, np.array(GOLDEN["alignment"], np.int32))
        (tmp_path / f"ali.{name}.gz").write_bytes(gzip.compress((tmp_path / "ark").read_bytes()))
    found = read_alignments(tmp_path)
    assert found.transitions.num_pdfs == transitions.num_pdfs
    assert dict(found) == dict.fromkeys("abc", segments_of(np.array(GOLDEN["alignment"]), transitions))
    (tmp_path / "frame_subsampling_factor").write_text("3\n")
    assert read_alignments(tmp_path)["b"][0] == Segment(found["b"][0].phone, 3 * found["b"][0].frames)
    (tmp_path / "frame_subsampling_factor").write_text("often\n")
    with pytest.raises(ModelLoadError, match="'often' is no number of frames"):
        read_alignments(tmp_path)
    whole = (tmp_path / "ali.2.gz").read_bytes()
    (tmp_path / "ali.2.gz").write_bytes(whole[:-20])
    with pytest.raises(KaldiFileError, match=r"ali\.2\.gz: cannot be unpacked"):
        read_alignments(tmp_path)
    (tmp_path / "ali.2.gz").write_bytes((tmp_path / "ali.1.gz").read_bytes())
    with pytest.raises(KaldiFileError, match="'a' is in another archive"):
        read_alignments(tmp_path)


@pytest.mark.parametrize("tids", [[], [0, 1], [1, 999], [1, 5, 2, 7, 1]])
def test_numbers_that_are_no_alignment(tids: list[int], transitions: TransitionModel) -> None:
    with pytest.raises(ModelLoadError, match="alignment"):
        segments_of(np.array(tids), transitions)
    with pytest.raises(ModelLoadError, match=r"^u: an alignment"):
        Alignments(transitions, {"u": np.array(tids)})["u"]


def test_a_denominator_that_was_cut() -> None:
    builder = FstBuilder()
    start, end = builder.state(), builder.state()
    builder.arc(start, 1, 1, 0.5, end)
    with pytest.raises(ModelLoadError, match="state 1 of the denominator leads nowhere"):
        initial_probs(builder.fst())
