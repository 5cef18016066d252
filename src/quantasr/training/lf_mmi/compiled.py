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


@njit(cache=True, fastmath={"contract", "reassoc", "nsz"})
def _scale(now: Any, sums: Any) -> None:
    """Divide by ``sums`` [batch]; where these are zero there is nothing."""
    rows, batch = now.shape
    inverse = np.zeros_like(sums)
    for b in range(batch):
        if sums[b] > 0:
            inverse[b] = 1 / sums[b]
    for s in range(rows):
        for b in range(batch):
            now[s, b] *= inverse[b]


@njit(cache=True)
def _forward(
    scores: Any, lengths: Any, first: Any, other: Any, pdf: Any, prob: Any, initial: Any, final: Any, leak: Any
) -> Any:
    """(alpha with the leak in it [frames + 1, states, batch], its sums before it [frames + 1, batch], totals)."""
    frames, _, batch = scores.shape
    states = len(initial)
    alpha = np.empty((frames + 1, states, batch), scores.dtype)
    sums = np.empty((frames + 1, batch), scores.dtype)
    totals, ended = np.zeros(batch, scores.dtype), np.empty(batch, scores.dtype)
    one = np.ones_like(initial)
    for t in range(frames + 1):
        if t == 0:
            for s in range(states):
                alpha[0, s] = initial[s]
        else:
            _advance(alpha[t], alpha[t - 1], scores[t - 1], first, other, pdf, prob)
            _scale(alpha[t], sums[t - 1])
        _weighted(alpha[t], one, sums[t])
        if leak > 0:
            _leak(alpha[t], initial, leak * sums[t])
        if (lengths == t).any():
            _weighted(alpha[t], final, ended)
            for b in range(batch):
                if lengths[b] == t:
                    totals[b] = ended[b]
    return alpha, sums, totals


@njit(cache=True)
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
    beta, now = np.zeros((states, batch), scores.dtype), np.zeros((states, batch), scores.dtype)
    leaked = np.empty(batch, scores.dtype)
    one = np.ones_like(initial)
    for t in range(frames, -1, -1):
        if t < frames:
            _retreat(now, beta, scores[t], first, other, pdf, prob, alpha[t], posteriors[t])
            _scale(now, sums[t])
            _scale(posteriors[t], sums[t])
        for b in range(batch):
            if lengths[b] == t and totals[b] > 0:
                for s in range(states):
                    now[s, b] = final[s] / totals[b]
        if leak > 0:
            _weighted(now, initial, leaked)
            _leak(now, one, leak * leaked)
        beta, now = now, beta
    return posteriors


def forward_backward(
    scores: NDArray[Any], lengths: NDArray[np.int64], graph: Hmm, leak: float
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
        found: NDArray[np.float64] = np.where(totals > 0, np.log(totals.astype(np.float64)) + scaled, -np.inf)
    return found, posteriors
