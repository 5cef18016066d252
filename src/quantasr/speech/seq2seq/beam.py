"""Beam search, as SpeechBrain's ``S2SBeamSearcher`` goes about it, so that scores and texts are the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantasr.speech.seq2seq.ctc_prefix import NEVER
from quantasr.speech.seq2seq.hypothesis import Hypothesis
from quantasr.speech.seq2seq.options import SearchOptions
from quantasr.speech.seq2seq.scorers import Scorers, at_temperature
from quantasr.speech.seq2seq.states import Stepper

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


def beam_search(decoder: Stepper, scorers: Scorers, options: SearchOptions, frames: int) -> Hypothesis:
    """The best hypothesis of one recording.

    It goes on until as many hypotheses have ended as the beam is wide, or for the most steps that there are. Those that
    have not ended by then count too, without their last token, which stands where an end should.
    """
    width, last = options.beam_width, np.full(options.beam_width, options.bos)
    sums = np.full(width, -np.inf, np.float32)
    sums[0] = 0  # all rows begin alike: one is enough
    texts = np.zeros((width, 0), np.int64)
    peaks = np.zeros(width, np.int64)
    ended: list[Hypothesis] = []
    least, most = options.steps(frames)
    scores = sums
    for step in range(most):
        found = decoder(last)
        attention = found.get("attention", found.get("next_attention"))
        rated = at_temperature(found["logprobs"], options.temperature) * np.float32(1 - options.ctc_weight)
        if options.max_attn_shift is not None:
            assert attention is not None
            peaks = _block_jumps(rated, attention, peaks, options.max_attn_shift)
        _block_ends(rated, options, step < least)
        scorers.add(rated, last, attention)
        rated += sums[:, None]
        if options.length_normalization:
            rated /= np.float32(step + 1)
        chosen = _best(rated.reshape(-1), width)
        rows, last = np.divmod(chosen, options.vocabulary)
        scores = rated.reshape(-1)[chosen]
        sums = scores * np.float32(step + 1) if options.length_normalization else scores.copy()
        decoder.reorder(rows)
        scorers.advance(rows, last)
        peaks = peaks[rows]
        texts = np.concatenate([texts[rows], last[:, None]], 1)
        ends = last == options.eos
        for row in np.flatnonzero(ends)[: width - len(ended)]:
            ended.append(Hypothesis(texts[row, :-1], float(scores[row])))
        sums[ends] = -np.inf
        if len(ended) == width or np.isneginf(sums).all():
            break
    for row in range(width - len(ended)):
        ended.append(Hypothesis(texts[row, :-1], float(scores[row])))
    return max(ended, key=lambda one: one.score)


def _block_jumps(rated: Floats, attention: Floats, before: Ids, furthest: int) -> Ids:
    """Block, in place, hypotheses whose attention has moved too far; where each one's attention is."""
    peaks: Ids = attention.argmax(-1)
    shift = peaks - before
    rated[(shift > furthest) | (shift <= -furthest)] = NEVER
    return peaks


def _block_ends(rated: Floats, options: SearchOptions, early: bool) -> None:
    """Block the end, in place, where it is too early for it, or not likely enough."""
    if early:
        rated[:, options.eos] = NEVER
    if options.eos_threshold is not None:
        unlikely = rated[:, options.eos] <= options.eos_threshold * rated.max(-1)
        rated[unlikely, options.eos] = NEVER


def _best(scores: Floats, count: int) -> Ids:
    """Where the highest are, the highest first."""
    count = min(count, scores.size)
    some = np.sort(np.argpartition(-scores, count - 1)[:count])
    found: Ids = some[np.argsort(-scores[some], kind="stable")]
    return found
