"""The parts of a transducer as what its searches call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import ModelLoadError
from quantasr.speech.frontend import Frontend, collate
from quantasr.speech.parts import Parts
from quantasr.speech.transcript import Waveform
from quantasr.speech.transducer.options import TransducerFacts

State = dict[str, NDArray[np.generic]]
"""States of the decoder by name, ``[rows, ...]``."""

Floats = NDArray[np.float32]


class Network:
    """Encoder, decoder (prediction network) and joiner; ``blank`` is the last token, before it are ``blank`` others."""

    def __init__(self, parts: Parts, facts: TransducerFacts, frontend: Frontend, blank: int, name: str) -> None:
        self.durations = np.array(facts.durations or (1,), np.int64)
        self.blank = blank
        self.outputs = blank + 1 + len(facts.durations)
        self._parts, self._facts, self._frontend, self._name = parts, facts, frontend, name

    def encode(self, waves: Sequence[Waveform]) -> tuple[Floats, NDArray[np.int64]]:
        """Waves -> ``[rows, frames, H]`` and how many frames of each row are speech."""
        features, lengths = collate([self._frontend(wave) for wave in waves], self._frontend.padding_value)
        found = self._parts["encoder"]({"features": features, "lengths": lengths})
        return found["encoded"], found["frame_counts"]

    def start(self, rows: int) -> tuple[Floats, State]:
        """What the decoder predicts before any token, ``[rows, H]``, and its states."""
        assert self._facts.states is not None
        state: State = {
            name: np.full((1, *row["shape"]), row["fill"], row["type"]) for name, row in self._facts.states.items()
        }
        prediction, state = self.step(np.array([self.blank]), state)
        return prediction.repeat(rows, 0), {name: values.repeat(rows, 0) for name, values in state.items()}

    def step(self, tokens: NDArray[np.int64], state: State) -> tuple[Floats, State]:
        """Tokens ``[rows]`` -> what the decoder predicts after them, ``[rows, H]``, and its states then."""
        found = self._parts["decoder"]({"tokens": tokens[:, None], **state})
        return found["prediction"], {name: found[f"next_{name}"] for name in state}

    def join(self, encoded: Floats, prediction: Floats) -> Floats:
        """``[rows, frames, H]``, ``[rows, H]`` -> scores, not normalised, ``[rows, frames, outputs]``."""
        scores = self._parts["joiner"]({"encoded": encoded, "prediction": prediction})["logits"]
        if scores.shape[-1] != self.outputs:
            raise ModelLoadError(
                f"model '{self._name}': its joiner gives {scores.shape[-1]} outputs, but its tokens and durations are "
                f"{self.outputs}: its parts do not belong together"
            )
        return scores

    def check(self, scores: Floats) -> None:
        """Raise ModelLoadError for scores that are no numbers."""
        if np.isnan(scores).any():
            raise ModelLoadError(f"model '{self._name}' gives NaN scores; its weights or scales are damaged")


def log_softmax(scores: Floats) -> Floats:
    """Over the last axis."""
    shifted = scores - scores.max(-1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found
