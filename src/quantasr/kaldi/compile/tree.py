"""Kaldi's ``tree`` file: which pdf a phone in its context has (ContextDependency and its event maps)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantasr.errors import ModelLoadError
from quantasr.kaldi.nnet3.transitions import TransitionModel
from quantasr.kaldi.stream import Reader
from quantasr.kaldi.writer import Writer, writing

PDF_CLASS = -1
"""The key under which event maps ask for the pdf-class; 0, 1, ... ask for the phone at that place of the window."""
DEEPEST = 300


@dataclass(frozen=True)
class Leaf:
    """An answer: a pdf."""

    pdf: int


@dataclass(frozen=True)
class Table:
    """One branch for each value of ``key``; None where there is none."""

    key: int
    branches: tuple[EventMap | None, ...]


@dataclass(frozen=True)
class Split:
    """A question: is the value of ``key`` among ``yes_set``?"""

    key: int
    yes_set: frozenset[int]
    yes: EventMap
    no: EventMap


EventMap = Leaf | Table | Split


@dataclass(frozen=True)
class ContextTree:
    """Phones in windows of ``width``, of which the one at ``central`` is meant; ``to_pdf`` answers for a window."""

    width: int
    central: int
    to_pdf: EventMap

    def pdf(self, window: Sequence[int], pdf_class: int) -> int:
        """The pdf of a window of phones (0: none, at the ends) and a pdf-class; ModelLoadError if it has none."""
        node: EventMap | None = self.to_pdf
        while not isinstance(node, Leaf):
            if node is None or not (node.key == PDF_CLASS or 0 <= node.key < self.width):
                raise ModelLoadError(f"the tree has no pdf for phones {tuple(window)}: it is not the one of this model")
            value = pdf_class if node.key == PDF_CLASS else window[node.key]
            if isinstance(node, Table):
                node = node.branches[value] if 0 <= value < len(node.branches) else None
            else:
                node = node.yes if value in node.yes_set else node.no
        return node.pdf


def read_tree(path: str | Path) -> ContextTree:
    """Read ``tree``. Raises KaldiFileError, with the byte."""
    reader = Reader.open(path)
    reader.expect_token("ContextDependency")
    width, central = reader.read_int32(), reader.read_int32()
    if not 0 <= central < width <= 10:
        reader.fail(f"a context of {width} phones around number {central} cannot be")
    reader.expect_token("ToPdf")
    to_pdf = _read(reader, 0)
    if to_pdf is None:
        reader.fail("the tree is empty")
    reader.expect_token("EndContextDependency")
    return ContextTree(width, central, to_pdf)


def _read(reader: Reader, depth: int) -> EventMap | None:
    if depth > DEEPEST:
        reader.fail(f"questions are nested more than {DEEPEST} deep")
    kind = reader.expect_token("NULL", "CE", "TE", "SE")
    if kind == "NULL":
        return None
    if kind == "CE":
        return Leaf(reader.read_int32())
    key = reader.read_int32()
    if kind == "TE":
        count = reader.read_uint32()
        if count > reader.remaining:  # a branch has five bytes at least
            reader.fail(f"a table of {count} branches cannot be here")
        reader.expect_token("(")
        branches = tuple(_read(reader, depth + 1) for _ in range(count))
        reader.expect_token(")")
        return Table(key, branches)
    yes_set = frozenset(int(value) for value in reader.read_int_vector())
    reader.expect_token("{")
    yes, no = _read(reader, depth + 1), _read(reader, depth + 1)
    reader.expect_token("}")
    if yes is None or no is None:
        reader.fail("a question has no branch")
    return Split(key, yes_set, yes, no)


def write_tree(tree: ContextTree, path: str | Path, *, binary: bool = True) -> None:
    """Write ``tree`` as Kaldi does."""
    with writing(path, binary=binary) as writer:
        writer.write_token("ContextDependency")
        writer.write_int32(tree.width)
        writer.write_int32(tree.central)
        writer.write_token("ToPdf")
        _write(writer, tree.to_pdf)
        writer.write_token("EndContextDependency")


def _write(writer: Writer, node: EventMap | None) -> None:
    if node is None:
        writer.write_token("NULL")
    elif isinstance(node, Leaf):
        writer.write_token("CE")
        writer.write_int32(node.pdf)
    elif isinstance(node, Table):
        writer.write_token("TE")
        writer.write_int32(node.key)
        writer.write_uint32(len(node.branches))
        writer.write_token("(")
        for branch in node.branches:
            _write(writer, branch)
        writer.write_token(")")
        _newline(writer)
    else:
        writer.write_token("SE")
        writer.write_int32(node.key)
        writer.write_int_vector(np.array(sorted(node.yes_set), np.int32))
        writer.write_token("{")
        _write(writer, node.yes)
        _write(writer, node.no)
        writer.write_token("}")
        _newline(writer)


def _newline(writer: Writer) -> None:
    if not writer.binary:
        writer.write_text("\n")


def tree_of(model: TransitionModel) -> ContextTree | None:
    """The tree of a model without context, in which every state of a phone has one pair of pdfs; None of others."""
    topology = model.topology
    branches: dict[int, dict[int, int]] = {}
    for phone, state, forward, self_loop in model.tuples.tolist():
        hmm = topology.entries[int(topology.entry_of_phone[phone])][state]
        for pdf_class, pdf in ((hmm.forward_pdf_class, forward), (hmm.self_loop_pdf_class, self_loop)):
            if branches.setdefault(phone, {}).setdefault(pdf_class, pdf) != pdf:
                return None
    tables: list[EventMap | None] = [None] * (1 + max(branches))
    for phone, pdfs in branches.items():
        leaves = [Leaf(pdfs[k]) if k in pdfs else None for k in range(1 + max(pdfs))]
        tables[phone] = Table(PDF_CLASS, tuple(leaves))
    return ContextTree(1, 0, Table(0, tuple(tables)))
