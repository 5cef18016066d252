"""Lattices of recordings as Kaldi's archives, for its ``lattice-*`` programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from quantasr.errors import AudioError, ManifestError
from quantasr.progress import track
from quantasr.speech.lattice.archives import lattice_writer
from quantasr.speech.lattice.determinize import determinize
from quantasr.speech.lattice.transcriber import LatticeTranscriber
from quantasr.speech.loglikes import ArchiveOutput
from quantasr.speech.manifest import Utterance


@dataclass(frozen=True)
class WrittenLattices:
    """What was written: recordings, arcs; and why others were not, by their ids: unreadable, or without any path."""

    utterances: int
    arcs: int
    failures: Mapping[str, str] = field(default_factory=dict)
    empty: Mapping[str, str] = field(default_factory=dict)


def write_lattices(
    recogniser: LatticeTranscriber,
    utterances: Sequence[Utterance],
    out: ArchiveOutput,
    *,
    raw: bool = False,
    progress: bool = False,
) -> WrittenLattices:
    """Write the lattice of each recording, searched whole, under its id; nothing is left behind on an error.

    Costs are without acoustic scale. ``raw``: not determinized. A recording that cannot be read is left out;
    AudioError when all cannot.
    """
    failures: dict[str, str] = {}
    empty: dict[str, str] = {}
    count = arcs = 0
    with lattice_writer(out.ark, out.scp, binary=out.binary) as put:
        for utterance in track(utterances, "searching", total=len(utterances), show=progress):
            if utterance.id.split() != [utterance.id]:
                raise ManifestError(f"{utterance.source or utterance.audio}: the id '{utterance.id}' has a space")
            try:
                wave = utterance.load(recogniser.sample_rate)
                (lattice,) = recogniser.lattices([wave])
            except AudioError as error:
                failures[utterance.id] = str(error)
                continue
            found = lattice if raw else determinize(lattice, recogniser.options.lattice_beam)
            if not found.states:
                empty[utterance.id] = f"{utterance.audio}: no path of the graph is left: widen the beam"
                continue
            put(utterance.id, found)
            count, arcs = count + 1, arcs + len(found.source)
        if len(failures) == len(utterances):
            raise AudioError(f"none of {len(utterances)} recordings can be read: {next(iter(failures.values()), '')}")
    return WrittenLattices(count, arcs, failures, empty)
