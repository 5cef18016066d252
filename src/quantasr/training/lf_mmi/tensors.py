"""Forward-backward over many graphs at once in PyTorch's operations, for any device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from quantasr.training.lf_mmi.graph import Hmm


def forward_backward(scores: Tensor, lengths: Tensor, graphs: Sequence[Hmm], leak: float) -> tuple[Tensor, Tensor]:
    """Log-likelihoods [batch] and posteriors [batch, frames, pdfs] of likelihoods ``scores`` of the same shape.

    ``graphs``: one a recording; they are put side by side as one graph. Where no path has as many frames as ``lengths``
    [batch] says, the log-likelihood is -inf, and the posteriors are zero.
    """
    batch, frames, pdfs = scores.shape
    flat = _Flat(graphs, scores, pdfs)
    steps = scores.transpose(0, 1).reshape(frames, batch * pdfs)
    alpha = flat.initial.clone()
    alphas: list[Tensor] = []
    sums: list[Tensor] = []
    totals = scores.new_zeros(batch)
    scale = scores.new_zeros(batch)
    for t in range(frames + 1):
        if t:
            moved = alphas[-1][flat.source] * flat.prob * steps[t - 1][flat.pdf]
            alpha = torch.zeros_like(alpha).index_add_(0, flat.target, moved) * flat.spread(_inverse(sums[-1]))
        total = flat.sum(alpha)
        sums.append(total)
        alphas.append(alpha + leak * flat.spread(total) * flat.initial if leak else alpha)
        totals = torch.where(lengths == t, flat.sum(alphas[-1] * flat.final), totals)
        scale = scale + torch.where(t < lengths, total.log(), torch.zeros_like(total))
    found = torch.where(totals > 0, totals.log() + scale, torch.full_like(totals, -torch.inf))
    posteriors = torch.zeros_like(steps)
    ended = flat.final * flat.spread(_inverse(totals))
    beta = torch.zeros_like(alpha)
    for t in range(frames, -1, -1):
        now = torch.zeros_like(alpha)
        if t < frames:
            part = flat.prob * beta[flat.target] * (steps[t] * _inverse(sums[t]).repeat_interleave(pdfs))[flat.pdf]
            now.index_add_(0, flat.source, part)
            posteriors[t].index_add_(0, flat.pdf, part * alphas[t][flat.source])
        now = torch.where(flat.spread(lengths == t), ended, now)
        beta = now + flat.spread(flat.sum(now * flat.initial)) * leak if leak else now
    return found, posteriors.view(frames, batch, pdfs).transpose(0, 1)


def _inverse(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1 / x, torch.zeros_like(x))


class _Flat:
    """Graphs side by side: states and pdfs are counted through; ``owner`` [states] says whose a state is."""

    def __init__(self, graphs: Sequence[Hmm], like: Tensor, pdfs: int) -> None:
        states = np.array([graph.states for graph in graphs])
        begins = np.cumsum(states) - states
        moved = list(zip(graphs, begins.tolist(), range(len(graphs)), strict=True))
        self._batch = len(graphs)

        def ints(parts: list[np.ndarray]) -> Tensor:  # type: ignore[type-arg]
            return torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(like.device)

        def reals(name: str) -> Tensor:
            return torch.from_numpy(np.concatenate([getattr(g, name) for g in graphs])).to(like)

        self.source, self.target = (
            ints([getattr(g, name) + at for g, at, _ in moved]) for name in ("source", "target")
        )
        self.pdf = ints([g.pdf + row * pdfs for g, _, row in moved])
        self.owner = ints([np.repeat(np.arange(self._batch), states)])
        self.prob, self.initial, self.final = reals("prob"), reals("initial"), reals("final")

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the states of each recording."""
        return values.new_zeros(self._batch).index_add_(0, self.owner, values)

    def spread(self, values: Tensor) -> Tensor:
        """A value of each recording at each of its states."""
        return values[self.owner]
