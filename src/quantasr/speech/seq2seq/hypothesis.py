"""What a search finds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Hypothesis(NamedTuple):
    """Token ids ``[n]`` without bos and eos, and their score."""

    tokens: NDArray[np.int64]
    score: float
