"""What quantization gains in time on this machine: the quantized graph against the float one, each at its fastest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantasr.artifact import Artifact
from quantasr.engines import ENGINES, load_engine
from quantasr.engines.engine import Engine
from quantasr.engines.feeds import for_part, options_for
from quantasr.engines.selection import System, candidates, load_of, measure
from quantasr.errors import EngineError

_TIE = 1.03  # measured in a second or two on a machine that does other things as well


@dataclass(frozen=True)
class Gain:
    """Time of the artifact as a part of the float graph's, each on the engine and compute type that runs it fastest."""

    ratio: float
    artifact: System
    float: System

    @property
    def slower(self) -> str:
        """One line if the artifact is slower than float, empty if it is not."""
        if self.ratio <= _TIE:
            return ""
        return (
            f"slower than float: {self.ratio:.2f} of the time ({' '.join(self.artifact)} against float on "
            f"{' '.join(self.float)}); the recipes fp16 and bf16 only halve the weights"
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "time_to_float": round(self.ratio, 3),
            "fastest": " ".join(self.artifact),
            "fastest_float": " ".join(self.float),
            "slower_than_float": self.slower,
        }


def gain(artifact: Artifact, floats: Path) -> Gain:
    """Time the artifact and the float graphs in the folder ``floats``, on every engine that the recipe allows.

    Interleaved in one run; of a recogniser in parts each is weighed with its work in 10 s of speech, and the systems
    named are those of the part that takes longest. Raises :class:`EngineError` when no engine takes one of them.
    """
    best = {part: _best(artifact, part, graph, floats / graph.name) for part, graph in artifact.graphs.items()}
    rounds = {part: load_of(artifact, part).rounds for part in best}
    seconds = {
        label: {part: rounds[part] * found[label][1] for part, found in best.items()} for label in ("artifact", "float")
    }
    longest = max(best, key=lambda part: seconds["float"][part])
    whole = {label: sum(times.values()) for label, times in seconds.items()}
    return Gain(whole["artifact"] / whole["float"], best[longest]["artifact"][0], best[longest]["float"][0])


def _best(artifact: Artifact, part: str, quantized: Path, original: Path) -> dict[str, tuple[System, float]]:
    """The fastest engine, and its seconds for a round, of a part as ``artifact`` and as ``float``."""
    graphs = {"artifact": quantized, "float": original}
    engines: dict[System, Engine] = {}
    wanted = for_part(options_for(artifact), artifact, part)
    for label, graph in graphs.items():
        for name, options in candidates(wanted):
            if artifact.engine not in ("auto", name):
                continue
            try:
                engines[f"{label} {name}", options.compute] = load_engine(name, graph, options)
            except EngineError:
                continue  # parity has already said which engines take the graph
    times = measure(load_of(artifact, part), engines)
    best: dict[str, tuple[System, float]] = {}
    for label in graphs:
        found = {system: seconds for system, seconds in times.items() if system[0].startswith(f"{label} ")}
        if not found:
            raise EngineError(f"{graphs[label]}: none of {', '.join(ENGINES)} can run it in {artifact.compute}")
        (name, compute), seconds = min(found.items(), key=lambda row: row[1])
        best[label] = (name.split(" ")[1], compute), seconds
    return best
