"""LF-MMI against the enumeration of all paths, and against dense matrices in float64."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import torch

from quantasr.training.lf_mmi import objective, tensors
from quantasr.training.lf_mmi.graph import LONGEST, Hmm
from quantasr.training.lf_mmi.objective import lf_mmi, likelihoods


def random_hmm(seed: int, states: int = 4, pdfs: int = 5, arcs: int = 9, *, final: bool = False) -> Hmm:
    rng = np.random.default_rng(seed)
    source = np.concatenate([np.arange(states), rng.integers(states, size=arcs - states)]).astype(np.int32)
    target = rng.permutation(np.concatenate([np.arange(states), rng.integers(states, size=arcs - states)]))
    initial = rng.random(states)
    return Hmm(
        source,
        target.astype(np.int32),
        rng.integers(pdfs, size=arcs).astype(np.int32),
        rng.uniform(0.1, 0.9, arcs),
        initial / initial.sum(),
        np.eye(states)[-1] if final else np.ones(states),
    )


def enumerated(scores: np.ndarray, hmm: Hmm) -> tuple[float, np.ndarray]:
    """Log-likelihood and posteriors [frames, pdfs] by walking along every sequence of arcs."""
    total, posteriors = 0.0, np.zeros_like(scores)
    for path in product(range(len(hmm.source)), repeat=len(scores)):
        if any(hmm.target[a] != hmm.source[b] for a, b in pairwise(path)):
            continue
        weight = hmm.initial[hmm.source[path[0]]] * hmm.final[hmm.target[path[-1]]]
        for t, arc in enumerate(path):
            weight *= hmm.prob[arc] * np.exp(scores[t, hmm.pdf[arc]])
        total += weight
        for t, arc in enumerate(path):
            posteriors[t, hmm.pdf[arc]] += weight
    return float(np.log(total)), posteriors / total


def dense(scores: torch.Tensor, hmm: Hmm, leak: float) -> torch.Tensor:
    """Log-likelihood by products of dense matrices, differentiable: a leak is the matrix 1 + leak * 1 initial'."""
    initial, final = torch.from_numpy(hmm.initial), torch.from_numpy(hmm.final)
    leaking = torch.eye(len(initial), dtype=torch.float64) + leak * torch.ones_like(initial)[:, None] * initial
    alpha = initial @ leaking
    for frame in scores:
        move = torch.zeros(len(initial), len(initial), dtype=torch.float64)
        at = torch.from_numpy(hmm.source).long(), torch.from_numpy(hmm.target).long()
        move = move.index_put(at, torch.from_numpy(hmm.prob) * frame.exp()[torch.from_numpy(hmm.pdf).long()], True)
        alpha = alpha @ move @ leaking
    return (alpha @ final).log()


@pytest.fixture(params=["compiled", "tensors"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "tensors":
        monkeypatch.setattr(objective, "compiled", None)
    return str(request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_paths_are_summed(way: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(scale=2.0, size=(3, 5, 5))
    lengths = [5, 3, 4]
    graphs = [random_hmm(seed, final=True) for seed in (2, 3, 4)]
    logs, posteriors = likelihoods(torch.tensor(scores, dtype=dtype), torch.tensor(lengths), graphs, dtype=dtype)
    for row, (hmm, length) in enumerate(zip(graphs, lengths, strict=True)):
        total, wanted = enumerated(scores[row, :length], hmm)
        assert abs(logs[row].item() - total) < 1e-5
        assert np.abs(posteriors[row, :length].numpy() - wanted).max() < 1e-5
        assert not posteriors[row, length:].any()
        assert np.allclose(posteriors[row, :length].sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("leak", [0.0, 1e-5, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_denominator_is_that_of_dense_matrices(way: str, leak: float, dtype: torch.dtype) -> None:
    hmm = random_hmm(7, states=6, pdfs=8, arcs=20)
    scores = torch.tensor(np.random.default_rng(5).normal(scale=3.0, size=(4, 30, 8)), requires_grad=True)
    lengths = torch.tensor([30, 1, 17, 29])
    wanted = torch.stack([dense(scores[row, :n], hmm, leak) for row, n in enumerate(lengths.tolist())])
    (slopes,) = torch.autograd.grad(wanted.sum(), scores)
    logs, posteriors = likelihoods(scores.to(dtype), lengths, hmm, leak=leak, dtype=dtype)
    assert (logs - wanted).abs().max() < (2e-5 if dtype == torch.float32 else 1e-10)  # of numbers up to 100
    assert (posteriors - slopes).abs().max() < 1e-5


@pytest.mark.parametrize("leak", [0.0, 0.1])
def test_gradients_are_those_of_the_loss(way: str, leak: float) -> None:
    numerators = [random_hmm(seed, final=True) for seed in (2, 3)]
    denominator = random_hmm(9, states=5, arcs=16)
    lengths = torch.tensor([6, 4])
    rng = np.random.default_rng(3)
    scores = torch.tensor(rng.normal(size=(2, 6, 5)), dtype=torch.float32, requires_grad=True)
    exact = scores.detach().double().requires_grad_()
    wanted = torch.stack(
        [dense(exact[b, :n], numerators[b], 0) - dense(exact[b, :n], denominator, leak) for b, n in enumerate((6, 4))]
    )
    weights = torch.tensor([1.0, -2.5])
    (slope,) = torch.autograd.grad((wanted * weights).sum(), exact)
    found, _ = lf_mmi(scores, lengths, numerators, denominator, leak=leak)
    (found * weights).sum().backward()
    assert (found - wanted).abs().max() < 1e-5
    assert scores.grad is not None
    assert (scores.grad - slope).abs().max() < 1e-5


def test_long_recordings_and_extreme_scores_stay_finite(way: str) -> None:
    hmm = random_hmm(7, states=6, pdfs=8, arcs=20)
    scores = torch.tensor(np.random.default_rng(5).normal(scale=25.0, size=(2, 2000, 8)), dtype=torch.float32)
    logs, posteriors = likelihoods(scores, torch.tensor([2000, 1999]), hmm, leak=1e-5)
    wanted, _ = likelihoods(scores, torch.tensor([2000, 1999]), hmm, leak=1e-5, dtype=torch.float64)
    assert torch.isfinite(posteriors).all()
    assert ((logs - wanted) / wanted).abs().max() < 1e-6
    assert posteriors[0].sum(1).sub(1).abs().max() < 1e-3


def test_nothing_is_learnt_from_a_recording_without_a_path(way: str) -> None:
    chain = Hmm(
        np.arange(4, dtype=np.int32),
        np.arange(1, 5, dtype=np.int32),
        np.zeros(4, np.int32),
        np.ones(4),
        np.eye(5)[0],
        np.eye(5)[4],
    )
    assert chain.min_frames == 4
    assert Hmm(chain.target - 1, chain.source, chain.pdf, chain.prob, chain.initial, chain.final).min_frames == LONGEST
    scores = torch.zeros(2, 4, 5, requires_grad=True)
    objective_, posteriors = lf_mmi(scores, torch.tensor([3, 4]), [chain, chain], random_hmm(1))
    objective_.sum().backward()
    assert scores.grad is not None
    assert objective_[0] == 0 and not scores.grad[0].any() and not posteriors[0].any()
    assert objective_[1] != 0 and scores.grad[1].any()


def test_both_ways_agree_on_a_larger_graph() -> None:
    hmm = random_hmm(11, states=200, pdfs=50, arcs=1500)
    scores = torch.tensor(np.random.default_rng(5).normal(scale=2, size=(3, 20, 50)))
    lengths = torch.tensor([20, 11, 19])
    logs, posteriors = likelihoods(scores, lengths, hmm, leak=0.1, dtype=torch.float64)
    best = scores.amax(2, keepdim=True)
    inside = torch.arange(20) < lengths[:, None]
    for graphs in (hmm, [hmm] * 3):
        others, slopes = tensors.forward_backward((scores - best).exp(), lengths, graphs, 0.1)
        assert torch.allclose(others + (best[:, :, 0] * inside).sum(1), logs, atol=1e-10)
        assert torch.allclose(slopes, posteriors, atol=1e-12)
