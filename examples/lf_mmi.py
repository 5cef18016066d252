"""Lattice-free MMI (Povey et al., 2016; flat start: Hadian et al., 2018), dense: for whole recordings and few phones.

Phones have the one-state topology of Kaldi's chain models: the first frame of a phone is scored by its forward pdf,
every further one by its self-loop pdf, and either goes on with probability 1/2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

NEVER = -1e5  # a log-probability of nothing: infinity would make its gradient not a number
STAY = math.log(0.5)
LEAK = math.log(0.1)  # of the denominator, between any two frames to any phone (Kaldi's leaky HMM)


@dataclass(frozen=True)
class Hmm:
    """A graph whose states are phones; log-probabilities. A leading axis, if there is one, is the batch.

    ``start`` [states], ``enter`` [from, to], ``end`` [states]: the weights between phones, without the 1/2 of leaving
    one; ``phone`` [states]: which phone, from 0, so that its pdfs are 2 * phone and 2 * phone + 1.
    """

    start: Tensor
    enter: Tensor
    end: Tensor
    phone: Tensor


def denominator(bigram: Tensor) -> Hmm:
    """The graph of all phone sequences under ``bigram`` [phones + 1, phones + 1].

    Its last row says how they start, its last column how they end.
    """
    logs = torch.log(bigram).clamp(min=NEVER)
    return Hmm(logs[-1, :-1], logs[:-1, :-1], logs[:-1, -1], torch.arange(len(bigram) - 1))


def numerators(words: Sequence[Sequence[Sequence[int]]], silence: int, bigram: Tensor) -> Hmm:
    """The graphs of transcripts, a batch of them: each a list of words, which are lists of phones.

    Between words and at both ends silence may stand or not. Weights are those of ``bigram``, as in the denominator, so
    that a path costs the same in both.
    """
    logs = torch.log(bigram).clamp(min=NEVER)
    boundary = len(bigram) - 1
    chains = [[silence, *(p for word in text for p in (*word, silence))] for text in words]
    size = max(len(chain) for chain in chains)
    start, end = torch.full((2, len(chains), size), NEVER)
    enter = torch.full((len(chains), size, size), NEVER)
    phone = torch.zeros((len(chains), size), dtype=torch.long)
    for row, chain in enumerate(chains):
        phone[row, : len(chain)] = torch.tensor(chain)
        for s, p in enumerate(chain):
            if s < 2:
                start[row, s] = logs[boundary, p]
            if s >= len(chain) - 2:
                end[row, s] = logs[p, boundary]
            if s + 1 < len(chain):
                enter[row, s, s + 1] = logs[p, chain[s + 1]]
            if s + 2 < len(chain) and chain[s + 1] == silence:
                enter[row, s, s + 2] = logs[p, chain[s + 2]]
    return Hmm(start, enter, end, phone)


def log_likelihood(scores: Tensor, lengths: Tensor, hmm: Hmm, *, leaky: bool = False) -> Tensor:
    """The log-likelihood [batch] of ``scores`` [batch, frames, pdfs], of which ``lengths`` [batch] frames count."""
    phone = hmm.phone.expand(len(scores), -1)
    first, further = (
        torch.gather(scores, 2, at[:, None].expand(-1, scores.shape[1], -1)) for at in (2 * phone, 2 * phone + 1)
    )
    alpha = hmm.start + first[:, 0]
    for t in range(1, scores.shape[1]):
        entered = torch.logsumexp(alpha[:, :, None] + (hmm.enter + STAY), 1) + first[:, t]
        now = torch.logaddexp(entered, alpha + STAY + further[:, t])
        if leaky:
            now = torch.logaddexp(now, torch.logsumexp(now, 1, keepdim=True) + LEAK - math.log(phone.shape[1]))
        alpha = torch.where((t < lengths)[:, None], now, alpha)
    return torch.logsumexp(alpha + hmm.end, 1)


def lf_mmi(scores: Tensor, lengths: Tensor, numerator: Hmm, denominator: Hmm) -> tuple[Tensor, Tensor]:
    """The objective per frame (a number, at most about 0, higher is better), and what else is learnt from it.

    Returns the objective with its gradient to ``scores`` attached, and the posteriors of the numerator [batch, frames,
    pdfs], which are targets of the cross-entropy output.
    """
    leaf = scores.detach().float().requires_grad_()
    total = log_likelihood(leaf, lengths, numerator)
    (right,) = torch.autograd.grad(total.sum(), leaf)
    everything = log_likelihood(leaf, lengths, denominator, leaky=True)
    (all_paths,) = torch.autograd.grad(everything.sum(), leaf)
    frames = lengths.sum()
    value = (total - everything).sum().detach() / frames
    slope = ((right - all_paths) * scores).sum() / frames
    return value + slope - slope.detach(), right


def stack(sequences: Sequence[Tensor]) -> Tensor:
    """Features [frames, dim] of different lengths as one tensor [batch, dim, frames]; the last frame is repeated."""
    longest = max(len(s) for s in sequences)
    return torch.stack([pad(s.T[None], (0, longest - len(s)), mode="replicate")[0] for s in sequences])
