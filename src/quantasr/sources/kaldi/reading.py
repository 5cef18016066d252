"""What descriptors give: slices, sums and joins of what nodes gave, at the times that are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quantasr.errors import ModelLoadError
from quantasr.kaldi.nnet3.config import (
    Append,
    Const,
    Descriptor,
    Failover,
    IfDefined,
    Node,
    Offset,
    ReplaceIndex,
    Round,
    Scale,
    Sum,
    Switch,
)
from quantasr.sources.kaldi.plan import Plan, Span, computable, rounded

IVECTOR = "ivector"
"""The input whose values the frontend puts beside each frame, so that every time index means the frame's own."""


class Values:
    """What the nodes have given so far, ``[batch, channels, 1, time]`` each, and how descriptors read them.

    ``count`` is the number of output frames: an int, or what a trace has in its place.
    """

    def __init__(self, plan: Plan, count: Any, sums: Mapping[str, tuple[Descriptor, ...]]) -> None:
        """``sums``: terms of nodes that are sums, where a scaled sum is to be computed as the sum of scaled terms."""
        self.plan, self.count, self.sums = plan, count, sums
        self.of: dict[str, Tensor] = {}

    def length(self, span: Span) -> Any:
        """How many times a span has."""
        return (self.plan.subsampling * (self.count - 1) + span.end - span.start) // span.step + 1

    def read(self, reads: Descriptor, span: Span) -> Tensor:
        """What a descriptor gives at the times of ``span``."""
        match reads:
            case Node(name) if name in self.plan.windows:
                window, _ = self.plan.windows[name]
                if window.strict and (span.start % window.period or span.step % window.period):
                    raise ModelLoadError(
                        f"node '{name}' is read at times that are no multiples of its period of {window.period} frames"
                    )
                return self._held(name, self._times(span))
            case Node(name):
                return cut(self.of[name], span.bounds_in(self.plan.spans[name]))
            case Offset(part, t):
                return self.read(part, span.moved(t))
            case Append(parts):
                return torch.cat([self.read(part, span) for part in parts], dim=1)
            case Sum(parts):
                total, *rest = [self.read(part, span) for part in parts]
                for term in rest:
                    total = total + term
                return total
            case Scale(value, Node(name)) if name in self.sums:
                return cut(self._scaled(value, name), span.bounds_in(self.plan.spans[name]))
            case Scale(value, part):
                return self.read(part, span) * value
            case IfDefined(part):
                return self.read(part, span)  # frames that are not there are zero
            case Const(value, dim):
                batch = next(iter(self.of.values())).shape[0]
                return torch.full((1, 1, 1, 1), value).expand(batch, dim, 1, self.length(span))
            case Failover(a, b):
                return self._failover(a, b, span)
            case Switch(parts):
                return self._switch(parts, span)
            case Round(part, modulus):
                times = torch.div(self._times(span), modulus, rounding_mode="floor") * modulus
                return self._uneven(part, span, times, rounded(span, modulus), modulus)
            case ReplaceIndex(part, variable, value) if variable == "t":
                if isinstance(part, Node) and part.name == IVECTOR:
                    return self.read(part, span)
                once = self._uneven(part, span, torch.tensor([value]), None, value)
                return once.expand(-1, -1, -1, self.length(span))
            case ReplaceIndex(part):
                return self.read(part, span)  # x is the index of a position in training's images: there is but one

    def _scaled(self, value: float, name: str) -> Tensor:
        """A sum that is read scaled, as the sum of its scaled terms."""
        key = f"{value} {name}"
        if key not in self.of:
            parts = self.sums[name]
            total, *rest = [self.read(part, self.plan.spans[name]) * value for part in parts]
            for term in rest:
                total = total + term
            self.of[key] = total
        return self.of[key]

    def _failover(self, a: Descriptor, b: Descriptor, span: Span) -> Tensor:
        first, last = computable(a, self.plan.reach)
        there = span.within(first, last)
        if there == span:
            return self.read(a, span)
        before, after = (there.start - span.start) // span.step, (span.end - there.end) // span.step
        end = -after if after else None
        x, y = self.read(a, there), self.read(b, span)
        return torch.cat([y[..., :before], x, *([y[..., end:]] if after else [])], dim=-1)

    def _switch(self, parts: tuple[Descriptor, ...], span: Span) -> Tensor:
        if span.step % len(parts) == 0:
            return self.read(parts[span.start % len(parts)], span)
        turn = self._times(span) % len(parts)
        total = self.read(parts[0], span) * (turn == 0)
        for i, part in enumerate(parts[1:], start=1):
            total = total + self.read(part, span) * (turn == i)
        return total

    def _times(self, span: Span) -> Tensor:
        return span.start + span.step * torch.arange(self.length(span))

    def _uneven(self, part: Descriptor, span: Span, times: Tensor, whole: Span | None, unit: int) -> Tensor:
        """Values at ``times``, multiples of ``unit`` that are not evenly spaced, of which ``whole`` has all."""
        if isinstance(part, Node) and part.name == IVECTOR:
            return self.read(part, span)
        windows = self.plan.windows
        if isinstance(part, Node) and part.name in windows and unit % windows[part.name][0].period == 0:
            return self._held(part.name, times)
        first, last = computable(part, self.plan.reach)
        if whole is None:
            if inf in (-first, last):
                raise ModelLoadError("a replaced time index of something without beginning or end")
            whole = Span(int(first), int(last), 1)
        whole = whole.within(first, last)
        index = (times - whole.start).clamp(min=0)
        x = self.read(part, whole)
        return x.index_select(-1, torch.minimum(index, torch.as_tensor(x.shape[-1] - 1)))

    def _held(self, name: str, times: Tensor) -> Tensor:
        """What a node with statistics gives at the multiple of its period at or before each of ``times``."""
        period = self.plan.windows[name][0].period
        index = torch.div(times - self.plan.grid_start(name), period, rounding_mode="floor").clamp(min=0)
        x = self.of[name]
        return x.index_select(-1, torch.minimum(index, torch.as_tensor(x.shape[-1] - 1)))


def cut(x: Tensor, bounds: tuple[int, int, int]) -> Tensor:
    """Leave frames out at both ends and between; where there are too few, zeros stand for them."""
    before, after, step = bounds
    if before < 0 or after < 0:
        x = F.pad(x, (max(0, -before), max(0, -after)))
        before, after = max(0, before), max(0, after)
    if before or after:
        x = x[..., before : -after if after else None]
    return x if step == 1 else x[..., ::step]
