"""The CTC head of a hybrid transducer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import RecipeError
from quantasr.speech.parts import Parts


class CtcHead:
    """Encoder and CTC head as the acoustic half of a :class:`~quantasr.speech.ctc.CtcTranscriber`."""

    padded_batches = True

    def __init__(self, parts: Parts, name: str) -> None:
        if "ctc" not in parts:
            raise RecipeError(f"model '{name}' has no CTC head: only hybrid models have one")
        self._parts = parts

    def __call__(
        self, features: NDArray[np.float32], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """See :class:`quantasr.speech.frames.AcousticModel`."""
        found = self._parts["encoder"]({"features": features, "lengths": lengths})
        return self._parts["ctc"]({"hidden": found["hidden"]})["logprobs"], found["frame_counts"]
