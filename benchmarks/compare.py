"""What the benchmarks of speed share: speech, systems, figures beside their bars, and the two tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peers
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from quantasr.cli.output import say
from quantasr.engines import EngineOptions, load_engine
from quantasr.engines.selection import candidates
from quantasr.export import export_float, save_graph
from quantasr.measure.latency import Timing, ratio
from quantasr.runtime import EngineAcousticModel
from quantasr.sources import CtcModel
from quantasr.speech.ctc import CtcTranscriber
from quantasr.speech.manifest import Utterance, read_manifest, write_manifest
from quantasr.speech.transcript import Transcriber, Waveform

SHARED = Path(__file__).parents[2] / "shared" / "data"
RATE = 16000


@dataclass(frozen=True)
class Figure:
    """A measured figure and the bar that it must reach."""

    name: str
    value: float
    bar: float
    at_most: bool = True
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the bar is reached."""
        return self.value <= self.bar if self.at_most else self.value >= self.bar


def calibration_speech(folder: Path, count: int) -> list[Utterance]:
    """Real speech where the shared data is there; noise, and a word about it, where it is not."""
    manifest = SHARED / "speechocean762" / "train.jsonl"
    if manifest.is_file():
        return read_manifest(manifest)[:count]
    import soundfile

    say(f"{manifest} is missing: calibrating on noise, so parity figures mean little")
    rng = np.random.default_rng(1)
    rows = []
    for i in range(count):
        soundfile.write(folder / f"noise{i}.wav", rng.normal(0, 0.1, 4 * RATE), RATE)
        rows.append(Utterance(f"noise{i}", folder / f"noise{i}.wav", None))
    write_manifest(rows, folder / "noise.jsonl")
    return read_manifest(folder / "noise.jsonl")


def ten_seconds() -> Waveform:
    """10 s of real speech, or noise where the shared data is missing."""
    manifest = SHARED / "speechocean762" / "test.jsonl"
    if not manifest.is_file():
        return np.random.default_rng(0).normal(0, 0.1, 10 * RATE).astype(np.float32)
    waves = [u.load(RATE) for u in read_manifest(manifest)[:5]]
    return np.concatenate(waves)[: 10 * RATE]


def on_engine(model: CtcModel, graph: Path, engine: str, compute: str, threads: int, label: str) -> CtcTranscriber:
    """Any graph of this model on an engine, as a recogniser."""
    # As its own users run it: fast also where this CPU then computes it wrongly.
    options = EngineOptions(threads, compute, exact_products=False)
    acoustic = EngineAcousticModel(load_engine(engine, graph, options), model.padded_batches)
    return model.transcriber(acoustic, name=label, chunk_seconds=0)


def engines_here() -> list[tuple[str, str]]:
    """Every engine with every compute type that this CPU has: bf16 only where it has the instructions."""
    return [(name, options.compute) for name, options in candidates(EngineOptions())]


def peer_systems(
    model: CtcModel, graph: Path, inputs: list[dict[str, NDArray[Any]]], folder: Path, threads: int
) -> dict[str, Transcriber]:
    """What other tools make of ``graph``, the model as its framework computes it, at their defaults.

    ``inputs`` are calibrated on. NNCF gets our float graph as well.
    """
    say("NNCF int8; ONNX Runtime dynamic and static int8")
    graphs = {
        "ORT fp32": (graph, "onnxruntime", "fp32"),
        "OpenVINO fp32": (graph, "openvino", "fp32"),
        "OpenVINO bf16": (graph, "openvino", "bf16"),
        "ORT dynamic int8": (peers.onnxruntime_dynamic(graph, folder / "dynamic.onnx"), "onnxruntime", "fp32"),
        "ORT static int8": (peers.onnxruntime_static(graph, inputs[:4], folder / "static.onnx"), "onnxruntime", "fp32"),
    }
    nncf = peers.nncf_int8(graph, inputs, folder / "nncf.xml")
    ours = folder / "our-float.onnx"
    save_graph(export_float(model), ours)
    nncf_ours = peers.nncf_int8(ours, inputs, folder / "nncf-ours.xml")
    for compute in ("fp32", "bf16"):
        graphs[f"our float graph, OpenVINO {compute}"] = (ours, "openvino", compute)
        graphs[f"NNCF int8, OpenVINO {compute}"] = (nncf, "openvino", compute)
        graphs[f"NNCF int8 of our float graph, OpenVINO {compute}"] = (nncf_ours, "openvino", compute)
    return {
        label: on_engine(model, path, engine, compute, threads, label)
        for label, (path, engine, compute) in graphs.items()
        if (engine, compute) in engines_here()
    }


def size_of(graph: Path) -> int:
    """Bytes of a graph and of the weights beside it."""
    return sum(path.stat().st_size for path in graph.parent.glob(f"{graph.name}*"))


def report(title: str, timings: dict[str, Timing], rows: list[Figure]) -> None:
    """Print every system, slowest first, beside PyTorch fp32; then each figure beside its bar."""
    base: Any = timings["PyTorch fp32"]
    table = Table(title=f"{title}, {len(base.seconds)} turns interleaved")
    for column in ("system", "p50", "p95", "RTF", "time ÷ PyTorch fp32 [quartiles]"):
        table.add_column(column, justify="left" if column == "system" else "right")
    for name, timing in sorted(timings.items(), key=lambda row: -row[1].p50):
        against = str(ratio(timing, base)).replace("[", r"\[")
        table.add_row(name, f"{timing.p50 * 1e3:.0f} ms", f"{timing.p95 * 1e3:.0f} ms", f"{timing.rtf:.4f}", against)
    bars = Table(title="Bars")
    for column in ("figure", "measured", "bar", "met", "note"):
        bars.add_column(column)
    for row in rows:
        sign = "≤" if row.at_most else "≥"
        bars.add_row(
            row.name,
            f"{row.value:.4g}",
            f"{sign} {row.bar:g}",
            "yes" if row.met else "NO",
            row.note.replace("[", r"\["),
        )
    console = Console(width=150)
    console.print(table)
    console.print(bars)
