"""Forward-backward over one graph, for a batch of recordings side by side; compiled by numba, for CPUs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, fastmath={"contract", "reassoc", "nsz"})
def _forward(
    scores: Any, lengths: Any, first: Any, other: Any, pdf: Any, prob: Any, initial: Any, final: Any, leak: Any
) -> Any:
    """(alpha with the leak in it [frames + 1, states, batch], its sums before it [frames + 1, batch], totals)."""
    frames, _, batch = scores.shape
    states = len(initial)
    alpha = np.zeros((frames + 1, states, batch), scores.dtype)
    sums = np.zeros((frames + 1, batch), scores.dtype)
    totals = np.zeros(batch, np.float64)
    acc = np.zeros(batch, scores.dtype)
    inverse = np.zeros(batch, scores.dtype)
    for s in range(states):
        for b in range(batch):
            alpha[0, s, b] = initial[s]
            sums[0, b] += initial[s]
    for t in range(frames + 1):
        if t > 0:
            for b in range(batch):
                inverse[b] = 1 / sums[t - 1, b] if sums[t - 1, b] > 0 else 0
            for s in range(states):
                acc[:] = 0
                for arc in range(first[s], first[s + 1]):
                    frm, p, w = other[arc], pdf[arc], prob[arc]
                    for b in range(batch):
                        acc[b] += w * alpha[t - 1, frm, b] * scores[t - 1, p, b]
                for b in range(batch):
                    alpha[t, s, b] = acc[b] * inverse[b]
                    sums[t, b] += alpha[t, s, b]
        if leak > 0:
            for s in range(states):
                share = leak * initial[s]
                for b in range(batch):
                    alpha[t, s, b] += share * sums[t, b]
        for b in range(batch):
            if lengths[b] == t:
                for s in range(states):
                    totals[b] += np.float64(alpha[t, s, b]) * final[s]
    return alpha, sums, totals


@njit(cache=True, fastmath={"contract", "reassoc", "nsz"})
def _backward(
    scores: Any,
    lengths: Any,
    first: Any,
    other: Any,
    pdf: Any,
    prob: Any,
    initial: Any,
    final: Any,
    leak: Any,
    alpha: Any,
    sums: Any,
    totals: Any,
) -> Any:
    """Posteriors of the pdfs [frames, pdfs, batch]."""
    frames, _, batch = scores.shape
    states = len(initial)
    posteriors = np.zeros_like(scores)
    beta = np.zeros((states, batch), scores.dtype)
    now = np.zeros((states, batch), scores.dtype)
    acc = np.zeros(batch, scores.dtype)
    inverse = np.zeros(batch, scores.dtype)
    leaked = np.zeros(batch, scores.dtype)
    for t in range(frames, -1, -1):
        if t < frames:
            for b in range(batch):
                inverse[b] = 1 / sums[t, b] if sums[t, b] > 0 else 0
            for s in range(states):
                acc[:] = 0
                for arc in range(first[s], first[s + 1]):
                    to, p, w = other[arc], pdf[arc], prob[arc]
                    for b in range(batch):
                        part = w * beta[to, b] * scores[t, p, b] * inverse[b]
                        acc[b] += part
                        posteriors[t, p, b] += part * alpha[t, s, b]
                for b in range(batch):
                    now[s, b] = acc[b]
        for b in range(batch):
            if lengths[b] == t and totals[b] > 0:
                for s in range(states):
                    now[s, b] = final[s] / totals[b]
        if leak > 0:
            leaked[:] = 0
            for s in range(states):
                share = leak * initial[s]
                for b in range(batch):
                    leaked[b] += share * now[s, b]
        for s in range(states):
            for b in range(batch):
                beta[s, b] = now[s, b] + leaked[b]
    return posteriors


def forward_backward(
    scores: NDArray[Any], lengths: NDArray[np.int64], graph: Any, leak: float
) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Log-likelihoods [batch] and posteriors [frames, pdfs, batch] of likelihoods ``scores`` of the same shape.

    All arithmetic is in the type of ``scores``. Where no path has so many frames the log-likelihood is -inf, and the
    posteriors are zero.
    """
    kind = scores.dtype
    ends = graph.initial.astype(kind), graph.final.astype(kind), kind.type(leak)
    first, other, pdf, prob = graph.by_target
    alpha, sums, totals = _forward(scores, lengths, first, other, pdf, prob.astype(kind), *ends)
    first, other, pdf, prob = graph.by_source
    posteriors = _backward(scores, lengths, first, other, pdf, prob.astype(kind), *ends, alpha, sums, totals)
    with np.errstate(divide="ignore"):
        scaled = np.where(np.arange(len(sums))[:, None] < lengths, np.log(sums.astype(np.float64)), 0).sum(0)
        found: NDArray[np.float64] = np.where(totals > 0, np.log(totals) + np.where(totals > 0, scaled, 0), -np.inf)
    return found, posteriors
