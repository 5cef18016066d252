"""LF-MMI as a loss: its batches, its parts, and that the digits model learns with it."""

from __future__ import annotations

import gzip
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_kaldi import with_ivectors

from quantasr import load_model, sample
from quantasr.errors import TrainingError
from quantasr.kaldi.archive import archive_writer
from quantasr.kaldi.chain import make_denominator, normalization_of
from quantasr.kaldi.compile.arrays import to_kaldifst
from quantasr.sources.kaldi import KaldiModel
from quantasr.speech.manifest import read_manifest
from quantasr.training.batch import Example, Output
from quantasr.training.lf_mmi import GraphChoice, LfMmiLoss, LfMmiOptions
from quantasr.training.lf_mmi.objective import likelihoods
from quantasr.training.trainee import Trainee

DIGITS = Path(__file__).parents[1] / "data" / "kaldi" / "digits"
UTTERANCES = read_manifest(sample.calibration())[20:32]
EXAMPLES = [Example(u.id, u.load(8000), u.text) for u in UTTERANCES]
TEXTS = [u.text for u in UTTERANCES]
PLAIN = LfMmiOptions(l2=0, xent=0, shift_frames=False)


@pytest.fixture
def digits() -> KaldiModel:
    model = load_model(DIGITS)
    assert isinstance(model, KaldiModel)
    return model


def value_of(model: KaldiModel, loss: LfMmiLoss, batch) -> float:
    with torch.no_grad():
        return float(loss(Output(*model.train_outputs(batch.features, batch.lengths)), batch) / batch.weight)


def test_what_a_trained_model_says_is_nearly_all_that_can_be_said(digits: KaldiModel) -> None:
    loss = LfMmiLoss.of(digits, TEXTS, options=PLAIN)
    batch = loss.collate(EXAMPLES[:6], 0)
    assert batch.weight == float(digits.frame_counts(batch.lengths).sum())
    assert 0 < value_of(digits, loss, batch) < 0.1
    wrong = [Example(e.id, e.wave, other.text) for e, other in zip(EXAMPLES[:6], EXAMPLES[5::-1], strict=True)]
    assert value_of(digits, loss, loss.collate(wrong, 0)) > 0.5
    assert loss.skipped == 0


def test_numerators_are_part_of_the_denominator(digits: KaldiModel) -> None:
    loss = LfMmiLoss.of(digits, TEXTS, options=PLAIN)
    random = torch.Generator().manual_seed(0)
    scores = torch.randn(len(TEXTS), 60, 52, generator=random) * 2
    counts = torch.full((len(TEXTS),), 60)
    numerators, _ = likelihoods(scores, counts, [loss.graphs.numerator(text) for text in TEXTS])
    for leak in (0.0, 0.1):
        everything, _ = likelihoods(scores, counts, loss.graphs.denominator, leak=leak)
        assert (numerators < everything).all()


def test_a_batch_is_the_sum_of_its_recordings(digits: KaldiModel) -> None:
    loss = LfMmiLoss.of(digits, TEXTS)
    together = loss.collate(EXAMPLES[:4], 7)
    parts = [loss.collate([example], 7) for example in EXAMPLES[:4]]
    with torch.no_grad():
        whole = float(loss(Output(*digits.train_outputs(together.features, together.lengths)), together))
        each = [float(loss(Output(*digits.train_outputs(b.features, b.lengths)), b)) for b in parts]
    assert whole == pytest.approx(sum(each), rel=1e-5)
    assert together.weight == sum(b.weight for b in parts)
    assert together.ids == tuple(e.id for e in EXAMPLES[:4])


def test_the_parts_of_the_loss(digits: KaldiModel) -> None:
    digits.prepare_training()
    losses = [LfMmiLoss.of(digits, TEXTS, options=o) for o in (PLAIN, LfMmiOptions(0.1, 1e-3, 0, False))]
    batch = losses[0].collate(EXAMPLES[:3], 0)
    output = Output(*digits.train_outputs(batch.features, batch.lengths))
    plain, squared = (loss(output, batch) for loss in losses)
    inside = torch.arange(output.logprobs.shape[1]) < output.counts[:, None]
    assert (squared - plain).item() == pytest.approx(
        5e-4 * float(output.logprobs.detach()[inside].square().sum()), rel=1e-4
    )
    branched = LfMmiLoss.of(digits, TEXTS, options=LfMmiOptions(0.1, 0, 0.1, False))(output, batch)
    _, posteriors = likelihoods(output.logprobs, output.counts, batch.targets.graphs)
    assert (branched - plain).item() == pytest.approx(-0.1 * float((posteriors * output.xent.detach()).sum()), rel=1e-4)


def test_shifts_are_decided_by_seed_and_recording(digits: KaldiModel) -> None:
    loss = LfMmiLoss.of(digits, TEXTS)
    still = LfMmiLoss.of(digits, TEXTS, options=PLAIN)
    rows = still.collate(EXAMPLES[:1], 0).features[0]
    found = set()
    for seed in range(20):
        moved = loss.collate(EXAMPLES[:1], seed).features[0]
        assert torch.equal(moved, loss.collate(EXAMPLES[:1], seed).features[0])
        (shift,) = [
            s for s in (-1, 0, 1) if torch.equal(moved, rows[np.clip(np.arange(len(rows)) + s, 0, len(rows) - 1)])
        ]
        found.add(shift)
    assert found == {-1, 0, 1}


def test_a_damaged_model_learns_again(digits: KaldiModel) -> None:
    loss = LfMmiLoss.of(digits, TEXTS)
    trainee = Trainee(digits)
    with torch.no_grad():
        for name in ("prefinal-chain.affine", "output.affine"):
            weight = digits.network.get_submodule(name).weight
            weight += 0.5 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    batch = loss.collate(EXAMPLES[:6], 0)
    before = value_of(digits, loss, batch)
    optimizer = torch.optim.AdamW([p for p in trainee.parameters() if p.requires_grad], 1e-3)
    for steps in range(5):
        trainee.train()
        digits.constrain(steps)
        optimizer.zero_grad()
        (loss(trainee(batch.features, batch.lengths), batch) / batch.weight).backward()
        optimizer.step()
    digits.module.eval()
    assert value_of(digits, loss, batch) < 0.7 * before


def test_a_denominator_from_a_file(digits: KaldiModel, tmp_path: Path) -> None:
    made = LfMmiLoss.of(digits, TEXTS, options=PLAIN)
    said: list[str] = []
    fst = make_denominator(_phone_lm(made), made.graphs.tree, made.graphs.transitions)
    to_kaldifst(fst).write(str(tmp_path / "den.fst"))
    for with_normalization in (False, True):
        if with_normalization:
            to_kaldifst(normalization_of(fst)).write(str(tmp_path / "normalization.fst"))
        choice = GraphChoice(denominator=tmp_path / "den.fst")
        read = LfMmiLoss.of(digits, [], choice, PLAIN, say=said.append)
        batch, other = made.collate(EXAMPLES[:3], 0), read.collate(EXAMPLES[:3], 0)
        assert value_of(digits, read, other) == pytest.approx(value_of(digits, made, batch), rel=1e-3)
    assert "den.fst" in said[0]


def _phone_lm(loss: LfMmiLoss):
    from quantasr.kaldi.chain import PhoneLm

    lm = PhoneLm()
    for text in TEXTS:
        lm.add_choices(loss.graphs.pronunciations.choices(text.split()))
    return lm.fst()


def test_what_cannot_be_trained_on(digits: KaldiModel) -> None:
    loss = LfMmiLoss.of(digits, TEXTS)
    assert loss.problem("a", "one two", 2.0) is None
    assert loss.problem("a", "one forty two hundred", 2.0) == "words without a pronunciation: forty, hundred"
    assert loss.problem("a", "", 2.0) == loss.problem("a", None, 2.0) == "no transcript"
    assert loss.problem("a", "seven seven seven", 0.3) == "too short for its transcript"
    batch = loss.collate([Example("x", EXAMPLES[0].wave, "forty"), Example("y", EXAMPLES[0].wave, None)], 0)
    output = Output(*digits.train_outputs(batch.features, batch.lengths))
    loss.options = PLAIN
    assert not loss.each(output, batch).any()
    assert loss.skipped == 2
    with pytest.raises(TrainingError, match="no transcript has only words of the lexicon"):
        LfMmiLoss.of(digits, ["forty", ""])


def test_too_short_a_recording_teaches_nothing(digits: KaldiModel) -> None:
    loss = LfMmiLoss.of(digits, TEXTS, options=PLAIN)
    batch = loss.collate([Example("x", EXAMPLES[0].wave[:2000], "one two three"), EXAMPLES[1]], 0)
    output = Output(*digits.train_outputs(batch.features, batch.lengths))
    losses = loss.each(output, batch)
    assert losses[0] == 0 and losses[1] > 0
    assert loss.skipped == 1


@pytest.fixture
def aligned(digits: KaldiModel, tmp_path: Path) -> tuple[LfMmiLoss, dict[str, np.ndarray]]:
    """The loss with alignments that the model itself makes: its best path of each text, every third frame."""
    loss = LfMmiLoss.of(digits, TEXTS, options=PLAIN)
    transitions = digits.transitions
    assert transitions is not None
    tid_of_pdf = {int(pdf): tid for tid, pdf in enumerate(transitions.pdf_of_tid.tolist()) if tid}
    alignments = {}
    for example in EXAMPLES:
        batch = loss.collate([example], 0)
        with torch.no_grad():
            output = Output(*digits.train_outputs(batch.features, batch.lengths))
        best = _viterbi(output.logprobs[0, : int(output.counts[0])].numpy(), batch.targets.graphs[0])
        alignments[example.id] = np.array([tid_of_pdf[pdf] for pdf in best], np.int32)
    folder = tmp_path / "ali"
    folder.mkdir()
    with archive_writer(folder / "ali.1") as put:
        for key, values in alignments.items():
            put(key, values)
    (folder / "ali.1.gz").write_bytes(gzip.compress((folder / "ali.1").read_bytes()))
    (folder / "ali.1").unlink()
    (folder / "final.mdl").write_bytes((DIGITS / "final.mdl").read_bytes())
    (folder / "frame_subsampling_factor").write_text("3\n")
    options = LfMmiOptions(l2=0, xent=0, shift_frames=False, chunk=60)
    return LfMmiLoss.of(digits, [], GraphChoice(alignments=folder), options), alignments


def _viterbi(scores: np.ndarray, hmm) -> list[int]:
    best, froms = np.log(np.maximum(hmm.initial, 1e-300)), []
    for row in scores:
        values = best[hmm.source] + np.log(hmm.prob) + row[hmm.pdf]
        best = np.full(hmm.states, -np.inf)
        np.maximum.at(best, hmm.target, values)
        froms.append({int(hmm.target[a]): a for a in np.flatnonzero(values == best[hmm.target])})
    state = int(np.argmax(best + np.log(np.maximum(hmm.final, 1e-300))))
    path = []
    for arcs in reversed(froms):
        arc = arcs[state]
        path.append(int(hmm.pdf[arc]))
        state = int(hmm.source[arc])
    return path[::-1]


def test_chunks_of_aligned_recordings(digits: KaldiModel, aligned: tuple[LfMmiLoss, dict[str, np.ndarray]]) -> None:
    loss, alignments = aligned
    batch = loss.collate(EXAMPLES, 3)
    left, right = digits.network.contexts
    assert batch.weight == sum(len(values) for values in alignments.values())
    assert len(batch.ids) > len(EXAMPLES) and set(batch.ids) == set(alignments)
    counts = digits.frame_counts(batch.lengths)
    assert counts.max() == 20 and batch.features.shape[1] == 19 * 3 + left + 1 + right
    value = value_of(digits, loss, batch)
    assert 0 < value < 0.3
    shifted = [Example(e.id, np.roll(e.wave, 4000), e.text) for e in EXAMPLES]  # half a second off
    assert value_of(digits, loss, loss.collate(shifted, 3)) > 4 * value
    assert loss.skipped == 0


def test_what_chunks_say_is_what_the_whole_recording_says(
    digits: KaldiModel, aligned: tuple[LfMmiLoss, dict[str, np.ndarray]]
) -> None:
    loss, _ = aligned
    whole = digits.inputs([EXAMPLES[-1].wave])
    with torch.no_grad():
        scores = digits.train_outputs(*whole)[0][0]
        batch = loss.collate([EXAMPLES[-1]], 1)
        parts, counts, _ = digits.train_outputs(batch.features, batch.lengths)
    joined = torch.cat([part[:count] for part, count in zip(parts, counts.tolist(), strict=True)])
    assert torch.allclose(joined, scores, atol=1e-4)


def test_alignments_must_be_those_of_the_recordings(
    digits: KaldiModel, aligned: tuple[LfMmiLoss, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    loss, _ = aligned
    assert loss.problem("other", "one", 1.0) == "no alignment"
    assert loss.problem(EXAMPLES[0].id, "any forty", 1.0) is None
    with pytest.raises(TrainingError, match="fall between the frames"):
        LfMmiLoss.of(digits, [], GraphChoice(alignments=tmp_path / "ali", tolerance=(1, 0)))
    faster = Example(EXAMPLES[0].id, EXAMPLES[0].wave[: len(EXAMPLES[0].wave) * 10 // 11], None)
    with pytest.raises(TrainingError, match="train without speed perturbation"):
        loss.collate([faster], 0)
    batch = loss.collate([Example("other", EXAMPLES[0].wave, None)], 0)
    assert not loss.each(Output(*digits.train_outputs(batch.features, batch.lengths)), batch).any()


def test_graphs_go_to_worker_processes(digits: KaldiModel) -> None:
    loss = LfMmiLoss.of(digits, TEXTS)
    graphs = pickle.loads(pickle.dumps(loss.graphs))
    assert graphs.numerator(TEXTS[0]).states == loss.graphs.numerator(TEXTS[0]).states


def test_options_and_models_that_make_no_sense(digits: KaldiModel, tmp_path: Path) -> None:
    for wrong in ({"leak": 1.0}, {"l2": -1.0}, {"xent": -0.1}, {"chunk": 0}):
        with pytest.raises(TrainingError):
            LfMmiOptions(**wrong)
    for wrong in ({"silence_probability": 1.0}, {"order": 1}, {"states": -1}, {"tolerance": (5, -1)}):
        with pytest.raises(TrainingError):
            GraphChoice(**wrong)
    digits.transitions = None
    with pytest.raises(TrainingError, match="has no transition model"):
        LfMmiLoss.of(digits, TEXTS)


def test_ivectors_are_moved_and_cut_with_the_features(tmp_path: Path) -> None:
    model = load_model(with_ivectors(tmp_path / "model"))
    assert isinstance(model, KaldiModel)
    loss = LfMmiLoss.of(model, TEXTS, options=LfMmiOptions(shift_frames=True))
    batch = loss.collate(EXAMPLES[:3], 1)
    assert batch.features.shape[2] == 4 + 5
    trainee = Trainee(model)
    trainee.train()
    value = loss(trainee(batch.features, batch.lengths), batch)
    value.backward()
    assert torch.isfinite(value)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trainee.parameters() if p.requires_grad)


def test_a_folder_of_vosks_needs_its_tree_and_lexicon(tmp_path: Path) -> None:
    folder = tmp_path / "vosk"
    shutil.copytree(DIGITS / "graph", folder / "graph")
    for name, where in (("final.mdl", "am"), ("conf/mfcc.conf", "conf")):
        (folder / where).mkdir()
        shutil.copy(DIGITS / name, folder / where)
    model = load_model(folder)
    with pytest.raises(TrainingError, match=r"has no lexicon\.txt: name the lexicon"):
        LfMmiLoss.of(model, TEXTS)
    loss = LfMmiLoss.of(model, TEXTS, GraphChoice(lexicon=DIGITS / "lexicon.txt"))
    batch = loss.collate(EXAMPLES[:2], 0)
    assert value_of(model, loss, batch) < 0.2


def test_only_kaldis_models_are_trained_so(tmp_path: Path) -> None:
    model = load_model(sample.model())
    with pytest.raises(TrainingError, match="LF-MMI trains Kaldi's chain models only"):
        LfMmiLoss.of(model, TEXTS)
