"""Whisper's decoder part, called step by step with its state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import ModelLoadError
from quantasr.speech.parts import Arrays, Part
from quantasr.speech.whisper.options import WhisperFacts


class DecoderState:
    """Keys and values of what was read so far, and of the audio; ``take`` makes one of another batch."""

    def __init__(self, past: dict[str, NDArray[np.float32]], cross: Arrays, length: int) -> None:
        self.past = past
        self.cross = cross
        self.length = length

    def take(self, rows: Sequence[int]) -> DecoderState:
        """The state whose row ``i`` is row ``rows[i]`` of this one."""
        return DecoderState({name: past[rows] for name, past in self.past.items()}, self.cross, self.length)


class WhisperDecoder:
    """The part ``decoder``: tokens in, logits out."""

    def __init__(self, part: Part, facts: WhisperFacts, name: str) -> None:
        self._part = part
        self._name = name
        self._empty = np.zeros((1, facts.heads, 0, facts.head_dim), np.float32)
        self._renamed = [
            (f"{kind}_{layer}", f"past_{kind}_{layer}") for layer in range(facts.layers) for kind in ("key", "value")
        ]

    def begin(self, cross: Arrays) -> DecoderState:
        """The state before the first token; ``cross`` is what the encoder gave for one window."""
        return DecoderState({past: self._empty for _, past in self._renamed}, cross, 0)

    def step(
        self, state: DecoderState, tokens: NDArray[np.int64], rows: Sequence[int]
    ) -> tuple[NDArray[np.float32], DecoderState]:
        """Read ``tokens`` ``[batch, new]`` -> logits behind those at ``rows``, ``[batch, rows, vocabulary]``, state.

        Raises ModelLoadError when the logits are NaN.
        """
        found = self.call(state, tokens, rows)
        past = {past: found[present] for present, past in self._renamed}
        logits = found["logits"]
        # The largest is NaN if any is, and it is found faster than they all are looked at.
        if np.isnan(logits.max()):
            raise ModelLoadError(f"model '{self._name}' gives NaN; its weights or scales are damaged")
        return logits, DecoderState(past, state.cross, state.length + tokens.shape[1])

    def call(self, state: DecoderState, tokens: NDArray[np.int64], rows: Sequence[int]) -> Arrays:
        """All outputs of the part, as it gives them."""
        return self._part({"tokens": tokens, "rows": np.array(rows, np.int64), **state.past, **state.cross})
