"""LF-MMI of scores: numerator and denominator by forward-backward, gradients from their posteriors.

Povey et al., "Purely sequence-trained neural networks for ASR based on lattice-free MMI" (Interspeech 2016).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantasr.training.lf_mmi import tensors
from quantasr.training.lf_mmi.graph import Hmm

try:
    from quantasr.training.lf_mmi import compiled
except ImportError:  # without numba everything runs in PyTorch, more slowly
    compiled = None  # type: ignore[assignment]


def likelihoods(
    scores: Tensor, lengths: Tensor, graphs: Hmm | Sequence[Hmm], *, leak: float = 0.0, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Log-likelihoods [batch] of ``scores`` [batch, frames, pdfs], and the posteriors of the pdfs in the same shape.

    ``lengths`` [batch] are the frames that count; posteriors of others are zero. ``graphs``: one for all, or one each.
    ``leak``: after each frame, that share of the probability moves to the initial states (Kaldi's leaky HMM). Nothing
    is remembered for autograd. ``dtype``: of the arithmetic; float64 unless one graph serves many.
    """
    scores = scores.detach()
    on_cpu = scores.device.type == "cpu" and compiled is not None
    if on_cpu and not isinstance(graphs, Hmm):
        return _each_on_cpu(scores, lengths, graphs, leak, dtype or torch.float64)
    dtype = dtype or (torch.float32 if isinstance(graphs, Hmm) and len(scores) > 1 else torch.float64)
    best = scores.amax(2, keepdim=True)
    exp = (scores - best).to(dtype).exp()
    if on_cpu:
        assert isinstance(graphs, Hmm)
        columns = exp.permute(1, 2, 0).contiguous().numpy()
        logs, rows = compiled.forward_backward(columns, lengths.numpy().astype(np.int64), graphs, leak)
        found, posteriors = torch.from_numpy(logs), torch.from_numpy(rows).permute(2, 0, 1)
    else:
        found, posteriors = tensors.forward_backward(exp, lengths, graphs, leak)
    inside = torch.arange(scores.shape[1], device=scores.device) < lengths[:, None]
    return found.double() + (best[:, :, 0].double() * inside).sum(1), posteriors.to(scores.dtype)


def _each_on_cpu(
    scores: Tensor, lengths: Tensor, graphs: Sequence[Hmm], leak: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """One recording after the other, each with the pdfs of its own graph."""
    logs, posteriors = torch.zeros(len(scores), dtype=torch.float64), torch.zeros_like(scores)
    for row, graph in enumerate(graphs):
        count = int(lengths[row])
        used, local = graph.compact
        pdfs = torch.from_numpy(used)
        chosen = scores[row, :count, pdfs]
        best = chosen.amax(1, keepdim=True)
        columns = (chosen - best).to(dtype).exp()[:, :, None].numpy()
        found, rows = compiled.forward_backward(columns, np.array([count]), local, leak)
        logs[row] = found[0] + float(best.double().sum())
        posteriors[row, :count, pdfs] = torch.from_numpy(rows[:, :, 0]).to(scores.dtype)
    return logs, posteriors


class _LfMmi(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, lengths: Tensor, numerators: Sequence[Hmm], denominator: Hmm, leak: float
    ) -> tuple[Tensor, Tensor]:
        right, posteriors = likelihoods(scores, lengths, numerators)
        everything, others = likelihoods(scores, lengths, denominator, leak=leak)
        usable = torch.isfinite(right) & torch.isfinite(everything)
        ctx.save_for_backward((posteriors - others) * usable[:, None, None])
        ctx.mark_non_differentiable(posteriors)
        return torch.where(usable, right - everything, 0.0), posteriors

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return slope * grads[0].to(slope.dtype)[:, None, None], None, None, None, None


def lf_mmi(
    scores: Tensor, lengths: Tensor, numerators: Sequence[Hmm], denominator: Hmm, *, leak: float = 0.1
) -> tuple[Tensor, Tensor]:
    """The objective of each recording [batch] (float64, at most 0; higher is better), and the numerator's posteriors.

    The posteriors [batch, frames, pdfs] are what a cross-entropy branch learns. Of recordings that have fewer frames
    than their numerator needs, or whose scores are not finite, the objective is 0 and nothing is learnt.
    """
    found: tuple[Tensor, Tensor] = _LfMmi.apply(scores, lengths, numerators, denominator, leak)  # type: ignore[no-untyped-call]
    return found
