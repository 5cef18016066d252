"""CTC against every alignment counted one by one, PyTorch's mean, and transformers' own loss."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from quantasr.errors import TrainingError
from quantasr.sources import load_model
from quantasr.sources.asr_model import CtcModel
from quantasr.speech.manifest import read_manifest
from quantasr.training.batch import Batch, Example, Output
from quantasr.training.labels import LabelEncoder
from quantasr.training.losses import CtcLoss
from quantasr.training.losses.ctc import Labels
from quantasr.training.spec_augment import SpecAugment

DIGITS = Path(__file__).parents[2] / "src/quantasr/sample/digits"


@pytest.fixture(scope="module")
def model() -> CtcModel:
    loaded = load_model(str(DIGITS))
    assert isinstance(loaded, CtcModel)
    return loaded


@pytest.fixture(scope="module")
def examples(model: CtcModel) -> list[Example]:
    utterances = read_manifest(DIGITS / "calibration.jsonl")[16:21]
    return [Example(u.id, u.load(model.sample_rate), u.text) for u in utterances]


def by_enumeration(logprobs: np.ndarray, labels: list[int], blank: int) -> float:
    """-log of the sum over all paths that collapse to ``labels``."""
    frames, tokens = logprobs.shape
    total = 0.0
    for path in itertools.product(range(tokens), repeat=frames):
        collapsed = [token for token, _ in itertools.groupby(path) if token != blank]
        if collapsed == labels:
            total += math.exp(sum(logprobs[t, token] for t, token in enumerate(path)))
    return -math.log(total)


@pytest.mark.parametrize("labels", [[5], [5, 6], [5, 5], [6, 5, 6]])
def test_all_alignments_count(model: CtcModel, labels: list[int]) -> None:
    torch.manual_seed(1)
    scores = torch.full((1, 5, len(model.tokenizer)), -30.0)
    scores[..., [0, 5, 6]] = torch.randn(1, 5, 3)
    logprobs = scores.log_softmax(-1)
    loss = CtcLoss(model)
    batch = Batch(
        ("a",), torch.zeros(1, 1), torch.tensor([1]), Labels(torch.tensor(labels), torch.tensor([len(labels)])), 1.0
    )
    found = float(loss(Output(logprobs, torch.tensor([5])), batch))
    few = logprobs[0][:, [0, 5, 6]].double().numpy()
    names = {0: 0, 5: 1, 6: 2}
    assert found == pytest.approx(by_enumeration(few, [names[i] for i in labels], 0) / len(labels), rel=1e-5)


def test_it_is_the_loss_that_transformers_trains_with(model: CtcModel, examples: list[Example]) -> None:
    loss = CtcLoss(model)
    batch = loss.collate(examples, 0)
    with torch.no_grad():
        ours = float(loss(Output(*model.train_outputs(batch.features, batch.lengths)), batch)) / batch.weight
        rows = [loss.encoder.encode(example.text or "") for example in examples]
        labels = torch.full((len(rows), max(map(len, rows))), -100)
        for row, ids in zip(labels, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        mask = (torch.arange(batch.features.shape[1]) < batch.lengths[:, None]).long()
        own = model.module
        own.config.ctc_loss_reduction, own.config.ctc_zero_infinity = "mean", True  # type: ignore[union-attr]
        theirs = float(own(batch.features, attention_mask=mask, labels=labels).loss)
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours > 1e-4


def test_parts_of_a_batch_add_up(model: CtcModel, examples: list[Example]) -> None:
    loss = CtcLoss(model)

    def total(some: list[Example]) -> tuple[float, float]:
        batch = loss.collate(some, 3)
        with torch.no_grad():
            return float(loss(Output(*model.train_outputs(batch.features, batch.lengths)), batch)), batch.weight

    whole, (left, right) = total(examples), (total(examples[:2]), total(examples[2:]))
    assert left[0] + right[0] == pytest.approx(whole[0], rel=1e-4)
    assert left[1] + right[1] == whole[1] == 5


def test_too_short_for_its_labels_counts_nothing(model: CtcModel) -> None:
    logprobs = torch.zeros(1, 2, len(model.tokenizer)).log_softmax(-1).requires_grad_()
    batch = Batch(("a",), torch.zeros(1, 1), torch.tensor([1]), Labels(torch.tensor([5, 5]), torch.tensor([2])), 1.0)
    loss = CtcLoss(model)(Output(logprobs, torch.tensor([2])), batch)
    loss.backward()
    assert float(loss.detach()) == 0
    assert logprobs.grad is not None and not logprobs.grad.any()


def test_padding_is_not_heard(model: CtcModel, examples: list[Example]) -> None:
    loss = CtcLoss(model)
    alone, together = loss.collate(examples[:1], 0), loss.collate(examples, 0)
    with torch.no_grad():
        first = loss.each(Output(*model.train_outputs(alone.features, alone.lengths)), alone)
        all_of_them = loss.each(Output(*model.train_outputs(together.features, together.lengths)), together)
    assert float(first[0]) == pytest.approx(float(all_of_them[0]), rel=1e-4, abs=1e-6)


def test_masks_are_those_of_the_recording_and_the_step() -> None:
    place = Path(__file__).parents[1] / "data/nemo/quartznet.nemo"
    model = load_model(str(place))
    assert isinstance(model, CtcModel)
    waves = [np.random.default_rng(i).normal(0, 0.1, 8000 + 800 * i).astype(np.float32) for i in range(3)]
    examples = [Example(f"e{i}", wave, "one two") for i, wave in enumerate(waves)]
    loss = CtcLoss(model, spec_augment=SpecAugment(time_masks=1, max_time_frames=10))
    whole, part, other = loss.collate(examples, 7), loss.collate(examples[1:2], 7), loss.collate(examples, 8)
    plain = CtcLoss(model).collate(examples, 7)
    rows = int(part.lengths[0])
    assert torch.equal(whole.features[1, :rows], part.features[0])
    assert not torch.equal(whole.features, other.features)
    assert not torch.equal(whole.features, plain.features)
    assert torch.equal(whole.lengths, plain.lengths)


def test_a_recording_without_text_cannot_be_learned(model: CtcModel, examples: list[Example]) -> None:
    with pytest.raises(TrainingError, match="x1: has no text, which the loss 'ctc' needs: give texts, or distil"):
        CtcLoss(model).collate([Example("x1", examples[0].wave, None)], 0)


def test_gradients_are_finite_and_lower_the_loss(model: CtcModel, examples: list[Example]) -> None:
    loss = CtcLoss(model, encoder=LabelEncoder.of(model))
    scores = torch.randn(2, 40, len(model.tokenizer), generator=torch.Generator().manual_seed(0), requires_grad=True)
    batch = loss.collate(examples[:2], 0)
    counts = torch.tensor([40, 33])
    before = loss(Output(functional.log_softmax(scores, -1), counts), batch)
    before.backward()
    assert scores.grad is not None and bool(scores.grad.isfinite().all())
    with torch.no_grad():
        after = loss(Output(functional.log_softmax(scores - scores.grad, -1), counts), batch)
    assert float(after) < float(before.detach())
    assert not scores.grad[1, 33:].any()
