"""Kaldi's archives of lattices, raw and compact, binary and text, for its ``lattice-*`` programs."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quantasr.errors import KaldiFileError
from quantasr.kaldi.fst import SymbolTable
from quantasr.kaldi.fst.read import MAGIC, Header, read_header
from quantasr.kaldi.fst.source import Source
from quantasr.kaldi.writer import Writer, writing
from quantasr.speech.lattice.compact import CompactLattice
from quantasr.speech.lattice.lattice import Lattice

RAW, COMPACT = "lattice4", "compactlattice44"
_FST_VERSION, _PROPERTIES = 2, 3  # expanded, mutable: nothing else is claimed
_ZERO = float("inf")

Put = Callable[[str, Lattice | CompactLattice], None]


@dataclass
class _Rows:
    """States and arcs as a file has them, in any order."""

    start: int
    arcs: list[tuple[int, int, int, int]] = field(default_factory=list)
    costs: list[tuple[float, float]] = field(default_factory=list)
    strings: list[tuple[int, ...]] = field(default_factory=list)
    finals: dict[int, tuple[float, float, tuple[int, ...]]] = field(default_factory=dict)


@contextmanager
def lattice_writer(ark: str | Path, scp: str | Path | None = None, *, binary: bool = True) -> Iterator[Put]:
    """Gives a function (key, lattice) that adds to the archive ``ark``, and to the list of places ``scp``.

    Both files are there only when all is written. Raises KaldiFileError when they cannot be, ValueError for bad keys.
    """
    with ExitStack() as stack:
        writer = stack.enter_context(writing(ark, binary=binary, header=False))
        places = stack.enter_context(writing(scp, binary=False)) if scp is not None else None

        def put(key: str, lattice: Lattice | CompactLattice) -> None:
            if not key or key.split() != [key]:
                raise ValueError(f"'{key}' is no key of an archive: it needs a letter and no space")
            writer.write_token(key)
            if places is not None:
                places.write_text(f"{key} {ark}:{writer.offset}\n")
            rows, kind = _rows(lattice)
            (_write_binary if binary else _write_text)(writer, rows, kind, lattice.states)

        yield put


def read_lattices(
    path: str | Path, acoustic_scale: float = 1.0, words: SymbolTable | None = None
) -> Iterator[tuple[str, Lattice | CompactLattice]]:
    """Keys and lattices of an archive, one after the other. Raises KaldiFileError.

    ``acoustic_scale``: what the search that made them multiplied log-likelihoods with.
    """
    source = Source(path)
    while source.left:
        end = source.data.find(b" ", source.at, source.at + 4096)
        if end <= source.at:
            raise source.error("a key was expected: this is no archive")
        key = bytes(source.data[source.at : end]).decode("utf-8", "replace")
        source.at = end + 1
        where = f"{path}: '{key[:40]}'"
        if source.left >= 4 and struct.unpack_from("<i", source.data, source.at)[0] == MAGIC:
            rows = _read_binary(source)
        else:
            stop = source.data.find(b"\n\n", source.at)
            stop = len(source.data) if stop < 0 else stop
            lines = bytes(source.data[source.at : stop]).decode("ascii", "replace").splitlines()
            source.at = min(stop + 2, len(source.data))
            rows = parse_lines(enumerate(lines[1:], 1), where)
        yield key, build(rows, where, acoustic_scale, words)


def read_lattice(lines: Iterable[str], where: str, acoustic_scale: float, words: SymbolTable | None) -> Lattice | None:
    """The first lattice of a text archive that is not determinized; None where there is none. Raises KaldiFileError."""
    rows = iter(enumerate(lines, 1))
    if next(rows, None) is None:
        return None
    found = parse_lines(rows, where)
    if not found.arcs:
        return None
    lattice = build(found, where, acoustic_scale, words)
    if not isinstance(lattice, Lattice):
        raise KaldiFileError(f"{where}: the lattice is determinized: one that is not was expected")
    return lattice


def parse_lines(lines: Iterable[tuple[int, str]], where: str) -> _Rows:
    """The lines of one lattice, up to an empty one.

    A line is an arc (state, next state, transition-id and word, or a word alone, costs unless they are 0) or a final
    state (with costs, unless they are 0). Raises KaldiFileError, naming the line.
    """
    rows = _Rows(-1)
    compact: bool | None = None
    for number, line in lines:
        parts = line.split()
        if not parts:
            break
        try:
            count = len(parts) - (len(parts) > 2 and "," in parts[-1])
            state = _label(parts[0])
            rows.start = state if rows.start < 0 else rows.start
            if len(parts) <= 2:
                rows.finals[state] = _weight(parts[1:])
                continue
            if count not in (3, 4):
                raise ValueError("4 or 5 columns are those of an arc, or 3 or 4 in a compact lattice")
            if compact is not None and compact != (count == 3):
                raise ValueError("4 or 5 columns are those of an arc, and other arcs have others")
            compact = count == 3
            target, label, word = _label(parts[1]), _label(parts[2]), _label(parts[count - 1])
            graph, acoustic, tids = _weight(parts[count:])
            rows.arcs.append((state, target, -1 if compact else label, word))
            rows.costs.append((graph, acoustic))
            rows.strings.append(tids)
        except ValueError as error:
            raise KaldiFileError(f"{where}: line {number}: no arc of a lattice: {error}") from None
    return rows


def _label(text: str) -> int:
    value = int(text)
    if not 0 <= value < 1 << 31:
        raise ValueError("a number below 0" if value < 0 else "a number above 2147483647")
    return value


def _weight(parts: list[str]) -> tuple[float, float, tuple[int, ...]]:
    if not parts:
        return 0.0, 0.0, ()
    graph, acoustic, *tids = parts[0].split(",")
    if len(tids) > 1:
        raise ValueError("costs are graph,acoustic or graph,acoustic,transition-ids")
    return float(graph), float(acoustic), tuple(_label(t) for t in tids[0].split("_")) if tids and tids[0] else ()


def _read_binary(source: Source) -> _Rows:
    at = source.at
    head = read_header(source)
    compact, kind = head.arc.startswith("compactlattice"), "<f" if head.arc in (RAW, COMPACT) else "<d"
    if head.kind != "vector" or head.arc not in (RAW, COMPACT, "lattice8", "compactlattice84"):
        raise source.error(f"an FST of {head.kind[:40]!r} with arcs {head.arc[:40]!r} is no lattice", at)
    if not 0 <= head.states <= source.left // 16 + 1 or (head.states and not 0 <= head.start < head.states):
        raise source.error(f"a lattice of {head.states} states that starts in {head.start} cannot be here", at)
    rows = _Rows(head.start)
    size = struct.calcsize(kind)

    def weight() -> tuple[float, float, tuple[int, ...]]:
        graph, acoustic = float(source._number(kind, size)), float(source._number(kind, size))
        tids = source.array("<i4", source.int32()).tolist() if compact else []
        return graph, acoustic, tuple(tids)

    for state in range(head.states):
        final = weight()
        if final[0] != _ZERO:
            rows.finals[state] = final
        count = source.int64()
        if not 0 <= count <= source.left // 12:
            raise source.error(f"{count} arcs cannot be here")
        for _ in range(count):
            label, word = source.int32(), source.int32()
            graph, acoustic, tids = weight()
            target = source.int32()
            if min(label, word, target) < 0 or target >= head.states:
                raise source.error("an arc of the lattice leads nowhere, or has a label below 0")
            rows.arcs.append((state, target, -1 if compact else label, word))
            rows.costs.append((graph, acoustic))
            rows.strings.append(tids)
    return rows


def build(rows: _Rows, where: str, acoustic_scale: float, words: SymbolTable | None) -> Lattice | CompactLattice:
    """States numbered in topological order (Kahn 1962), arcs sorted by their sources. Raises KaldiFileError."""
    if not rows.arcs and not rows.finals:
        return Lattice.empty(0, words)
    compact = any(arc[2] < 0 for arc in rows.arcs) or not rows.arcs
    lengths = [len(tids) for tids in rows.strings] if compact else [int(arc[2] > 0) for arc in rows.arcs]
    following: dict[int, list[int]] = {}
    waits: dict[int, int] = {}
    for i, (source, target, *_) in enumerate(rows.arcs):
        following.setdefault(source, []).append(i)
        waits[target] = waits.get(target, 0) + 1
    if waits.get(rows.start):
        raise KaldiFileError(f"{where}: the lattice goes back to its start")
    frame, ready = {rows.start: 0}, [rows.start]
    order: dict[int, int] = {}
    chosen: list[int] = []
    while ready:
        state = ready.pop()
        order[state] = len(order)
        for i in following.get(state, ()):
            target = rows.arcs[i][1]
            chosen.append(i)
            frame[target] = frame[state] + lengths[i]
            waits[target] -= 1
            if not waits[target]:
                ready.append(target)
    if len(order) != len({*waits, rows.start}) or not set(rows.finals) <= set(order) or not rows.finals:
        raise KaldiFileError(f"{where}: the lattice has a loop, or states that no path passes")
    names = np.array([rows.arcs[i] for i in chosen], np.int32).reshape(-1, 4)
    costs = np.array([rows.costs[i] for i in chosen], np.float32).reshape(-1, 2)
    if not np.isfinite(costs).all():
        raise KaldiFileError(f"{where}: a cost of the lattice is not a number")
    numbers = np.array([(order[s], order[t]) for s, t, *_ in names.tolist()], np.int32).reshape(-1, 2)
    ends = np.full((len(order), 2), np.inf, np.float32)
    tails: list[tuple[int, ...]] = [()] * len(order)
    for state, (graph, acoustic, tids) in rows.finals.items():
        ends[order[state]], tails[order[state]] = (graph, acoustic), tids
    frames = np.array([frame[state] for state in order], np.int32)
    common: dict[str, Any] = {
        "source": numbers[:, 0].copy(), "target": numbers[:, 1].copy(), "word": names[:, 3].copy(),
        "graph_cost": costs[:, 0].copy(), "acoustic_cost": costs[:, 1].copy(),
        "frame": frames, "acoustic_scale": acoustic_scale, "words": words,
    }  # fmt: skip
    if not compact:
        return Lattice(
            transition_id=names[:, 2].copy(), final_cost=ends.sum(axis=1), frames=int(frames.max()), **common
        )
    strings = [rows.strings[i] for i in chosen]
    return CompactLattice(
        begin=_offsets(strings), alignment=_joined(strings),
        final_graph=ends[:, 0].copy(), final_acoustic=ends[:, 1].copy(),
        final_begin=_offsets(tails), final_alignment=_joined(tails),
        frames=int(max(f + len(tail) for f, tail in zip(frames.tolist(), tails, strict=True))), **common,
    )  # fmt: skip


def _offsets(strings: Sequence[Sequence[int]]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.concatenate(([0], np.cumsum([len(tids) for tids in strings], dtype=np.int64)))


def _joined(strings: Sequence[Sequence[int]]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array([tid for tids in strings for tid in tids], np.int32)


def _rows(lattice: Lattice | CompactLattice) -> tuple[_Rows, str]:
    compact = isinstance(lattice, CompactLattice)
    rows = _Rows(0 if lattice.states else -1)
    labels = lattice.word if isinstance(lattice, CompactLattice) else lattice.transition_id
    columns = (lattice.source, lattice.target, labels, lattice.word)
    rows.arcs = list(zip(*(column.tolist() for column in columns), strict=True))
    rows.costs = list(zip(lattice.graph_cost.tolist(), lattice.acoustic_cost.tolist(), strict=True))
    if isinstance(lattice, CompactLattice):
        parts = np.split(lattice.alignment, lattice.begin[1:-1]) if rows.arcs else []
        rows.strings = [tuple(part.tolist()) for part in parts]
        ends = np.split(lattice.final_alignment, lattice.final_begin[1:-1]) if lattice.states else []
        for state in np.flatnonzero(np.isfinite(lattice.final_graph)).tolist():
            cost = float(lattice.final_graph[state]), float(lattice.final_acoustic[state])
            rows.finals[state] = (*cost, tuple(ends[state].tolist()))
    else:
        rows.strings = [()] * len(rows.arcs)
        for state in np.flatnonzero(np.isfinite(lattice.final_cost)).tolist():
            rows.finals[state] = float(lattice.final_cost[state]), 0.0, ()
    return rows, COMPACT if compact else RAW


def _write_text(writer: Writer, rows: _Rows, kind: str, states: int) -> None:
    def weight(graph: float, acoustic: float, tids: tuple[int, ...]) -> str:
        costs = f"{graph:.9g},{acoustic:.9g}"
        return f"{costs},{'_'.join(map(str, tids))}" if kind == COMPACT else costs

    lines: list[list[str]] = [[] for _ in range(states)]
    for (source, target, label, word), costs, tids in zip(rows.arcs, rows.costs, rows.strings, strict=True):
        labels = f"{word}" if kind == COMPACT else f"{label}\t{word}"
        lines[source].append(f"{source}\t{target}\t{labels}\t{weight(*costs, tids)}\n")
    for state, final in rows.finals.items():
        lines[state].append(f"{state}\t{weight(*final)}\n")
    writer.write_text("\n" + "".join(line for part in lines for line in part) + "\n")


def _write_binary(writer: Writer, rows: _Rows, kind: str, states: int) -> None:
    def weight(graph: float, acoustic: float, tids: tuple[int, ...]) -> bytes:
        costs = struct.pack("<ff", graph, acoustic)
        return costs + struct.pack(f"<i{len(tids)}i", len(tids), *tids) if kind == COMPACT else costs

    parts: list[list[bytes]] = [[] for _ in range(states)]
    for (source, target, label, word), costs, tids in zip(rows.arcs, rows.costs, rows.strings, strict=True):
        parts[source].append(struct.pack("<ii", label, word) + weight(*costs, tids) + struct.pack("<i", target))
    writer.write_bytes(struct.pack("<i", MAGIC))
    for name in ("vector", kind):
        writer.write_bytes(struct.pack("<i", len(name)) + name.encode())
    head = Header("vector", kind, _FST_VERSION, 0, rows.start, states, len(rows.arcs), None, None)
    writer.write_bytes(struct.pack("<iiQqqq", head.version, head.flags, _PROPERTIES, head.start, states, head.arcs))
    for state in range(states):
        writer.write_bytes(weight(*rows.finals.get(state, (_ZERO, _ZERO, ()))))
        writer.write_bytes(struct.pack("<q", len(parts[state])) + b"".join(parts[state]))
