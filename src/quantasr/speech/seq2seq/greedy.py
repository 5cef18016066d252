"""The most likely token of each step, as SpeechBrain's ``S2SGreedySearcher`` takes it."""

from __future__ import annotations

import numpy as np

from quantasr.speech.seq2seq.hypothesis import Hypothesis
from quantasr.speech.seq2seq.options import SearchOptions
from quantasr.speech.seq2seq.states import Stepper


def greedy_search(decoder: Stepper, options: SearchOptions, frames: int) -> Hypothesis:
    """The hypothesis of one recording; of a least number of steps SpeechBrain makes one that they begin to count at."""
    tokens: list[int] = []
    score, token = 0.0, options.bos
    for _ in range(*options.steps(frames)):
        row = decoder(np.array([token]))["logprobs"][0]
        token = int(row.argmax())
        if token == options.eos:
            break
        score += float(row[token])
        tokens.append(token)
    return Hypothesis(np.array(tokens, np.int64), score)
