"""What quantization gains in time on this machine: the quantized graph against the float one, each at its fastest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantasr.artifact import Artifact
from quantasr.engines import ENGINES, load_engine
from quantasr.engines.engine import Engine, EngineOptions
from quantasr.engines.selection import System, candidates, measure
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


def gain(artifact: Artifact, float_graph: Path) -> Gain:
    """Time both graphs on every engine that the recipe allows, interleaved in one run.

    Raises :class:`EngineError` when no engine takes one of them.
    """
    graphs = {"artifact": artifact.graph, "float": float_graph}
    engines: dict[System, Engine] = {}
    for label, graph in graphs.items():
        for name, options in candidates(EngineOptions(0, artifact.compute, artifact.round_up)):
            if artifact.engine not in ("auto", name):
                continue
            try:
                engines[f"{label} {name}", options.compute] = load_engine(name, graph, options)
            except EngineError:
                continue  # parity has already said which engines take the graph
    times = measure(artifact, engines)
    best: dict[str, System] = {}
    for label in graphs:
        found = {system: seconds for system, seconds in times.items() if system[0].startswith(f"{label} ")}
        if not found:
            raise EngineError(f"{graphs[label]}: none of {', '.join(ENGINES)} can run it in {artifact.compute}")
        best[label] = min(found, key=lambda system: found[system])
    named = {label: (name.split(" ")[1], compute) for label, (name, compute) in best.items()}
    return Gain(times[best["artifact"]] / times[best["float"]], named["artifact"], named["float"])
