"""Which frames each node of an nnet3 network is computed on, so that nothing is computed twice or for nothing.

With a subsampling factor ``k`` and ``n`` output frames, the output is wanted at the times 0, k, ... k(n - 1). Every
node is computed on one :class:`Span`: all times from ``start`` to ``k(n - 1) + end`` in steps of ``step``. What reads a
node reads a slice of it, whose bounds do not depend on ``n``: they are counted from the beginning and from the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil, floor, gcd, inf

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


@dataclass(frozen=True)
class Span:
    """The times ``start``, ``start + step``, ... ``k(n - 1) + end``."""

    start: int
    end: int
    step: int

    def moved(self, by: int) -> Span:
        """The same times, ``by`` frames later."""
        return Span(self.start + by, self.end + by, self.step)

    def widened(self, other: Span) -> Span:
        """The smallest span that holds both."""
        step = gcd(self.step, other.step, self.start - other.start)
        return Span(min(self.start, other.start), max(self.end, other.end), step)

    def within(self, first: float, last: float) -> Span:
        """Those of the times that are not before ``first`` nor after ``k(n - 1) + last``."""
        start, end = self.start, self.end
        if start < first:
            start += ceil((first - start) / self.step) * self.step
        if end > last:
            end -= ceil((end - last) / self.step) * self.step
        return Span(start, end, self.step)

    def bounds_in(self, held: Span) -> tuple[int, int, int]:
        """(frames of ``held`` to leave out at the beginning, at the end, step) to get this span."""
        before, after = self.start - held.start, held.end - self.end
        assert before % held.step == 0 and after % held.step == 0 and self.step % held.step == 0, (self, held)
        return before // held.step, after // held.step, self.step // held.step


@dataclass(frozen=True)
class Window:
    """What a statistics component sums: its input from ``left`` frames before to ``right`` after, as far as that goes.

    It has a value at each multiple of ``period``, and its input is read at the multiples of ``step``. Times between are
    answered with the value before, unless ``strict``.
    """

    period: int
    step: int
    left: int
    right: int
    strict: bool

    def reach(self, first: int, last: int) -> tuple[int, int]:
        """The first and last time that is answered, of an input from ``first`` to ``k(n - 1) + last``."""
        begin = ceil(first / self.step) * self.step
        return ceil((begin - self.right) / self.period) * self.period, last + self.left

    def input_span(self, first: int, last: int, subsampling: int) -> Span:
        """The evenly spaced times of the input among which are all multiples of ``step``."""
        step = gcd(self.step, subsampling)
        return Span(ceil(first / step) * step, floor(last / step) * step, step)


@dataclass(frozen=True)
class GraphNode:
    """A node of the network: its name, what it reads, and the reach in time of its component if that has one.

    ``offsets`` are the times, relative to its own, at which a component itself reads its input (TdnnComponent and
    time-height convolutions); ``optional`` those of them that count as zero where there is no input. A statistics
    component has a ``window`` instead.
    """

    name: str
    reads: Descriptor
    offsets: tuple[int, ...] = (0,)
    optional: frozenset[int] = frozenset()
    window: Window | None = None


@dataclass(frozen=True)
class Plan:
    """``order``: groups of nodes, each after what it reads; a group of several, or one that reads itself, recurs."""

    spans: dict[str, Span]
    reach: dict[str, tuple[float, float]]
    """The first time at which a node has a value, and the last one after ``k(n - 1)``."""
    order: tuple[tuple[str, ...], ...]
    recurrent: frozenset[str]
    subsampling: int
    backward: bool
    """Whether a recurrence runs from the end of the recording to its beginning."""
    windows: dict[str, tuple[Window, Span]] = field(default_factory=dict)
    """Of nodes with statistics: the window, and the times at which the node's input is read."""

    def grid_start(self, name: str) -> int:
        """The first multiple of the period at which a node with statistics is computed."""
        period = self.windows[name][0].period
        return self.spans[name].start // period * period


def make_plan(
    nodes: Mapping[str, GraphNode], inputs: Mapping[str, Span], output: str, subsampling: int, where: str
) -> Plan:
    """Find the spans of all nodes that ``output`` needs; ``inputs`` are the frames that are there.

    Raises ModelLoadError when the network looks further than the model says, or reads itself at the same time.
    """
    order = _order(nodes, inputs, output)
    recurrent, delays = _recurrences(nodes, order, where)
    first, last = _reach(nodes, inputs, order, recurrent, where)
    if first[output] > 0 or last[output] < 0:
        raise ModelLoadError(
            f"{where}: a frame of '{output}' needs {max(0, first[output]):.0f} frames before and "
            f"{max(0, -last[output]):.0f} after it more than the contexts that the model names; were they changed?"
        )
    wanted: dict[str, Span] = {output: Span(0, 0, subsampling)}
    windows: dict[str, tuple[Window, Span]] = {}
    for group in reversed(order):
        if group[0] in recurrent:
            _widen_recurrence(group, wanted, first, last, delays[group])
        for name in group:
            node = nodes[name]
            times = [wanted[name].moved(offset) for offset in node.offsets]
            if node.window is not None:
                reach = computable(node.reads, {n: (first[n], last[n]) for n in first})
                times = [node.window.input_span(*_integers(*reach, where), subsampling)]
                windows[name] = node.window, times[0]
            for source, read in (found for span in times for found in reads_of(node.reads, span)):
                if source in group:
                    continue
                if read is None:  # at a time that does not move: all of it
                    read = Span(*_integers(first[source], last[source], where), 1)
                read = read.within(first[source], last[source])
                wanted[source] = read if source not in wanted else wanted[source].widened(read)
    return Plan(
        wanted | {name: span for name, span in inputs.items() if name in wanted},
        {name: (first[name], last[name]) for name in first},
        tuple(order),
        frozenset(recurrent),
        subsampling,
        backward=any(delay > 0 for group in delays.values() for delay in group),
        windows=windows,
    )


def reads_of(reads: Descriptor, span: Span) -> Iterator[tuple[str, Span | None]]:
    """(node, its times) of everything that a descriptor reads to give ``span``; None for a time that does not move."""
    match reads:
        case Node(name):
            yield name, span
        case Offset(part, t):
            yield from reads_of(part, span.moved(t))
        case Append(parts) | Sum(parts):
            for part in parts:
                yield from reads_of(part, span)
        case Scale(_, part) | IfDefined(part):
            yield from reads_of(part, span)
        case Failover(a, b):
            yield from reads_of(a, span)
            yield from reads_of(b, span)
        case Switch(parts):
            for part in parts:
                yield from reads_of(part, span)
        case Round(part, modulus):
            yield from reads_of(part, rounded(span, modulus))
        case ReplaceIndex(part):
            for name, _ in reads_of(part, span):
                yield name, None
        case Const():
            return


def rounded(span: Span, modulus: int) -> Span:
    """Every time from the multiple of ``modulus`` before a span to its end: where it begins moves with its length."""
    return Span(span.start // modulus * modulus, span.end, 1)


def _order(nodes: Mapping[str, GraphNode], inputs: Mapping[str, Span], output: str) -> list[tuple[str, ...]]:
    """Strongly connected components in the order of computation (Tarjan 1972, without recursion)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[tuple[str, ...]] = []
    sources = {
        name: [s for s in dict.fromkeys(names_of(node.reads)) if s not in inputs] for name, node in nodes.items()
    }
    work = [(output, iter(sources[output]))]
    index[output] = low[output] = 0
    stack.append(output)
    while work:
        name, rest = work[-1]
        child = next(rest, None)
        if child is None:
            work.pop()
            if work:
                low[work[-1][0]] = min(low[work[-1][0]], low[name])
            if low[name] == index[name]:
                at = stack.index(name)
                group = set(stack[at:])
                del stack[at:]
                groups.append(tuple(n for n in nodes if n in group))
        elif child not in index:
            index[child] = low[child] = len(index)
            stack.append(child)
            work.append((child, iter(sources[child])))
        elif child in stack:
            low[name] = min(low[name], index[child])
    return groups


def names_of(reads: Descriptor) -> Iterator[str]:
    """The nodes that a descriptor reads."""
    return (name for name, _ in reads_of(reads, Span(0, 0, 1)))


def _recurrences(
    nodes: Mapping[str, GraphNode], order: list[tuple[str, ...]], where: str
) -> tuple[set[str], dict[tuple[str, ...], tuple[int, ...]]]:
    """Nodes that read themselves, and for each group the offsets in time at which it does."""
    recurrent: set[str] = set()
    delays: dict[tuple[str, ...], tuple[int, ...]] = {}
    for group in order:
        found = {
            (read.start if read is not None else None)
            for name in group
            for offset in nodes[name].offsets
            for source, read in reads_of(nodes[name].reads, Span(offset, offset, 1))
            if source in group
        }
        if not found:
            continue
        moved = tuple(sorted(delay for delay in found if delay))
        if None in found or not moved or moved[0] < 0 < moved[-1]:
            raise ModelLoadError(
                f"{where}: node '{group[0]}' reads itself "
                f"{'in both directions of time' if moved else 'at its own time'}: it cannot be computed"
            )
        recurrent.update(group)
        delays[group] = moved
    return recurrent, delays


def _reach(
    nodes: Mapping[str, GraphNode],
    inputs: Mapping[str, Span],
    order: list[tuple[str, ...]],
    recurrent: set[str],
    where: str,
) -> tuple[dict[str, float], dict[str, float]]:
    """The first and last time at which each node can be computed from the frames that are there."""
    first: dict[str, float] = {name: span.start for name, span in inputs.items()}
    last: dict[str, float] = {name: span.end for name, span in inputs.items()}
    for group in order:
        for name in group:
            node = nodes[name]
            needed = [offset for offset in node.offsets if offset not in node.optional]
            reach = computable(node.reads, {n: (first[n], last[n]) for n in first}, group)
            first[name] = max((reach[0] - offset for offset in needed), default=-inf)
            last[name] = min((reach[1] - offset for offset in needed), default=inf)
            if node.window is not None:
                first[name], last[name] = node.window.reach(*_integers(*reach, where))
        if group[0] in recurrent:  # all of them can be computed together, where each can from outside
            begin, end = max(first[name] for name in group), min(last[name] for name in group)
            first.update(dict.fromkeys(group, begin))
            last.update(dict.fromkeys(group, end))
    return first, last


def computable(
    reads: Descriptor, reach: Mapping[str, tuple[float, float]], group: tuple[str, ...] = ()
) -> tuple[float, float]:
    """The first and last time at which a descriptor has a value; what the group reads of itself does not count."""
    match reads:
        case Node(name):
            return (-inf, inf) if name in group else reach[name]
        case Offset(part, t):
            begin, end = computable(part, reach, group)
            return begin - t, end - t
        case Append(parts) | Switch(parts):
            ranges = [computable(part, reach, group) for part in parts]
            return max(begin for begin, _ in ranges), min(end for _, end in ranges)
        case Sum(parts):
            ranges = [computable(part, reach, group) for part in parts]
            return max(begin for begin, _ in ranges), min(end for _, end in ranges)
        case Scale(_, part):
            return computable(part, reach, group)
        case Failover(a, b):
            ranges = [computable(part, reach, group) for part in (a, b)]
            return min(begin for begin, _ in ranges), max(end for _, end in ranges)
        case Round(part):
            return computable(part, reach, group)
        case _:  # IfDefined, ReplaceIndex, Const
            return -inf, inf


def _widen_recurrence(
    group: tuple[str, ...],
    wanted: dict[str, Span],
    first: Mapping[str, float],
    last: Mapping[str, float],
    delays: tuple[int, ...],
) -> None:
    """Let a recurrence run over all there is on the side that it comes from."""
    span = None
    for name in group:
        if name in wanted:
            span = wanted[name] if span is None else span.widened(wanted[name])
    assert span is not None
    step = gcd(span.step, *delays)
    start, end = span.start, span.end
    if delays[0] < 0:
        start -= int((start - first[group[0]]) // step) * step
    else:
        end += int((last[group[0]] - end) // step) * step
    wanted.update(dict.fromkeys(group, Span(start, end, step)))


def _integers(begin: float, end: float, where: str) -> tuple[int, int]:
    if begin in (-inf, inf) or end in (-inf, inf):
        raise ModelLoadError(f"{where}: a rounded or replaced time index that no input bounds: it cannot be computed")
    return int(begin), int(end)
