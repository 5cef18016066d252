"""Forward-backward in PyTorch's operations, for any device: one graph for a whole batch, or one for each recording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantasr.training.lf_mmi.graph import Hmm


def forward_backward(
    scores: Tensor, lengths: Tensor, graphs: Hmm | Sequence[Hmm], leak: float
) -> tuple[Tensor, Tensor]:
    """Log-likelihoods [batch] and posteriors [batch, frames, pdfs] of likelihoods ``scores`` of the same shape.

    Where no path has as many frames as ``lengths`` [batch] says, the log-likelihood is -inf, and the posteriors are
    zero.
    """
    batch, frames, pdfs = scores.shape
    graph = _Shared(graphs, scores) if isinstance(graphs, Hmm) else _SideBySide(graphs, scores)
    steps = scores.transpose(0, 1).reshape(frames, graph.rows, -1)
    alpha = graph.initial.expand(graph.rows, -1)
    alphas: list[Tensor] = []
    sums: list[Tensor] = []
    totals = scores.new_zeros(batch)
    scale = scores.new_zeros(batch)
    for t in range(frames + 1):
        if t:
            moved = alphas[-1][:, graph.source] * graph.prob * steps[t - 1][:, graph.pdf]
            alpha = torch.zeros_like(alpha).index_add_(1, graph.target, moved) * graph.spread(_inverse(sums[-1]))
        total = graph.sum(alpha)
        sums.append(total)
        alphas.append(alpha + leak * graph.spread(total) * graph.initial if leak else alpha)
        totals = torch.where(lengths == t, graph.sum(alphas[-1] * graph.final), totals)
        scale = scale + torch.where(t < lengths, total.log(), torch.zeros_like(total))
    found = torch.where(totals > 0, totals.log() + scale, torch.full_like(totals, -torch.inf))
    posteriors = torch.zeros_like(steps)
    ended = graph.final * graph.spread(_inverse(totals))
    beta = torch.zeros_like(alphas[0])
    for t in range(frames, -1, -1):
        now = torch.zeros_like(beta)
        if t < frames:
            part = graph.prob * (beta * graph.spread(_inverse(sums[t])))[:, graph.target] * steps[t][:, graph.pdf]
            now.index_add_(1, graph.source, part)
            posteriors[t].index_add_(1, graph.pdf, part * alphas[t][:, graph.source])
        now = torch.where(graph.spread(lengths == t), ended, now)
        beta = now + leak * graph.spread(graph.sum(now * graph.initial)) if leak else now
    return found, posteriors.view(frames, batch, pdfs).transpose(0, 1)


def _inverse(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1 / x, torch.zeros_like(x))


class _Shared:
    """One graph; a row of states for each recording."""

    def __init__(self, graph: Hmm, like: Tensor) -> None:
        self.rows = len(like)
        self.source, self.target, self.pdf = (_ints(x, like) for x in (graph.source, graph.target, graph.pdf))
        self.prob, self.initial, self.final = (_reals(x, like) for x in (graph.prob, graph.initial, graph.final))

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the states of each recording, [batch]."""
        return values.sum(1)

    def spread(self, values: Tensor) -> Tensor:
        """A value of each recording, at each of its states."""
        return values[:, None]


class _SideBySide:
    """A graph for each recording, all in one row; states, and pdfs of the whole batch, are counted through."""

    rows = 1

    def __init__(self, graphs: Sequence[Hmm], like: Tensor) -> None:
        states = [graph.states for graph in graphs]
        begins = (np.cumsum(states) - states).tolist()
        self._batch = len(graphs)
        self._owner = _ints(np.repeat(np.arange(self._batch), states), like)
        self.source = _ints(np.concatenate([g.source + at for g, at in zip(graphs, begins, strict=True)]), like)
        self.target = _ints(np.concatenate([g.target + at for g, at in zip(graphs, begins, strict=True)]), like)
        self.pdf = _ints(np.concatenate([g.pdf + row * like.shape[2] for row, g in enumerate(graphs)]), like)
        self.prob = _reals(np.concatenate([g.prob for g in graphs]), like)
        self.initial = _reals(np.concatenate([g.initial for g in graphs]), like)
        self.final = _reals(np.concatenate([g.final for g in graphs]), like)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the states of each recording, [batch]."""
        return values.new_zeros(self._batch).index_add_(0, self._owner, values[0])

    def spread(self, values: Tensor) -> Tensor:
        """A value of each recording, at each of its states."""
        return values[self._owner][None]


def _ints(values: NDArray[Any], like: Tensor) -> Tensor:
    return torch.from_numpy(values.astype(np.int64)).to(like.device)


def _reals(values: NDArray[Any], like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like)
