"""StatisticsExtraction and StatisticsPooling: sums over windows of frames, and means and deviations made of them.

Both take ``[batch, channels, 1, time]`` and give a value at each multiple of their period (:class:`Window`). Frames
that are not there count for nothing, so at the ends of a recording there is less to divide by, as in Kaldi.
"""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantasr.kaldi.nnet3.components import Component
from quantasr.sources.kaldi.plan import Plan, Window

KINDS = ("StatisticsExtractionComponent", "StatisticsPoolingComponent")


def window_of(component: Component) -> Window | None:
    """How a component looks at time if it is one of statistics."""
    fields = component.fields
    if component.kind == "StatisticsExtractionComponent":
        step, period = fields["InputPeriod"], fields["OutputPeriod"]
        return Window(period, step, 0, period - step, strict=False)
    if component.kind == "StatisticsPoolingComponent":
        step = fields["InputPeriod"]
        return Window(step, step, fields["LeftContext"], fields["RightContext"], strict=True)
    return None


def layer(name: str, component: Component, plan: Plan) -> nn.Module:
    """The module of a node with such a component."""
    fields = component.fields
    sums = WindowSums(name, plan)
    if component.kind == "StatisticsExtractionComponent":
        return Extraction(sums, fields["IncludeVarinance"])
    return Pooling(sums, fields["NumLogCountFeatures"], fields["OutputStddevs"], fields["VarianceFloor"])


class WindowSums(nn.Module):
    """Sums of the frames in each window; frames beyond the recording are zero."""

    def __init__(self, name: str, plan: Plan) -> None:
        super().__init__()
        window, read = plan.windows[name]
        first = ceil(read.start / window.step) * window.step
        self.skip, self.every = (first - read.start) // read.step, window.step // read.step
        self.stride = window.period // window.step
        self.width = (window.left + window.right) // window.step + 1
        self.before = (first - (plan.grid_start(name) - window.left)) // window.step
        after = max(0, ceil((plan.spans[name].end - read.end) / window.step))
        self.after = window.right // window.step + after

    def forward(self, x: Tensor) -> Tensor:
        x = x[..., self.skip :: self.every]
        x = F.pad(x[..., max(0, -self.before) :], (max(0, self.before), self.after))
        return sliding_sum(x, self.width)[..., :: self.stride]


class Extraction(nn.Module):
    """Channels -> their number in each window of frames, their sum, and if wanted that of their squares."""

    def __init__(self, sums: WindowSums, squares: bool) -> None:
        super().__init__()
        self.sums, self.squares = sums, squares

    def forward(self, x: Tensor) -> Tensor:
        parts = [torch.ones_like(x[:, :1]), x, *([x * x] if self.squares else [])]
        y: Tensor = self.sums(torch.cat(parts, dim=1))
        return y


class Pooling(nn.Module):
    """Counts, sums and squares -> the logarithm of the count ``log_counts`` times, means, and if wanted deviations."""

    def __init__(self, sums: WindowSums, log_counts: int, deviations: bool, floor: float) -> None:
        super().__init__()
        self.sums, self.log_counts, self.deviations, self.floor = sums, log_counts, deviations, floor

    def forward(self, x: Tensor) -> Tensor:
        total = self.sums(x)
        count = total[:, :1].clamp(min=1.0)  # windows without frames are computed, and read by nothing
        means = total[:, 1:] / count
        if self.deviations:
            mean, square = means.chunk(2, dim=1)
            means = torch.cat([mean, (square - mean * mean).clamp(min=self.floor).sqrt()], dim=1)
        return torch.cat([*[count.log()] * self.log_counts, means], dim=1)


def sliding_sum(x: Tensor, width: int) -> Tensor:
    """Sums of ``width`` neighbouring frames, ``[..., time]`` -> ``[..., time - width + 1]``, in ``2 log2(width)`` sums.

    Sums of 1, 2, 4, ... frames are made of each other, and each sum of those that add up to the width. Unlike
    differences of a running sum, they lose no digits however long the recording is.
    """
    total: Tensor | None = None
    power, done = 1, 0
    while True:
        if width & power:
            rest = width - power - done
            part = x[..., done : -rest if rest else None]
            total = part if total is None else total + part
            done += power
        if done == width:
            assert total is not None
            return total
        x = x[..., :-power] + x[..., power:]
        power *= 2
