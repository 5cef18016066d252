"""Observers: watch values stream by, then say which range to quantize.

All are streaming: memory is fixed, whatever the number and the lengths of the tensors seen. A tensor comes as
``[channels, values]``; per-tensor observation is the case of one channel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from quantasr.errors import CalibrationError, RecipeError
from quantasr.numerics.histogram import BINS, Sample, centers, coarsen
from quantasr.numerics.qtypes import QType

_CANDIDATES = 96


class Observer:
    """Base: exact smallest and largest value of each channel, and how many values were seen."""

    def __init__(self, channels: int = 1) -> None:
        self.low = torch.full((channels,), float("inf"))
        self.high = torch.full((channels,), float("-inf"))
        self.count = 0

    def observe(self, values: Tensor | Sample) -> None:
        """Take in ``[channels, values]``; raises :class:`CalibrationError` on NaN or infinity."""
        sample = values if isinstance(values, Sample) else Sample(values)
        if sample.count:
            self._update(sample)
            self.count += sample.count

    def range(self, qtype: QType) -> tuple[Tensor, Tensor]:
        """The range to quantize, ``(low, high)``, each ``[channels]``; needs at least one observation."""
        if self.count == 0:
            raise CalibrationError("an observer saw no values: calibrate before converting")
        return self._range(qtype)

    def _update(self, sample: Sample) -> None:
        self.low, self.high = torch.minimum(self.low, sample.low), torch.maximum(self.high, sample.high)

    def _range(self, qtype: QType) -> tuple[Tensor, Tensor]:
        return self.low, self.high


class MinMax(Observer):
    """The smallest and the largest value ever seen."""


class MovingAverage(Observer):
    """Exponential moving average of each tensor's smallest and largest value (Jacob et al., arXiv 1712.05877)."""

    def __init__(self, channels: int = 1, momentum: float = 0.05) -> None:
        super().__init__(channels)
        if not 0 < momentum <= 1:
            raise RecipeError(f"momentum = {momentum}: moving_average takes a number above 0 and at most 1")
        self.momentum = momentum

    def _update(self, sample: Sample) -> None:
        if self.count == 0:
            self.low, self.high = sample.low, sample.high
        else:
            self.low = torch.lerp(self.low, sample.low, self.momentum)
            self.high = torch.lerp(self.high, sample.high, self.momentum)


class HistogramObserver(Observer, ABC):
    """Base of observers that need the distribution: a histogram of fixed size that widens as values grow.

    Bins are aligned to zero and their width only ever doubles, so neighbours merge exactly: the histogram after
    any number of tensors is the one that a single pass over all of them would give.
    """

    def __init__(self, channels: int = 1) -> None:
        super().__init__(channels)
        self.exponent: Tensor | None = None
        self.histogram = torch.zeros(channels, BINS, dtype=torch.float64)

    def _update(self, sample: Sample) -> None:
        super()._update(sample)
        exponent, counts = sample.histogram()
        target = exponent if self.exponent is None else torch.maximum(self.exponent, exponent)
        if self.exponent is not None:
            self.histogram = coarsen(self.histogram, target - self.exponent)
        self.histogram = self.histogram + coarsen(counts, target - exponent)
        self.exponent = target

    @property
    def width(self) -> Tensor:
        """The width of a bin of each channel, ``[channels]``."""
        assert self.exponent is not None, "asked before any observation"
        return torch.exp2(self.exponent.double())

    def _range(self, qtype: QType) -> tuple[Tensor, Tensor]:
        rows = [
            self._channel_range(c, qtype) if self.low[c] != 0 or self.high[c] != 0 else (self.low[c], self.high[c])
            for c in range(self.histogram.shape[0])
        ]
        return torch.stack([low for low, _ in rows]).float(), torch.stack([high for _, high in rows]).float()

    @abstractmethod
    def _channel_range(self, channel: int, qtype: QType) -> tuple[Tensor, Tensor]:
        """The range of one channel, two scalars."""

    def _candidates(self, channel: int, qtype: QType) -> tuple[Tensor, Tensor]:
        """Ranges to choose from, ``[candidates]`` each: the full one, and tighter ones at either end."""
        low, high = self.low[channel].double().clamp(max=0), self.high[channel].double().clamp(min=0)
        shrink = torch.linspace(1.0, 1.0 / _CANDIDATES, _CANDIDATES, dtype=torch.float64)
        if qtype.symmetric:
            bound = torch.maximum(-low, high) * shrink
            return -bound, bound
        # The two ends of an affine range are clipped independently: after GELU the low end must stay.
        coarse = torch.linspace(1.0, 0.1, 16, dtype=torch.float64)
        lows = low * coarse if low < 0 else low[None]
        return lows.repeat_interleave(len(shrink)), (high * shrink).repeat(len(lows))


class Percentile(HistogramObserver):
    """Leaves out the rarest values: ``(100 - percentile) / 2`` per cent at each end."""

    def __init__(self, channels: int = 1, percentile: float = 99.99) -> None:
        super().__init__(channels)
        if not 50 < percentile <= 100:
            raise RecipeError(f"percentile = {percentile}: must be above 50 and at most 100")
        self.percentile = percentile

    def _channel_range(self, channel: int, qtype: QType) -> tuple[Tensor, Tensor]:
        counts, width = self.histogram[channel], self.width[channel]
        smallest, largest = self.low[channel].double(), self.high[channel].double()
        tail, half = counts.sum() * (100 - self.percentile) / 200, BINS // 2
        if qtype.symmetric:
            magnitudes = counts[half:] + counts[:half].flip(0)
            bound = (half - _crossing(magnitudes.flip(0), 2 * tail)) * width
            bound = torch.minimum(bound, torch.maximum(-smallest, largest))
            return -bound, bound
        low = (_crossing(counts, tail) - half) * width
        high = (half - _crossing(counts.flip(0), tail)) * width
        return torch.maximum(low, smallest), torch.minimum(high, largest)


def _crossing(counts: Tensor, tail: Tensor) -> Tensor:
    """How many bins (a fraction of one included) hold the first ``tail`` values."""
    total = counts.cumsum(0)
    index = int(torch.searchsorted(total, tail, right=True).clamp(max=len(counts) - 1))
    before = total[index] - counts[index]
    inside = (tail - before) / counts[index] if counts[index] > 0 else torch.zeros((), dtype=torch.float64)
    return index + inside


class MeanSquaredError(HistogramObserver):
    """The range whose quantization error, summed over the histogram, is smallest."""

    def _channel_range(self, channel: int, qtype: QType) -> tuple[Tensor, Tensor]:
        lows, highs = self._candidates(channel, qtype)
        used = self.histogram[channel] > 0
        x, counts = centers(self.width[channel])[used], self.histogram[channel][used]
        levels = qtype.quant_max - qtype.quant_min
        best, best_error = 0, float("inf")
        for start in range(0, len(lows), 64):
            low, high = lows[start : start + 64, None], highs[start : start + 64, None]
            step = ((high - low) / levels).clamp(min=1e-30)
            offset = torch.round(low / step)
            error = x - (torch.round(x / step - offset).clamp(0, levels) + offset) * step
            total = (counts * error.square()).sum(1)
            value, index = total.min(0)
            if value < best_error:
                best, best_error = start + int(index), float(value)
        return lows[best], highs[best]


class Entropy(HistogramObserver):
    """The range whose quantized distribution loses the least information: smallest Kullback-Leibler divergence.

    (Migacz, "8-bit Inference with TensorRT", GTC 2017.) What is clipped counts at the border of the reference, and
    each level's mass is spread evenly over the bins that it stands for.
    """

    def _channel_range(self, channel: int, qtype: QType) -> tuple[Tensor, Tensor]:
        lows, highs = self._candidates(channel, qtype)
        counts, width = self.histogram[channel], float(self.width[channel])
        levels = qtype.quant_max - qtype.quant_min + 1
        best, best_divergence = 0, float("inf")
        seen: set[tuple[int, int]] = set()
        for i, (low, high) in enumerate(zip(lows.tolist(), highs.tolist(), strict=True)):
            first = max(int(low // width) + BINS // 2, 0)
            last = min(int(-(-high // width)) + BINS // 2, BINS)
            if (last - first < levels and i > 0) or (first, last) in seen:
                continue
            seen.add((first, last))
            divergence = _divergence(counts, first, last, levels)
            if divergence < best_divergence:
                best, best_divergence = i, divergence
        return lows[best], highs[best]


def _divergence(counts: Tensor, first: int, last: int, levels: int) -> float:
    """KL divergence of the quantized histogram ``[first, last)`` from the clipped reference."""
    inside = counts[first:last]
    reference = inside.clone()
    reference[0] += counts[:first].sum()
    reference[-1] += counts[last:].sum()
    level = torch.arange(last - first) * levels // (last - first)
    level = level.clamp(max=levels - 1)
    occupied = (inside > 0).double()
    mass = torch.zeros(levels, dtype=torch.float64).index_add_(0, level, inside)
    share = torch.zeros(levels, dtype=torch.float64).index_add_(0, level, occupied)
    candidate = torch.where(occupied > 0, mass[level] / share[level].clamp(min=1), 0.0)
    p, q = reference / reference.sum(), candidate / candidate.sum().clamp(min=1e-300)
    # Smoothing: a reference bin that the candidate leaves empty (all of it clipped mass) must cost, not divide by zero.
    keep = p > 0
    return float((p[keep] * (p[keep] / q[keep].clamp(min=1e-9)).log()).sum())


OBSERVERS: dict[str, type[Observer]] = {
    "min_max": MinMax,
    "moving_average": MovingAverage,
    "percentile": Percentile,
    "mse": MeanSquaredError,
    "entropy": Entropy,
}


def observer_factory(name: str) -> Callable[[int], Observer]:
    """A maker of observers from a recipe's word: ``"mse"``, or with an argument, ``"percentile(99.9)"``.

    Raises :class:`RecipeError` for a name that is not in :data:`OBSERVERS`.
    """
    word, _, rest = name.partition("(")
    if word not in OBSERVERS or (rest and not rest.endswith(")")):
        raise RecipeError(f"observer {name!r} is unknown: choose one of {', '.join(OBSERVERS)}")
    if not rest:
        return OBSERVERS[word]
    kind = OBSERVERS[word]
    try:
        argument = float(rest[:-1])
    except ValueError:
        raise RecipeError(f"observer {name!r}: the argument is not a number") from None
    if kind is Percentile or kind is MovingAverage:
        kind(1, argument)  # refuses a bad argument now, not at the first layer
        return lambda channels: kind(channels, argument)
    raise RecipeError(f"observer {name!r}: only percentile and moving_average take an argument")
