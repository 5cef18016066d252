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
from quantasr.numerics.qtypes import QType

BINS = 4096
_CANDIDATES = 96


class Observer:
    """Base: exact smallest and largest value of each channel, and how many values were seen."""

    def __init__(self, channels: int = 1) -> None:
        self.low = torch.full((channels,), float("inf"))
        self.high = torch.full((channels,), float("-inf"))
        self.count = 0

    def observe(self, values: Tensor) -> None:
        """Take in ``[channels, values]``; raises :class:`CalibrationError` on NaN or infinity."""
        if values.numel() == 0:
            return
        values = values.detach().float()
        low, high = values.amin(1), values.amax(1)
        if not bool(torch.isfinite(low).all() & torch.isfinite(high).all()):
            raise CalibrationError("a layer gave NaN or infinity during calibration: check the model and the audio")
        self._update(values, low, high)
        self.count += values.shape[1]

    def range(self, qtype: QType) -> tuple[Tensor, Tensor]:
        """The range to quantize, ``(low, high)``, each ``[channels]``; needs at least one observation."""
        if self.count == 0:
            raise CalibrationError("an observer saw no values: calibrate before converting")
        return self._range(qtype)

    def _update(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)

    def _range(self, qtype: QType) -> tuple[Tensor, Tensor]:
        return self.low, self.high


class MinMax(Observer):
    """The smallest and the largest value ever seen."""


class MovingAverage(Observer):
    """Exponential moving average of each tensor's smallest and largest value (Jacob et al., arXiv 1712.05877)."""

    def __init__(self, channels: int = 1, momentum: float = 0.05) -> None:
        super().__init__(channels)
        self.momentum = momentum

    def _update(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        if self.count == 0:
            self.low, self.high = low, high
        else:
            self.low = torch.lerp(self.low, low, self.momentum)
            self.high = torch.lerp(self.high, high, self.momentum)


class HistogramObserver(Observer, ABC):
    """Base of observers that need the distribution: a histogram of fixed size that widens as values grow.

    Bins are aligned to zero and their width only ever doubles, so neighbours merge exactly: the histogram after
    any number of tensors is the one that a single pass over all of them would give.
    """

    def __init__(self, channels: int = 1) -> None:
        super().__init__(channels)
        self.width = torch.zeros(channels, dtype=torch.float64)
        self.histogram = torch.zeros(channels, BINS, dtype=torch.float64)

    def _update(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        super()._update(values, low, high)
        largest = torch.maximum(high.abs(), low.abs()).double()
        half = BINS // 2
        # Powers of two keep every width an exact multiple of every earlier one.
        needed = torch.exp2(torch.ceil(torch.log2(largest.clamp(min=1e-30) * (1 + 1e-9) / half)))
        for c in range(self.histogram.shape[0]):
            if largest[c] == 0 and self.width[c] == 0:
                # All zeros so far: a width would be a guess, and zeros go into the middle whatever it is.
                self.histogram[c, half] += values.shape[1]
                continue
            if self.width[c] == 0:
                self.width[c] = needed[c]
            while self.width[c] < needed[c]:
                self._widen(c)
            # Bin borders are multiples of a power of two, so single precision finds the same bins as double.
            border = float(self.width[c]) * half
            self.histogram[c] += torch.histc(values[c], BINS, -border, border).double()

    def _widen(self, channel: int) -> None:
        """Double the bin width of one channel: bins 2k and 2k+1 (counted from zero) become one."""
        pairs = self.histogram[channel].reshape(-1, 2).sum(1)
        merged = torch.zeros_like(self.histogram[channel])
        quarter = BINS // 4
        merged[quarter : quarter + BINS // 2] = pairs
        self.histogram[channel] = merged
        self.width[channel] *= 2

    def centers(self) -> Tensor:
        """The value in the middle of each bin, ``[channels, bins]``."""
        return (torch.arange(BINS, dtype=torch.float64) - BINS // 2 + 0.5) * self.width[:, None]

    def _range(self, qtype: QType) -> tuple[Tensor, Tensor]:
        rows = [
            (self.low[c], self.high[c]) if self.width[c] == 0 else self._channel_range(c, qtype)
            for c in range(self.histogram.shape[0])
        ]
        return torch.stack([torch.as_tensor(r[0]) for r in rows]), torch.stack([torch.as_tensor(r[1]) for r in rows])

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
        tail = counts.sum() * (100 - self.percentile) / 200
        if qtype.symmetric:
            half = BINS // 2
            magnitudes = counts[half:] + counts[:half].flip(0)
            bound = (_crossing(magnitudes.flip(0), 2 * tail) * width).rsub(half * width)
            bound = torch.minimum(bound, torch.maximum(-self.low[channel], self.high[channel]).double())
            return (-bound).float(), bound.float()
        low = (_crossing(counts, tail) - BINS // 2) * width
        high = (BINS // 2 - _crossing(counts.flip(0), tail)) * width
        return (
            torch.maximum(low, self.low[channel].double()).float(),
            torch.minimum(high, self.high[channel].double()).float(),
        )


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
        x, counts = self.centers()[channel][used], self.histogram[channel][used]
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
        return lows[best].float(), highs[best].float()


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
        return lows[best].float(), highs[best].float()


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
    if kind is Percentile:
        Percentile(1, argument)
        return lambda channels: Percentile(channels, argument)
    if kind is MovingAverage:
        return lambda channels: MovingAverage(channels, argument)
    raise RecipeError(f"observer {name!r}: only percentile and moving_average take an argument")
