"""KL between teacher and student by hand, and the two losses together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quantasr.errors import TrainingError
from quantasr.sources import load_model
from quantasr.sources.asr_model import CtcModel
from quantasr.speech.manifest import read_manifest
from quantasr.training.batch import Batch, Example, Output
from quantasr.training.losses import CtcLoss, Distillation, Weighted

DIGITS = Path(__file__).parents[2] / "src/quantasr/sample/digits"


class Fixed(nn.Module):
    """A graph that says the same whatever it hears."""

    def __init__(self, logprobs: Tensor, counts: Tensor) -> None:
        super().__init__()
        self.logprobs, self.counts = logprobs, counts

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.logprobs, self.counts

    def frame_counts(self, lengths: Tensor) -> Tensor:
        return self.counts


@pytest.fixture
def teacher() -> CtcModel:
    loaded = load_model(str(DIGITS))
    assert isinstance(loaded, CtcModel)
    return loaded


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    utterances = read_manifest(DIGITS / "calibration.jsonl")[16:20]
    return [Example(u.id, u.load(8000), u.text) for u in utterances]


def with_output(teacher: CtcModel, logprobs: Tensor, counts: list[int]) -> CtcModel:
    teacher.graph = Fixed(logprobs, torch.tensor(counts))  # type: ignore[assignment]
    return teacher


def kl(teacher: np.ndarray, student: np.ndarray, temperature: float) -> float:
    p, q = (np.exp(x / temperature) / np.exp(x / temperature).sum() for x in (teacher, student))
    return float(temperature**2 * (p * np.log(p / q)).sum())


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("shift", [0.0, 100.0], ids=["normalized", "log-likelihoods"])
def test_it_is_the_divergence_of_every_frame(teacher: CtcModel, temperature: float, shift: float) -> None:
    random = np.random.default_rng(0)
    taught, said = random.normal(size=(2, 2, 3, 4))
    model = with_output(teacher, torch.tensor(taught + shift, dtype=torch.float32), [3, 2])
    loss = Distillation(model, temperature=temperature)
    batch = Batch(("a", "b"), torch.zeros(2, 9), torch.tensor([9, 6]), None, 5.0)
    output = Output(torch.tensor(said, dtype=torch.float32), torch.tensor([3, 2]))
    frames = [kl(taught[i, t], said[i, t], temperature) for i, t in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))]
    assert float(loss(output, batch)) == pytest.approx(sum(frames), rel=1e-4)
    each = loss.each(output, batch).tolist()
    assert each == pytest.approx([sum(frames[:3]) / 3, sum(frames[3:]) / 2], rel=1e-4)


def test_a_teacher_of_its_own_words_costs_nothing(teacher: CtcModel, examples: list[Example]) -> None:
    loss = Distillation(teacher)
    batch = loss.collate([Example(e.id, e.wave, None) for e in examples], 0)
    output = Output(*teacher.train_outputs(batch.features, batch.lengths))
    assert batch.weight == float(output.counts.sum())
    assert abs(float(loss(output, batch).detach())) < 1e-4
    # Another model costs something, and its teacher learns nothing from it.
    said = Output((output.logprobs * 0.5).log_softmax(-1), output.counts)
    worse = loss(said, batch)
    assert float(worse.detach()) > 0.1
    worse.backward()


def test_the_teacher_runs_in_evaluation_mode_and_is_not_trained(teacher: CtcModel, examples: list[Example]) -> None:
    seen: list[tuple[bool, bool]] = []
    teacher.module.register_forward_pre_hook(lambda *_: seen.append((teacher.module.training, torch.is_grad_enabled())))
    teacher.module.train()
    loss = Distillation(teacher)
    batch = loss.collate(examples[:1], 0)
    student = load_model(str(DIGITS))
    assert isinstance(student, CtcModel)
    loss(Output(*student.train_outputs(batch.features, batch.lengths)), batch).backward()
    assert seen == [(False, False)]
    assert teacher.module.training
    assert all(parameter.grad is None for parameter in teacher.module.parameters())
    assert any(parameter.grad is not None for parameter in student.module.parameters())


def test_both_losses_by_recording(teacher: CtcModel, examples: list[Example]) -> None:
    ctc, distillation = CtcLoss(teacher), Distillation(teacher, temperature=2.0)
    both = Weighted(ctc, distillation, alpha=0.25)
    batch = both.collate(examples, 0)
    with torch.no_grad():
        logprobs, counts, _ = teacher.train_outputs(batch.features, batch.lengths)
        output = Output((logprobs * 0.7).log_softmax(-1), counts)
        expected = 0.75 * ctc.each(output, batch) + 0.25 * distillation.each(output, batch)
        assert float(both(output, batch)) == pytest.approx(float(expected.sum()), rel=1e-6)
        assert float(Weighted(ctc, distillation, 0.0)(output, batch)) == pytest.approx(float(ctc(output, batch)))
    assert batch.weight == len(examples)


def test_other_frames_than_the_teachers_are_refused(teacher: CtcModel) -> None:
    model = with_output(teacher, torch.zeros(1, 3, 4), [3])
    batch = Batch(("a",), torch.zeros(1, 9), torch.tensor([9]), None, 3.0)
    with pytest.raises(TrainingError, match="different numbers of frames"):
        Distillation(model)(Output(torch.zeros(1, 3, 4), torch.tensor([2])), batch)


def test_numbers_out_of_range_are_refused(teacher: CtcModel) -> None:
    with pytest.raises(TrainingError, match="temperature is 0"):
        Distillation(teacher, temperature=0)
    with pytest.raises(TrainingError, match=r"alpha.* is 1.5: give 0 to 1"):
        Weighted(CtcLoss(teacher), Distillation(teacher), 1.5)
