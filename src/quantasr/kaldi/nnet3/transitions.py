"""Transition models: HMM topologies, and which transition id means which pdf (Kaldi's hmm/transition-model)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import ModelLoadError
from quantasr.kaldi.stream import Reader, short, single
from quantasr.kaldi.writer import Writer

Ints: TypeAlias = NDArray[np.int32]


@dataclass(frozen=True)
class HmmState:
    """A state of a phone: its pdf classes (-1: it emits nothing), and (next state, probability) of each transition."""

    forward_pdf_class: int = -1
    self_loop_pdf_class: int = -1
    transitions: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, eq=False)
class Topology:
    """``entries`` are lists of states, the last of them final; ``entry_of_phone[phone]`` says which, -1 is none."""

    phones: Ints
    entry_of_phone: Ints
    entries: tuple[tuple[HmmState, ...], ...]

    def __post_init__(self) -> None:
        """Raises ModelLoadError where Kaldi would refuse the topology."""
        if not len(self.phones) or (self.phones[1:] <= self.phones[:-1]).any() or self.phones[0] <= 0:
            raise ModelLoadError("phones of a topology are not in order, from 1 on")
        if self.phones[-1] >= len(self.entry_of_phone):
            raise ModelLoadError(f"phone {self.phones[-1]} has no topology")
        used = self.entry_of_phone[self.phones]
        if used.min() < 0 or used.max() >= len(self.entries):
            raise ModelLoadError(f"there is no topology {used.max() if used.min() >= 0 else used.min()}")
        for number, states in enumerate(self.entries):
            self._check(number, states)

    @staticmethod
    def _check(number: int, states: tuple[HmmState, ...]) -> None:
        if len(states) < 2 or states[-1].transitions:
            raise ModelLoadError(f"topology {number} has no final state")
        for state in states:
            if any(not 0 <= to < len(states) or not 0 < share < 2 for to, share in state.transitions):
                raise ModelLoadError(f"a transition of topology {number} leads nowhere or has no probability")
            if len({to for to, _ in state.transitions}) < len(state.transitions):
                raise ModelLoadError(f"topology {number} has the same transition twice")
        if not all(state.transitions for state in states[:-1]):
            raise ModelLoadError(f"a state of topology {number} leads nowhere")

    def states_of(self, phone: int) -> tuple[HmmState, ...]:
        """The states of ``phone``, the last of them final; raises ModelLoadError if it has none."""
        entry = int(self.entry_of_phone[phone]) if 0 < phone < len(self.entry_of_phone) else -1
        if not 0 <= entry < len(self.entries):
            raise ModelLoadError(f"phone {phone} has no topology")
        return self.entries[entry]

    @property
    def is_hmm(self) -> bool:
        """Whether a state has one pdf, as in Kaldi before chain models, and not another one for its self-loop."""
        entries = {int(i) for i in self.entry_of_phone[self.phones]}
        return all(state.forward_pdf_class == state.self_loop_pdf_class for i in entries for state in self.entries[i])


@dataclass(frozen=True, eq=False)
class TransitionModel:
    """What each transition id, from 1 on, stands for.

    ``tuples`` is int32 [states, 4]: phone, state of the phone, pdf of its forward transitions, pdf of its self-loop.
    Like the ids, these states are counted from 1 on: ``state_of_tid`` 1 is the first row. ``log_probs`` is float32
    [ids + 1], the first unused, as are those of ``pdf_of_tid``, ``phone_of_tid``, ``state_of_tid``, ``is_self_loop``
    [ids + 1] and of ``self_loop_of_state`` [states + 1], the id of a state's self-loop or 0.

    Raises ModelLoadError when these do not fit together.
    """

    topology: Topology
    tuples: Ints
    log_probs: NDArray[np.float32]
    pdf_of_tid: Ints = field(init=False, repr=False)
    phone_of_tid: Ints = field(init=False, repr=False)
    state_of_tid: Ints = field(init=False, repr=False)
    is_self_loop: NDArray[np.bool_] = field(init=False, repr=False)
    self_loop_of_state: Ints = field(init=False, repr=False)

    def __post_init__(self) -> None:
        states = [self._state(phone, state) for phone, state in self.tuples[:, :2].tolist()]
        order = np.lexsort(self.tuples.T[::-1])
        if not len(order) or (order != np.arange(len(order))).any():
            raise ModelLoadError("the states of a transition model are not in order")
        count = sum(len(state.transitions) for state in states)
        if len(self.log_probs) != count + 1:
            raise ModelLoadError(f"{count} transitions do not fit {len(self.log_probs) - 1} probabilities")
        if not (np.isfinite(self.log_probs).all() and (self.log_probs[1:] <= 0).all()):
            raise ModelLoadError("a transition has no probability between 0 and 1")
        rows = np.repeat(np.arange(len(states)), [len(state.transitions) for state in states])
        to = np.array([to for state in states for to, _ in state.transitions], np.int64)
        loops = to == self.tuples[rows, 1]
        pdfs = np.where(loops, self.tuples[rows, 3], self.tuples[rows, 2])
        if len(pdfs) and pdfs.min() < 0:
            raise ModelLoadError(f"a transition has the pdf {pdfs.min()}")
        for name, values in (
            ("pdf_of_tid", pdfs),
            ("phone_of_tid", self.tuples[rows, 0]),
            ("state_of_tid", rows + 1),
            ("is_self_loop", loops),
        ):
            kind = np.bool_ if name == "is_self_loop" else np.int32
            object.__setattr__(self, name, np.concatenate([[0], values]).astype(kind))
        loop_of = np.zeros(len(states) + 1, np.int32)
        loop_of[rows[loops] + 1] = np.flatnonzero(loops) + 1
        object.__setattr__(self, "self_loop_of_state", loop_of)

    def _state(self, phone: int, state: int) -> HmmState:
        states = self.topology.states_of(phone)
        if not 0 <= state < len(states):
            raise ModelLoadError(f"phone {phone} has no state {state} in the topology")
        return states[state]

    @property
    def num_pdfs(self) -> int:
        """One more than the largest pdf."""
        return int(self.tuples[:, 2:].max()) + 1

    @property
    def num_states(self) -> int:
        """How many pairs of a phone's state and its pdfs there are: the rows of ``tuples``."""
        return len(self.tuples)

    @property
    def num_transition_ids(self) -> int:
        """The largest transition id."""
        return len(self.pdf_of_tid) - 1

    def first_tid(self, phone: int, state: int, forward_pdf: int, self_loop_pdf: int) -> int:
        """The id of the first transition of a phone's state with these pdfs; raises ModelLoadError if there is none."""
        first = self._first_tids.get((phone, state, forward_pdf, self_loop_pdf))
        if first is None:
            raise ModelLoadError(
                f"the transition model has no state {state} of phone {phone} with the pdfs {forward_pdf} and "
                f"{self_loop_pdf}: do tree and model belong together?"
            )
        return first

    @cached_property
    def _first_tids(self) -> dict[tuple[int, ...], int]:
        firsts = np.searchsorted(self.state_of_tid, np.arange(1, self.num_states + 1))
        return {tuple(row): int(first) for row, first in zip(self.tuples.tolist(), firsts, strict=True)}


def read_transition_model(reader: Reader) -> TransitionModel:
    """The transition model that comes next; raises KaldiFileError."""
    start = reader.offset
    reader.expect_token("<TransitionModel>")
    topology = _read_topology(reader)
    token = reader.expect_token("<Triples>", "<Tuples>")
    width = 3 if token == "<Triples>" else 4
    count = reader.read_int32()
    rows = []
    for _ in range(count):
        row = [reader.read_int32() for _ in range(width)]
        rows.append(row if width == 4 else [*row, row[2]])
    reader.expect_token("</Triples>", "</Tuples>")
    reader.expect_token("<LogProbs>")
    log_probs = single(reader.read_vector())
    reader.expect_token("</LogProbs>")
    reader.expect_token("</TransitionModel>")
    try:
        return TransitionModel(topology, np.array(rows, np.int32).reshape(-1, 4), log_probs)
    except ModelLoadError as error:
        reader.fail(str(error), start)


def write_transition_model(writer: Writer, model: TransitionModel) -> None:
    """Write ``model`` as Kaldi does: the older form where it is enough."""
    old = model.topology.is_hmm
    kind = "Triples" if old else "Tuples"
    _line(writer, "<TransitionModel>")
    _write_topology(writer, model.topology, old)
    writer.write_token(f"<{kind}>")
    writer.write_int32(len(model.tuples))
    _newline(writer)
    for row in model.tuples.tolist():
        for number in row[: 3 if old else 4]:
            writer.write_int32(number)
        _newline(writer)
    _line(writer, f"</{kind}>")
    _line(writer, "<LogProbs>")
    writer.write_vector(model.log_probs)
    _line(writer, "</LogProbs>")
    _line(writer, "</TransitionModel>")


def _read_topology(reader: Reader) -> Topology:
    start = reader.offset
    reader.expect_token("<Topology>")
    phones, entry_of_phone, entries = _binary_topology(reader) if reader.binary else _text_topology(reader)
    try:
        return Topology(phones, entry_of_phone, tuple(entries))
    except ModelLoadError as error:
        reader.fail(str(error), start)


def _binary_topology(reader: Reader) -> tuple[Ints, Ints, list[tuple[HmmState, ...]]]:
    phones, entry_of_phone = reader.read_int_vector(), reader.read_int_vector()
    count = reader.read_int32()
    old = count != -1
    if not old:
        count = reader.read_int32()
    entries = []
    for _ in range(count):
        states = []
        for _ in range(reader.read_int32()):
            forward = reader.read_int32()
            loop = forward if old else reader.read_int32()
            transitions = [(reader.read_int32(), reader.read_float()) for _ in range(reader.read_int32())]
            states.append(HmmState(forward, loop, tuple(transitions)))
        entries.append(tuple(states))
    reader.expect_token("</Topology>")
    return phones, entry_of_phone, entries


def _text_topology(reader: Reader) -> tuple[Ints, Ints, list[tuple[HmmState, ...]]]:
    entries: list[tuple[HmmState, ...]] = []
    entry_of: dict[int, int] = {}
    while reader.expect_token("<TopologyEntry>", "</Topology>") == "<TopologyEntry>":
        reader.expect_token("<ForPhones>")
        while not reader.accept_token("</ForPhones>"):
            phone = reader.read_int32()
            if not 0 < phone < 1 << 20 or phone in entry_of:
                reader.fail(f"phone {phone} cannot be, or stands twice")
            entry_of[phone] = len(entries)
        states: list[HmmState] = []
        while reader.expect_token("<State>", "</TopologyEntry>") == "<State>":
            number = reader.read_int32()
            if number != len(states):
                reader.fail(f"state {len(states)} was expected, found {number}")
            states.append(_text_state(reader))
        entries.append(tuple(states))
    entry_of_phone = np.full(max(entry_of, default=0) + 1, -1, np.int32)
    entry_of_phone[list(entry_of)] = list(entry_of.values())
    return np.array(sorted(entry_of), np.int32), entry_of_phone, entries


def _text_state(reader: Reader) -> HmmState:
    forward = loop = -1
    if reader.accept_token("<PdfClass>"):
        forward = loop = reader.read_int32()
    elif reader.accept_token("<ForwardPdfClass>"):
        forward = reader.read_int32()
        reader.expect_token("<SelfLoopPdfClass>")
        loop = reader.read_int32()
    transitions = []
    while reader.accept_token("<Transition>"):
        transitions.append((reader.read_int32(), reader.read_float()))
    if reader.peek_token() != "</State>":
        reader.fail(f"</State> was expected, found '{short(reader.peek_token())}'")
    reader.read_token()
    return HmmState(forward, loop, tuple(transitions))


def _write_topology(writer: Writer, topology: Topology, old: bool) -> None:
    writer.write_token("<Topology>")
    if writer.binary:
        writer.write_int_vector(topology.phones)
        writer.write_int_vector(topology.entry_of_phone)
        for number in ([] if old else [-1]) + [len(topology.entries)]:
            writer.write_int32(number)
        for states in topology.entries:
            writer.write_int32(len(states))
            for state in states:
                for number in [state.forward_pdf_class] + ([] if old else [state.self_loop_pdf_class]):
                    writer.write_int32(number)
                writer.write_int32(len(state.transitions))
                _write_transitions(writer, state)
    else:
        writer.write_text("\n")
        for index, states in enumerate(topology.entries):
            _line(writer, "<TopologyEntry>")
            _line(writer, "<ForPhones>")
            writer.write_text("".join(f"{i} " for i in np.flatnonzero(topology.entry_of_phone == index)) + "\n")
            _line(writer, "</ForPhones>")
            for number, state in enumerate(states):
                _write_text_state(writer, number, state, old)
            _line(writer, "</TopologyEntry>")
    _line(writer, "</Topology>")


def _write_text_state(writer: Writer, number: int, state: HmmState, old: bool) -> None:
    writer.write_token("<State>")
    writer.write_int32(number)
    if state.forward_pdf_class != -1:
        writer.write_token("<PdfClass>" if old else "<ForwardPdfClass>")
        writer.write_int32(state.forward_pdf_class)
        if not old:
            writer.write_token("<SelfLoopPdfClass>")
            writer.write_int32(state.self_loop_pdf_class)
    _write_transitions(writer, state, "<Transition>")
    _line(writer, "</State>")


def _write_transitions(writer: Writer, state: HmmState, token: str = "") -> None:
    for to, share in state.transitions:
        if token:
            writer.write_token(token)
        writer.write_int32(to)
        writer.write_float(share)


def _line(writer: Writer, token: str) -> None:
    writer.write_token(token)
    _newline(writer)


def _newline(writer: Writer) -> None:
    if not writer.binary:
        writer.write_text("\n")
