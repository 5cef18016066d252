"""SpecAugment: stretches of time and bands of frequency hidden from the model (Park et al., arXiv 1904.08779)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import TrainingError


@dataclass(frozen=True)
class SpecAugment:
    """Masks over features ``[frames, bins]``; no time warping.

    ``time_masks`` stretches of up to ``max_time_frames`` frames, all together at most ``max_time_share`` of the
    recording; ``frequency_masks`` bands of up to ``max_frequency_bins`` bins. Masked values become the mean of their
    bin over the recording. ``probability`` is the share of recordings that are masked at all.

    Raises:
        TrainingError: a number is out of its range.
    """

    time_masks: int = 2
    max_time_frames: int = 40
    max_time_share: float = 0.2
    frequency_masks: int = 2
    max_frequency_bins: int = 16
    probability: float = 1.0

    def __post_init__(self) -> None:
        for name in ("time_masks", "max_time_frames", "frequency_masks", "max_frequency_bins"):
            if getattr(self, name) < 0:
                raise TrainingError(f"SpecAugment: {name} is {getattr(self, name)}: give 0 or more")
        for name in ("max_time_share", "probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise TrainingError(f"SpecAugment: {name} is {getattr(self, name)}: give a share from 0 to 1")

    def __call__(self, features: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
        """A masked copy of ``features`` ``[frames, bins]``."""
        frames, bins = features.shape
        masked = features.copy()
        if frames == 0 or random.random() >= self.probability:
            return masked
        fill = features.mean(axis=0, dtype=np.float64)
        left = int(self.max_time_share * frames)
        for _ in range(self.time_masks):
            width = min(int(random.integers(self.max_time_frames + 1)), left)
            start = int(random.integers(frames - width + 1))
            masked[start : start + width] = fill
            left -= width
        for _ in range(self.frequency_masks):
            width = min(int(random.integers(self.max_frequency_bins + 1)), bins)
            start = int(random.integers(bins - width + 1))
            masked[:, start : start + width] = fill[start : start + width]
        return masked
