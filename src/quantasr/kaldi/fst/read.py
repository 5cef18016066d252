"""OpenFst files: vector, const, olabel_lookahead, ilabel_lookahead and ngram FSTs over the tropical semiring."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import MissingExtraError
from quantasr.kaldi.fst.fst import INPUT, NEXT, OUTPUT, Fst, LabelReach
from quantasr.kaldi.fst.source import Source
from quantasr.kaldi.fst.symbols import SymbolTable, read_symbols

MAGIC = 2125659606
ADD_ON_MAGIC = 446681434
HAS_INPUT_SYMBOLS, HAS_OUTPUT_SYMBOLS, IS_ALIGNED = 1, 2, 4
LOOKAHEAD = ("olabel_lookahead", "ilabel_lookahead")


@dataclass(frozen=True)
class Header:
    """What every FST file begins with."""

    kind: str
    arc: str
    version: int
    flags: int
    start: int
    states: int
    arcs: int
    input_symbols: SymbolTable | None
    output_symbols: SymbolTable | None


def require_numba() -> None:
    """Raise MissingExtraError where numba, which reads and decodes FSTs here, is not installed."""
    try:
        import numba  # noqa: F401
    except ImportError:
        raise MissingExtraError("FSTs and lattices need numba: pip install 'quantasr[lattice]'") from None


def read_header(source: Source) -> Header:
    """The header, and the symbol tables behind it, at the position of ``source``."""
    at = source.at
    if source.left < 4 or source.int32() != MAGIC:
        raise source.error("this is not a binary FST file (text FSTs are compiled with fstcompile)", at)
    kind, arc = source.text(), source.text()
    version, flags = source.int32(), source.int32()
    source.uint64()  # properties: what we need of them is checked
    start, states, arcs = source.int64(), source.int64(), source.int64()
    input_symbols = read_symbols(source) if flags & HAS_INPUT_SYMBOLS else None
    output_symbols = read_symbols(source) if flags & HAS_OUTPUT_SYMBOLS else None
    return Header(kind, arc, version, flags, start, states, arcs, input_symbols, output_symbols)


def read_fst(path: str | Path) -> Fst:
    """The FST of a file. Raises KaldiFileError, with the byte, for anything that is not sound."""
    require_numba()
    return read_fst_from(Source(path))


def read_output_symbols(path: str | Path) -> SymbolTable | None:
    """The words of an FST's output labels, where its file holds them; the arcs are not read."""
    return read_header(Source(path)).output_symbols


def read_fst_from(source: Source) -> Fst:
    """The FST at the position of ``source``."""
    at = source.at
    head = read_header(source)
    if head.arc != "standard":
        raise source.error(f"arcs of type {head.arc[:40]!r} are not supported, only 'standard' (tropical)", at)
    if head.kind in LOOKAHEAD:
        return _read_lookahead(source, head)
    if head.kind == "ngram":
        first, arcs, final = _read_ngram(source)
        start = 1
    elif head.kind == "const":
        first, arcs, final = _read_const(source, head)
        start = head.start
    elif head.kind == "vector":
        first, arcs, final = _read_vector(source, head)
        start = head.start
    else:
        known = ", ".join(("vector", "const", "ngram", *LOOKAHEAD))
        raise source.error(
            f"FSTs of type {head.kind[:40]!r} are not supported ({known}); convert it with fstconvert", at
        )
    _check(source, at, start, arcs, final)
    return Fst(start, first, arcs, final, head.input_symbols, head.output_symbols, None, head.kind)


def _check(source: Source, at: int, start: int, arcs: NDArray[np.int32], final: NDArray[np.float32]) -> None:
    states = len(final)
    if not -1 <= start < states:
        raise source.error(f"the FST starts in state {start} of {states}", at)
    if len(arcs):
        if arcs[:, NEXT].min() < 0 or arcs[:, NEXT].max() >= states:
            raise source.error(f"an arc of the FST leads to a state outside of its {states}", at)
        if min(arcs[:, INPUT].min(), arcs[:, OUTPUT].min()) < 0:
            raise source.error("an arc of the FST has a negative label", at)
    weights = arcs.view(np.float32)[:, 2]
    for costs in (weights, final):
        if np.isnan(costs).any() or np.isneginf(costs).any():
            raise source.error("a weight of the FST is not a number", at)


Parts = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]


def _read_ngram(source: Source) -> Parts:
    from quantasr.kaldi.fst.ngram import read_ngram

    return read_ngram(source)


def _counts(source: Source, head: Header, at: int) -> tuple[int, int]:
    if not (0 <= head.states < 1 << 31 and 0 <= head.arcs < 1 << 31):
        raise source.error(f"an FST of {head.states} states and {head.arcs} arcs cannot be read", at)
    return head.states, head.arcs


def _read_const(source: Source, head: Header) -> Parts:
    at = source.at
    states, arcs = _counts(source, head, at)
    aligned = bool(head.flags & IS_ALIGNED) or head.version == 1
    if aligned:
        source.align()
    table = source.array("<i4", 5 * states).reshape(states, 5)
    first = np.zeros(states + 1, np.int32)
    counts = table[:, 2].astype(np.int64)
    ends = np.cumsum(counts)
    if (counts < 0).any() or (states and ends[-1] != arcs):
        raise source.error("the states of a const FST have other counts of arcs than its header", at)
    first[1:] = ends
    if (table[:, 1] != first[:-1]).any():
        raise source.error("the arcs of a const FST are not in the order of its states", at)
    final = np.ascontiguousarray(table[:, 0]).view(np.float32)
    if aligned:
        source.align()
    return first, source.array("<i4", 4 * arcs).reshape(arcs, 4), final


def _read_vector(source: Source, head: Header) -> Parts:
    from quantasr.kaldi.fst.scan import vector_arcs, vector_states

    at = source.at
    states = _counts(source, head, at)[0] if head.states >= 0 else -1
    if not 0 <= states <= source.left // 12:
        raise source.error(f"a vector FST of {states} states cannot be in {source.left} bytes", at)
    data = np.frombuffer(source.data, np.uint8)
    first, bits = np.zeros(states + 1, np.int32), np.empty(states, np.int32)
    end, failed = vector_states(data, at, states, first, bits)
    if failed >= 0:
        raise source.error(f"state {failed} of {states} is cut off or has an impossible number of arcs", end)
    raw = np.empty((int(first[-1]), 16), np.uint8)
    vector_arcs(data, at, first, raw)
    source.at = end
    return first, raw.view("<i4"), bits.view(np.float32)


def _read_lookahead(source: Source, head: Header) -> Fst:
    at = source.at
    if source.int32() != ADD_ON_MAGIC:
        raise source.error(f"an {head.kind} FST must have an add-on here and has not", at)
    fst = read_fst_from(source)
    reach = None
    if source.flag():
        for of_input in (True, False):
            if source.flag():
                found = _read_reach(source, fst.states)
                if found.of_input == of_input:
                    reach = found
    if reach is None or reach.of_input != head.kind.startswith("i"):
        raise source.error(f"an {head.kind} FST lacks its table of reachable labels", at)
    inputs, outputs = head.input_symbols or fst.input_symbols, head.output_symbols or fst.output_symbols
    return Fst(fst.start, fst.first, fst.arcs, fst.final, inputs, outputs, reach, head.kind)


def _read_reach(source: Source, states: int) -> LabelReach:
    from quantasr.kaldi.fst.scan import interval_sets

    of_input, has_relabelling = source.flag(), source.flag()
    at = source.at
    if has_relabelling:
        source.array("<i4", 2 * source.int64())
    final_label = source.int32()
    count = source.int64()
    if count != states:
        raise source.error(f"reachable labels of {count} states are announced for an FST of {states}", at)
    at = source.at
    most = (source.left - 12 * states) // 8
    if most < 0:
        raise source.error("the table of reachable labels is cut off", at)
    first, intervals = np.zeros(states + 1, np.int32), np.empty((most, 2), np.int32)
    end, failed = interval_sets(np.frombuffer(source.data, np.uint8), at, states, first, intervals)
    if failed >= 0:
        raise source.error(f"reachable labels of state {failed} are cut off or of an impossible number", end)
    source.at = end
    return LabelReach(first, intervals[: first[-1]].copy(), final_label, of_input)
