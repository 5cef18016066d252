"""How many frames an encoder of any layers gives for so many rows of features, found by running it a few times."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from quantasr.errors import ModelLoadError
from quantasr.speech.frontend import Frontend, MelDecibelFrontend

_START = 48
"""Steps from which on the time between two outputs is measured."""

_MOST = 64
"""More steps than this for two outputs, and the encoder is taken to give one output a recording."""


@dataclass(frozen=True)
class Frames:
    """``(rows + offset) // every`` frames for ``rows`` of features.

    Strides, windows and padding, one after the other, always come to that. ``min_samples`` is the shortest wave that
    gives two frames, ``seconds`` the time between two, ``outputs`` the size of one.
    """

    every: int
    offset: int
    seconds: float
    min_samples: int
    outputs: int

    def counts(self, lengths: Tensor) -> Tensor:
        """Frames for rows of features, ``[batch]``."""
        return torch.div(lengths + self.offset, self.every, rounding_mode="floor")


def measure_frames(where: str, run: Callable[[int], Tensor], frontend: Frontend, lobe: Any = None) -> Frames:
    """Measure an encoder; ``run`` gives its outputs for so many samples of silence.

    ``lobe`` is the configuration of a Wav2Vec2 that stands first. Raises :class:`ModelLoadError` when the number of
    frames does not grow with the recording.
    """
    measure = _Measure(run, frontend, lobe)
    min_samples, outputs = _least_samples(where, measure)
    start = _START * measure.step
    wanted = measure.count(start)
    first = _first(where, measure, start, wanted + 1)
    second = _first(where, measure, first, wanted + 2)
    row = measure.row(first)
    every = measure.row(second) - row
    hop = frontend.hop_length if isinstance(frontend, MelDecibelFrontend) else 1
    return Frames(every, (wanted + 1) * every - row, every * hop / frontend.sample_rate, min_samples, outputs)


class _Measure:
    """Counts by units: rows of features, frames of the lobe, or samples, of which ``step`` are 10 ms."""

    def __init__(self, run: Callable[[int], Tensor], frontend: Frontend, lobe: Any) -> None:
        self.run, self._frontend, self._lobe = run, frontend, lobe
        self.step = 1 if lobe is not None or isinstance(frontend, MelDecibelFrontend) else frontend.sample_rate // 100
        self.count = cache(self._count)

    def samples(self, units: int) -> int:
        """The shortest wave with so many units."""
        if isinstance(self._frontend, MelDecibelFrontend):
            return self._frontend.samples_of(units)
        if self._lobe is not None:
            for kernel, stride in zip(reversed(self._lobe.conv_kernel), reversed(self._lobe.conv_stride), strict=True):
                units = (units - 1) * stride + kernel
        return units

    def row(self, units: int) -> int:
        """Rows of features that a recording with so many units has at least."""
        return units if isinstance(self._frontend, MelDecibelFrontend) else self.samples(units)

    def _count(self, units: int) -> int:
        return int(self.run(self.samples(units)).shape[1])


def _least_samples(where: str, measure: _Measure) -> tuple[int, int]:
    """The shortest wave that gives two frames of log-probs, and how many tokens these are of.

    Not one: OpenVINO 2026.4 fuses attention into a kernel that, when its first run ever had a single frame, is wrong
    in all runs of 16 frames and more that follow.
    """
    problem: RuntimeError | None = None
    for steps in range(1, 4 * _MOST + 1):
        if steps > _MOST and problem is None:
            break
        samples = measure.samples(steps * measure.step)
        try:
            found = measure.run(samples)
        except RuntimeError as error:  # padding by reflection, for one, needs more rows than it mirrors
            problem = error
            continue
        if found.ndim == 3 and found.shape[1] >= 2:
            return samples, found.shape[-1]
        problem = None
    if problem is not None:
        raise problem
    raise _no_frames(where)


def _first(where: str, measure: _Measure, units: int, wanted: int) -> int:
    """The least units, more than those given, that give ``wanted`` frames."""
    reach = 1
    while measure.count(units + reach) < wanted:
        reach *= 2
        if reach > _MOST * measure.step:
            raise _no_frames(where)
    candidates = range(units + reach // 2 + 1, units + reach)
    return candidates.start + bisect_left(candidates, wanted, key=measure.count)


def _no_frames(where: str) -> ModelLoadError:
    return ModelLoadError(f"{where}: its encoder does not give a row of outputs every few frames, as CTC needs")
