"""Kaldi's own search, ``latgen-faster-mapped``, where KALDI_ROOT has it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import ModelLoadError
from quantasr.kaldi.archive import archive_writer
from quantasr.kaldi.fst import SymbolTable, read_words
from quantasr.speech.lattice.archives import read_lattice
from quantasr.speech.lattice.decoder import ANY, LatticeOptions
from quantasr.speech.lattice.files import DecodingFiles
from quantasr.speech.lattice.lattice import Lattice

PROGRAM = "src/bin/latgen-faster-mapped"
_OPTIONS = ("acoustic_scale", "beam", "lattice_beam", "beam_delta", "max_active", "min_active", "prune_interval")


class LatgenDecoder:
    """Log-likelihoods [frames, pdfs] to a ``Lattice``, as :class:`LatticeDecoder` does, by Kaldi's own program.

    ``model``: the final.mdl whose transition-ids ``files``, an HCLG.fst, has. The program is started, and reads the
    graph, for each recording.
    """

    def __init__(self, model: Path, files: DecodingFiles) -> None:
        """Raises ModelLoadError where there is no program, no model, or a graph that Kaldi's program cannot take."""
        self.program, self.model = find_program(), model
        if not model.is_file():
            raise ModelLoadError(f"{model}: no such file: give the final.mdl that the graph was made for")
        if "HCLG.fst" not in files.files:
            raise ModelLoadError(f"{self.program}: takes an HCLG.fst, and not HCLr.fst with Gr.fst")
        self.graph, self.options = files.files["HCLG.fst"], files.options
        self._files = files

    @cached_property
    def words(self) -> SymbolTable | None:
        """The words of the graph: those of words.txt, or those that it carries."""
        listed = self._files.files.get("words.txt")
        return self._files.decoder.words if listed is None else read_words(listed)

    def __call__(self, logprobs: NDArray[np.float32]) -> Lattice:
        """The lattice of one recording. Raises ModelLoadError with what the program said when it failed."""
        with tempfile.TemporaryDirectory(prefix="quantasr-") as folder:
            scores = Path(folder) / "loglikes.ark"
            with archive_writer(scores) as put:
                put("utterance", np.ascontiguousarray(logprobs, np.float32))
            done = subprocess.run(
                [self.program, *_arguments(self.options), self.model, self.graph, f"ark:{scores}", "ark,t:-"],
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
        said = done.stderr.strip()
        if done.returncode:
            raise ModelLoadError(f"{self.program}: failed with {done.returncode}: {said[-300:] or 'without a word'}")
        lattice = read_lattice(done.stdout.splitlines(), str(self.program), self.options.acoustic_scale, self.words)
        if lattice is None:
            return Lattice.empty(len(logprobs), self.words)
        if lattice.frames != len(logprobs):
            raise ModelLoadError(f"{self.program}: a lattice of {lattice.frames} frames came of {len(logprobs)}")
        return replace(lattice, reached_final="partial output" not in said)


def find_program() -> Path:
    """``latgen-faster-mapped`` of KALDI_ROOT; raises ModelLoadError."""
    root = os.environ.get("KALDI_ROOT")
    if not root:
        raise ModelLoadError("KALDI_ROOT is not set: let it name a folder in which Kaldi was built")
    program = Path(root) / PROGRAM
    if not os.access(program, os.X_OK):
        raise ModelLoadError(
            f"{program}: is not there or cannot be run: build Kaldi, or let KALDI_ROOT name where it is"
        )
    return program


def _arguments(options: LatticeOptions) -> list[str]:
    values = {name: getattr(options, name) for name in _OPTIONS}
    if values["max_active"] == ANY:
        del values["max_active"]
    named = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    return [*named, "--determinize-lattice=false", "--allow-partial=true"]
