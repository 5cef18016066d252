"""What a frontend is, and what all of them need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import ArtifactError, AudioError


class Frontend(Protocol):
    """The features of one recording."""

    @property
    def sample_rate(self) -> int:
        """Samples per second of the waves it takes."""
        ...

    @property
    def padding_value(self) -> float:
        """What :func:`collate` fills short rows with."""
        ...

    def __call__(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        """``[samples]`` -> features, ``[time]`` or ``[frames, bins]``."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary with a ``kind``; :func:`frontend_from_dict` reads it."""
        ...


def collate(
    features: Sequence[NDArray[np.float32]], padding_value: float = 0.0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features of several recordings -> ``[batch, time(, bins)]`` filled up with ``padding_value``, and lengths."""
    lengths = np.array([len(row) for row in features], np.int64)
    batch = np.full((len(features), int(lengths.max()), *features[0].shape[1:]), padding_value, np.float32)
    for row, feature in zip(batch, features, strict=True):
        row[: len(feature)] = feature
    return batch, lengths


def as_wave(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """``wave`` in float32; raises AudioError unless it is one channel with samples in it."""
    wave = np.asarray(wave, np.float32)
    if wave.ndim != 1 or wave.size == 0:
        raise AudioError(f"wave of shape {list(wave.shape)}: one channel with at least one sample is needed")
    return wave


def require_rate(sample_rate: int) -> None:
    """Raise ArtifactError unless a sample rate is positive."""
    if sample_rate < 1:
        raise ArtifactError(f"frontend: sample_rate is {sample_rate}; it must be positive")
