"""The files that a decoder is made of, and how an artifact keeps them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import ArtifactError, KaldiFileError, ModelLoadError
from quantasr.kaldi.compile.grammar import unknown_words
from quantasr.speech.lattice.decoder import LatticeDecoder, LatticeOptions

GRAPH_FILES = ("HCLG.fst", "HCLr.fst", "Gr.fst", "words.txt", "disambig_tid.int")
"""What :func:`read_graph` may read of a folder."""

TRANSITIONS, SILENCE, BOUNDARIES = "transitions.npy", "silence.npy", "boundaries.npy"


@dataclass(frozen=True)
class DecodingFiles:
    """A decoding graph on disk with the model's transition-ids; nothing is read before :attr:`decoder` is asked for.

    ``pdf_of_tid`` ``[transition-ids + 1]``: the column of the log-likelihoods of each transition-id. ``grammar``:
    phrases to take instead of ``Gr.fst``, see :func:`~quantasr.speech.lattice.graph.read_graph`; it is not kept in
    artifacts. ``silent`` ``[transition-ids + 1]``: those of silence, where i-vectors leave out what the search takes
    for silence (:mod:`quantasr.speech.lattice.online`). ``boundaries`` ``[transition-ids + 1]``: where words begin and
    end, where that is known (:func:`~quantasr.speech.lattice.align.read_boundaries`).
    """

    files: Mapping[str, Path]
    pdf_of_tid: NDArray[np.int32] = field(compare=False)
    options: LatticeOptions = field(default_factory=LatticeOptions)
    grammar: tuple[str, ...] | None = None
    silent: NDArray[np.bool_] | None = field(default=None, compare=False)
    boundaries: NDArray[np.uint8] | None = field(default=None, compare=False)

    @cached_property
    def decoder(self) -> LatticeDecoder:
        """Read the graph, once. Raises KaldiFileError where it does not fit, MissingExtraError without numba."""
        from quantasr.speech.lattice.graph import read_graph

        folder = next(iter(self.files.values())).parent
        graph, words = read_graph(folder, self.grammar)
        try:
            return LatticeDecoder(graph, self.pdf_of_tid, words, self.options)
        except KaldiFileError as error:
            raise KaldiFileError(f"{folder}: {error}") from None

    @cached_property
    def unknown_words(self) -> tuple[str, ...]:
        """Words of the grammar that the graph's table lacks: they cannot be recognised. Reads the graph."""
        if self.grammar is None or self.decoder.words is None:
            return ()
        return unknown_words(self.grammar, self.decoder.words)

    def to_dict(self) -> dict[str, Any]:
        """What the ``decoding`` of an artifact says of them, JSON-ready."""
        return {"options": self.options.to_dict(), "files": sorted(self.files)}

    def copy_to(self, folder: Path) -> None:
        """Copy the files into an artifact, for :meth:`read`."""
        for name, path in self.files.items():
            shutil.copyfile(path, folder / name)
        np.save(folder / TRANSITIONS, self.pdf_of_tid)
        for name, values in ((SILENCE, self.silent), (BOUNDARIES, self.boundaries)):
            if values is not None:
                np.save(folder / name, values)

    @classmethod
    def read(cls, decoding: Mapping[str, Any], folder: Path) -> DecodingFiles:
        """What :meth:`copy_to` left in ``folder``; raises ArtifactError."""
        try:
            names = list(decoding["files"])
            pdf_of_tid = np.load(folder / TRANSITIONS, allow_pickle=False)
            if not set(names) <= set(GRAPH_FILES) or pdf_of_tid.ndim != 1 or pdf_of_tid.dtype != np.int32:
                raise ValueError("unknown files or transition-ids")
            silent = _of_transitions(folder / SILENCE, np.bool_, len(pdf_of_tid))
            boundaries = _of_transitions(folder / BOUNDARIES, np.uint8, len(pdf_of_tid))
            options = LatticeOptions.from_dict(decoding["options"])
            files = {n: folder / n for n in names}
            return cls(files, pdf_of_tid, options, silent=silent, boundaries=boundaries)
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ArtifactError(f"{folder}: decoding: {error}; was it written by a newer version?") from error


def _of_transitions(path: Path, kind: type[np.generic], count: int) -> NDArray[Any] | None:
    if not path.is_file():
        return None
    found: NDArray[Any] = np.load(path, allow_pickle=False)
    if found.shape != (count,) or found.dtype != kind:
        raise ValueError(f"{path.name} and {TRANSITIONS} do not go together")
    return found


def find_graph(folder: Path) -> dict[str, Path]:
    """The files of a graph in ``folder``; raises ModelLoadError where there is none."""
    found = {name: folder / name for name in GRAPH_FILES if (folder / name).is_file()}
    if "HCLG.fst" not in found and not {"HCLr.fst", "Gr.fst"} <= set(found):
        raise ModelLoadError(f"{folder}: has neither an HCLG.fst nor an HCLr.fst with a Gr.fst")
    return found
