"""Alignments: a transition-id a frame (``ali.*.gz``), and the phones that they mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import KaldiFileError, ModelLoadError
from quantasr.kaldi.archive import Archive
from quantasr.kaldi.nnet3.transitions import TransitionModel, read_transition_model
from quantasr.kaldi.stream import Reader


@dataclass(frozen=True)
class Segment:
    """A phone and how many frames it lasts."""

    phone: int
    frames: int


class Alignments(Mapping[str, list[Segment]]):
    """The phones of each utterance, made of its transition-ids when they are asked for.

    ``subsampling``: frames that a transition-id stands for. Raises ModelLoadError, naming the utterance, for what is
    no alignment.
    """

    def __init__(self, transitions: TransitionModel, tids: Mapping[str, NDArray[Any]], subsampling: int = 1) -> None:
        self.transitions, self.subsampling = transitions, subsampling
        self._tids = tids

    def __getitem__(self, key: str) -> list[Segment]:
        tids = self._tids[key]
        try:
            return segments_of(tids, self.transitions, subsampling=self.subsampling)
        except ModelLoadError as error:
            raise ModelLoadError(f"{key}: {error}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._tids)

    def __len__(self) -> int:
        return len(self._tids)


def read_alignments(folder: str | Path) -> Alignments:
    """The alignments in an experiment's folder: ``final.mdl``, ``ali.*.gz`` or ``ali*.ark``; empty ones are left out.

    The model may be of any kind, a GMM too. A ``frame_subsampling_factor`` says how many frames each number stands for.
    Raises ModelLoadError and KaldiFileError for what is missing or damaged.
    """
    folder = Path(folder)
    if not (folder / "final.mdl").is_file():
        raise ModelLoadError(f"{folder}: has no final.mdl: the alignments' own model tells what their numbers mean")
    transitions = read_transition_model(Reader.open(folder / "final.mdl"))
    paths = sorted([*folder.glob("ali*.gz"), *folder.glob("ali*.ark")])
    if not paths:
        raise ModelLoadError(f"{folder}: has no ali.*.gz and no ali*.ark: give the folder of the alignments")
    found: dict[str, NDArray[Any]] = {}
    for path in paths:
        for key, values in Archive(path, "ints").items():
            if key in found:
                raise KaldiFileError(f"{path}: '{key}' is in another archive of {folder} already")
            if len(values):
                found[key] = values
    factor = folder / "frame_subsampling_factor"
    text = factor.read_text("utf-8", "replace").strip() if factor.is_file() else "1"
    if not text.isdecimal() or not 1 <= int(text[:4]) <= 100:
        raise ModelLoadError(f"{factor}: {text[:20]!r} is no number of frames")
    return Alignments(transitions, found, int(text))


def segments_of(alignment: NDArray[Any], transitions: TransitionModel, *, subsampling: int = 1) -> list[Segment]:
    """The phones of an alignment (Kaldi's SplitToPhones); ``subsampling``: frames that one of its numbers stands for.

    Raises ModelLoadError for what is no alignment of this model's.
    """
    tids = np.asarray(alignment, np.int64)
    if not len(tids) or tids.min() < 1 or tids.max() > transitions.num_transition_ids:
        raise ModelLoadError(
            "an alignment is empty or has numbers that its model does not know: is it another model's?"
        )
    phones, states = transitions.phone_of_tid[tids], transitions.state_of_tid[tids]
    loops = transitions.is_self_loop[tids]
    ends = _final(transitions)[tids]
    if _loops_follow(states, loops):  # a phone ends with the loops behind its last transition
        times = np.arange(len(tids))
        last = np.maximum.accumulate(np.where(loops, -1, times))  # the latest transition that is no loop
        ends = (last >= 0) & ends[last] & ~np.append(loops[1:] & (states[1:] == states[:-1]), False)
    segments, begin = [], 0
    for end in (np.flatnonzero(ends) + 1).tolist():
        if (phones[begin:end] != phones[begin]).any():
            raise ModelLoadError("an alignment goes from phone to phone as its model does not: is it another model's?")
        segments.append(Segment(int(phones[begin]), (end - begin) * subsampling))
        begin = end
    if begin < len(tids):  # a recording that was cut
        segments.append(Segment(int(phones[begin]), (len(tids) - begin) * subsampling))
    return segments


def _loops_follow(states: NDArray[Any], loops: NDArray[Any]) -> bool:
    """Whether self-loops stand behind the transition out of their state (Kaldi's "reorder") and not before it."""
    for t in np.flatnonzero(states[1:] != states[:-1]).tolist():
        if loops[t]:
            return True
        if loops[t + 1]:
            return False
    return True


def _final(transitions: TransitionModel) -> NDArray[np.bool_]:
    """Which transition-ids end their phone, [ids + 1]."""
    ending = [False]
    for phone, state in transitions.tuples[:, :2].tolist():
        states = transitions.topology.states_of(phone)
        ending += [to == len(states) - 1 for to, _ in states[state].transitions]
    return np.array(ending)
