"""Compare what two systems say of the same frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Agreement:
    """How close two systems are on the same recordings, over all frames.

    ``largest_difference`` and ``mean_difference`` are of log-probs, in nats; ``same_argmax`` is the share of frames
    whose best token is the same.
    """

    frames: int
    largest_difference: float
    mean_difference: float
    same_argmax: float

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary, rounded."""
        return {key: value if isinstance(value, int) else float(f"{value:.4g}") for key, value in asdict(self).items()}


def agreement(left: Sequence[NDArray[np.float32]], right: Sequence[NDArray[np.float32]]) -> Agreement:
    """Compare log-probs ``[frames, vocabulary]``, recording by recording; the shapes must be equal."""
    a, b = np.concatenate(list(left)).astype(np.float64), np.concatenate(list(right)).astype(np.float64)
    if a.shape != b.shape:
        raise ValueError(f"the systems gave {a.shape} and {b.shape}: not the same frames")
    difference = np.abs(a - b)
    return Agreement(
        frames=len(a),
        largest_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        same_argmax=float((a.argmax(-1) == b.argmax(-1)).mean()),
    )
