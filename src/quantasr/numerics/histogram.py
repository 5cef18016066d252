"""Histograms of fixed size whose bins merge exactly, so that values may come in any order and number.

A histogram has ``BINS`` bins of width ``2**exponent``, counted from zero in the middle: bin ``BINS // 2`` begins at 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantasr.errors import CalibrationError

BINS = 4096
_HALF = BINS // 2
_HALF_BITS = _HALF.bit_length() - 1
_BLOCK = 1 << 18  # values counted at once: small enough to stay in the cache
_SMALLEST = -100  # values below 2**-100 count as zero; finer bins would leave the range of float32


class Sample:
    """Values that observers look at, ``[channels, values]``: their extremes, and their histogram when one asks.

    Layers that are fed by the same tensor share one sample, so that it is counted once. Raises
    :class:`CalibrationError` on NaN or infinity.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values.detach().float()
        self._histogram: tuple[Tensor, Tensor] | None = None
        self.count = values.shape[1]
        self.low = self._values.amin(1) if self.count else torch.zeros(len(values))
        self.high = self._values.amax(1) if self.count else torch.zeros(len(values))
        if not bool(torch.isfinite(self.low).all() & torch.isfinite(self.high).all()):
            raise CalibrationError("a layer gave NaN or infinity during calibration: check the model and the audio")

    def histogram(self) -> tuple[Tensor, Tensor]:
        """Exponents ``[channels]`` of the narrowest bins that hold all values, and counts ``[channels, BINS]``."""
        if self._histogram is None:
            # frexp: the largest magnitude is below 2**power, and no smaller power of two is above it.
            power = torch.frexp(torch.maximum(self.high.abs(), self.low.abs())).exponent.long()
            exponent = power.clamp(min=_SMALLEST) - _HALF_BITS
            self._histogram = exponent, _count(self._values, exponent)
        return self._histogram


def _count(values: Tensor, exponent: Tensor) -> Tensor:
    """Counts of ``values`` in bins of width ``2**exponent``; dividing by a power of two is exact, so are the bins."""
    channels, size = values.shape
    counts = torch.zeros(channels * BINS, dtype=torch.int64)
    inverse = torch.exp2(-exponent.double()).float()[:, None]
    offset = (torch.arange(channels) * BINS + _HALF)[:, None]
    for block in torch.split(values, max(1, _BLOCK // channels), dim=1) if size else ():
        index = torch.floor(block * inverse).long() + offset
        counts += torch.bincount(index.reshape(-1), minlength=len(counts))
    return counts.reshape(channels, BINS).double()


def coarsen(counts: Tensor, doublings: Tensor) -> Tensor:
    """The histogram ``[channels, BINS]`` with each channel's bins ``2**doublings`` times as wide."""
    if not bool(doublings.any()):
        return counts
    # After log2(BINS) doublings only the two bins beside zero are left.
    shift = doublings.clamp(max=_HALF_BITS + 1)[:, None]
    index = ((torch.arange(BINS) - _HALF) >> shift) + _HALF
    return torch.zeros_like(counts).scatter_add_(1, index, counts)


def centers(width: Tensor) -> Tensor:
    """The value in the middle of each bin, ``[BINS]``, for bins of one ``width``."""
    return (torch.arange(BINS, dtype=torch.float64) - _HALF + 0.5) * width
