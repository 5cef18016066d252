"""Forward-backward over one graph, for a batch of recordings side by side; compiled by numba, for CPUs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from quantasr.training.lf_mmi.graph import Hmm


@njit(cache=True, fastmath={"contract", "reassoc", "nsz"})
def _advance(now: Any, before: Any, frame: Any, first: Any, other: Any, pdf: Any, prob: Any) -> None:
    """Sum what comes into each state: ``now`` and ``before`` are [states, batch], ``frame`` [pdfs, batch]."""
    states, batch = now.shape
    now[:] = 0
    for s in range(states):
        for arc in range(first[s], first[s + 1]):
            origin, p, w = other[arc], pdf[arc], prob[arc]
            for b in range(batch):
                now[s, b] += w * before[origin, b] * frame[p, b]


@njit(cache=True, fastmath={"contract", "reassoc", "nsz"})
def _retreat(
    now: Any, ahead: Any, frame: Any, first: Any, other: Any, pdf: Any, prob: Any, alpha: Any, posteriors: Any
) -> None:
    """Sum what leaves each state, and add how often that is to the posteriors [pdfs, batch] of the frame."""
    states, batch = now.shape
    now[:] = 0
    for s in range(states):
        for arc in range(first[s], first[s + 1]):
            to, p, w = other[arc], pdf[arc], prob[arc]
            for b in range(batch):
                part = w * ahead[to, b] * frame[p, b]
                now[s, b] += part
                posteriors[p, b] += part * alpha[s, b]


@njit(cache=True, fastmath={"contract", "reassoc", "nsz"})
def _leak(now: Any, initial: Any, amount: Any) -> None:
    """Give every state its share of ``amount`` [batch]."""
    states, batch = now.shape
    for s in range(states):
        for b in range(batch):
            now[s, b] += initial[s] * amount[b]


@njit(cache=True, fastmath={"contract", "reassoc", "nsz"})
def _weighted(now: Any, weights: Any, total: Any) -> None:
    """The sum over the states, each times its weight, into ``total`` [batch]."""
    states, batch = now.shape
    total[:] = 0
    for s in range(states):
        for b in range(batch):
            total[b] += weights[s] * now[s, b]


def forward_backward(
    scores: NDArray[Any], lengths: NDArray[np.int64], graph: Hmm, leak: float
) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Log-likelihoods [batch] and posteriors [frames, pdfs, batch] of likelihoods ``scores`` of the same shape.

    All arithmetic is in the type of ``scores``. Where no path has so many frames the log-likelihood is -inf, and the
    posteriors are zero.
    """
    frames, _, batch = scores.shape
    kind = scores.dtype
    initial, final, one = graph.initial.astype(kind), graph.final.astype(kind), np.ones(graph.states, kind)
    first, other, pdf, prob = graph.by_target
    prob = prob.astype(kind)
    alpha = np.empty((frames + 1, graph.states, batch), kind)
    sums = np.empty((frames + 1, batch), kind)
    totals, ended = np.zeros(batch, kind), np.empty(batch, kind)
    alpha[0] = initial[:, None]
    for t in range(frames + 1):
        if t:
            _advance(alpha[t], alpha[t - 1], scores[t - 1], first, other, pdf, prob)
            alpha[t] *= _inverse(sums[t - 1])
        _weighted(alpha[t], one, sums[t])
        if leak:
            _leak(alpha[t], initial, kind.type(leak) * sums[t])
        if (lengths == t).any():
            _weighted(alpha[t], final, ended)
            totals = np.where(lengths == t, ended, totals)
    first, other, pdf, prob = graph.by_source
    prob = prob.astype(kind)
    posteriors = np.zeros_like(scores)
    beta, now = np.zeros((2, graph.states, batch), kind)
    for t in range(frames, -1, -1):
        if t < frames:
            _retreat(now, beta, scores[t], first, other, pdf, prob, alpha[t], posteriors[t])
            now *= _inverse(sums[t])
            posteriors[t] *= _inverse(sums[t])
        if (lengths == t).any():
            now[:, lengths == t] = (final[:, None] * _inverse(totals))[:, lengths == t]
        if leak:
            _weighted(now, initial, ended)
            _leak(now, one, kind.type(leak) * ended)
        beta, now = now, beta
    with np.errstate(divide="ignore"):
        scaled = np.where(np.arange(frames + 1)[:, None] < lengths, np.log(sums.astype(np.float64)), 0).sum(0)
        found: NDArray[np.float64] = np.where(totals > 0, np.log(totals.astype(np.float64)) + scaled, -np.inf)
    return found, posteriors


def _inverse(x: NDArray[Any]) -> NDArray[Any]:
    return np.divide(1, x, out=np.zeros_like(x), where=x > 0)
