"""Kaldi's own search, ``latgen-faster-mapped``, where KALDI_ROOT has it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import KaldiFileError, ModelLoadError
from quantasr.kaldi.archive import archive_writer
from quantasr.kaldi.fst import SymbolTable, read_words
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


def read_lattice(lines: Iterable[str], where: str, acoustic_scale: float, words: SymbolTable | None) -> Lattice | None:
    """The first lattice of a text archive that is not determinized; None where there is none.

    A line after the key is an arc (state, next state, transition-id, word, ``graph,acoustic`` costs unless both are
    0) or a final state (with costs, unless they are 0). Raises KaldiFileError, naming the line.
    """
    arcs: list[tuple[int, int, int, int]] = []
    costs: list[tuple[float, float]] = []
    finals: dict[int, float] = {}
    rows = iter(enumerate(lines, 1))
    if next(rows, None) is None:
        return None
    for number, line in rows:
        parts = line.split()
        if not parts:
            break
        try:
            if len(parts) <= 2:
                state, pair = int(parts[0]), _pair(parts[1:])
                finals[state] = sum(pair)
            elif len(parts) in (4, 5):
                source, target, tid, word = (int(part) for part in parts[:4])
                arcs.append((source, target, tid, word))
                costs.append(_pair(parts[4:]))
            else:
                raise ValueError("4 or 5 columns are those of an arc")
            if min(int(part) for part in parts[: 4 if len(parts) > 2 else 1]) < 0:
                raise ValueError("a number below 0")
        except ValueError as error:
            raise KaldiFileError(f"{where}: line {number}: no arc of a lattice: {error}") from None
    if not arcs:
        return None
    return _lattice(np.array(arcs, np.int64), np.array(costs, np.float32), finals, where, acoustic_scale, words)


def _pair(parts: list[str]) -> tuple[float, float]:
    if not parts:
        return 0.0, 0.0
    graph, acoustic = (float(part) for part in parts[0].split(","))
    return graph, acoustic


def _lattice(
    arcs: NDArray[np.int64],
    costs: NDArray[np.float32],
    finals: dict[int, float],
    where: str,
    acoustic_scale: float,
    words: SymbolTable | None,
) -> Lattice:
    """States numbered in topological order (Kahn 1962), arcs sorted by their sources."""
    following: dict[int, list[int]] = {}
    waits: dict[int, int] = {}
    for i, (source, target) in enumerate(arcs[:, :2].tolist()):
        following.setdefault(source, []).append(i)
        waits[target] = waits.get(target, 0) + 1
    start = int(arcs[0, 0])
    if waits.get(start):
        raise KaldiFileError(f"{where}: the lattice goes back to its start")
    frame, ready = {start: 0}, [start]
    order: dict[int, int] = {}
    while ready:
        state = ready.pop()
        order[state] = len(order)
        for i in following.get(state, ()):
            target = int(arcs[i, 1])
            frame[target] = frame[state] + int(arcs[i, 2] > 0)
            waits[target] -= 1
            if not waits[target]:
                ready.append(target)
    if len(order) != len({*waits, start}) or not set(finals) <= set(order) or not finals:
        raise KaldiFileError(f"{where}: the lattice has a loop, or states that no path passes")
    source, target = (np.array([order[int(s)] for s in arcs[:, k]], np.int32) for k in (0, 1))
    sort = np.argsort(source, kind="stable")
    final_cost, frames = np.full(len(order), np.inf, np.float32), np.zeros(len(order), np.int32)
    for state, at in order.items():
        frames[at] = frame[state]
        final_cost[at] = finals.get(state, np.inf)
    return Lattice(
        source=source[sort],
        target=target[sort],
        transition_id=arcs[sort, 2].astype(np.int32),
        word=arcs[sort, 3].astype(np.int32),
        graph_cost=np.ascontiguousarray(costs[sort, 0]),
        acoustic_cost=np.ascontiguousarray(costs[sort, 1]),
        final_cost=final_cost,
        frame=frames,
        frames=int(frames.max()),
        acoustic_scale=acoustic_scale,
        words=words,
    )


def _arguments(options: LatticeOptions) -> list[str]:
    values = {name: getattr(options, name) for name in _OPTIONS}
    if values["max_active"] == ANY:
        del values["max_active"]
    named = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    return [*named, "--determinize-lattice=false", "--allow-partial=true"]
