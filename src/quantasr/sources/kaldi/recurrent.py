"""Nodes that read themselves at other times, as an LSTM's do: computed one time after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from quantasr.errors import ArtifactError, ModelLoadError
from quantasr.kaldi.nnet3.config import (
    Append,
    Descriptor,
    Failover,
    IfDefined,
    Node,
    Offset,
    Scale,
    Sum,
)
from quantasr.sources.kaldi.plan import GraphNode, Span, reads_of
from quantasr.sources.kaldi.reading import Values


def recur(
    group: Sequence[str],
    nodes: Mapping[str, GraphNode],
    compute: Callable[[str, Tensor], Tensor],
    dims: Mapping[str, int],
    values: Values,
) -> dict[str, Tensor]:
    """What the nodes of a recurrence give, ``[batch, channels, 1, time]``; before their first time they are zero."""
    if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
        raise ArtifactError(
            f"node '{group[0]}' recurs, which no graph here can hold: quantize it with --engine torch or --engine kaldi"
        )
    span = values.plan.spans[group[0]]
    steps = int(values.length(span))
    run = _Run(group, dims, values, span, steps)
    order = inner_order(group, nodes)
    backward = any(
        read is not None and read.start > 0
        for name in group
        for source, read in reads_of(nodes[name].reads, Span(0, 0, 1))
        if source in group
    )
    for at in range(steps - 1, -1, -1) if backward else range(steps):
        for name in order:
            parts = [run.read(nodes[name].reads, offset, at) for offset in nodes[name].offsets]
            x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            run.given[name][at] = compute(name, x)
    return {name: torch.cat([x for x in run.given[name] if x is not None], dim=-1) for name in group}


class _Run:
    """The state of one recurrence: what each node gave at each time so far."""

    def __init__(self, group: Sequence[str], dims: Mapping[str, int], values: Values, span: Span, steps: int) -> None:
        self.dims, self.values, self.span = dims, values, span
        self.given: dict[str, list[Tensor | None]] = {name: [None] * steps for name in group}
        self.outside: dict[tuple[str, int], Tensor] = {}

    def read(self, reads: Descriptor, shift: int, at: int) -> Tensor:
        """What a descriptor gives ``shift`` frames after the time number ``at``."""
        match reads:
            case Node(name) if name in self.given:
                index = at + shift // self.span.step
                x = self.given[name][index] if 0 <= index < len(self.given[name]) else None
                return self._zeros(self.dims[name]) if x is None else x
            case Offset(part, t):
                return self.read(part, shift + t, at)
            case Append(parts):
                return torch.cat([self.read(part, shift, at) for part in parts], dim=1)
            case Sum(parts):
                total, *rest = [self.read(part, shift, at) for part in parts]
                for term in rest:
                    total = total + term
                return total
            case Scale(value, part):
                return self.read(part, shift, at) * value
            case IfDefined(part):
                return self.read(part, shift, at)
            case Failover(a, _):
                return self.read(a, shift, at)
            case _:
                key = (repr(reads), shift)
                if key not in self.outside:
                    self.outside[key] = self.values.read(reads, self.span.moved(shift))
                return self.outside[key][..., at : at + 1]

    def _zeros(self, dim: int) -> Tensor:
        like = next(iter(self.values.of.values()))
        return like.new_zeros(like.shape[0], dim, 1, 1)


def inner_order(group: Sequence[str], nodes: Mapping[str, GraphNode]) -> list[str]:
    """The nodes of a recurrence, each after those that it reads at its own time."""
    done: list[str] = []
    left = list(group)
    while left:
        ready = [name for name in left if all(source not in left for source in _at_once(name, nodes))]
        if not ready:
            raise ModelLoadError(f"nodes {', '.join(left[:4])} read each other at one time: they cannot be computed")
        done += ready
        left = [name for name in left if name not in ready]
    return done


def _at_once(name: str, nodes: Mapping[str, GraphNode]) -> Iterator[str]:
    for offset in nodes[name].offsets:
        for source, read in reads_of(nodes[name].reads, Span(offset, offset, 1)):
            if read is not None and read.start == 0:
                yield source
