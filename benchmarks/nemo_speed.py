"""NeMo's CTC models at their real sizes, random weights: speed of artifacts and of native int8 beside everyone else's.

    python benchmarks/nemo_speed.py --threads 2 --rounds 15
    python benchmarks/nemo_speed.py quartznet-15x5 conformer-ctc-small --no-native

For each model, prints a table of all systems, interleaved in one run on 10 s of speech, and then each figure beside its
bar. Every system hears the same features, made by the same code.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from pathlib import Path
from typing import Any

import nemo_models
from compare import RATE, Figure, calibration_speech, engines_here, peer_systems, report, ten_seconds

from quantasr.artifact import Artifact
from quantasr.cli.output import say
from quantasr.engines import TORCH_BACKENDS
from quantasr.errors import EngineError
from quantasr.export import export_float, save_graph
from quantasr.measure.latency import Timing, ratio, time_interleaved
from quantasr.measure.original import load_original
from quantasr.pipeline import quantize
from quantasr.runtime import load
from quantasr.sources import CtcModel, load_model
from quantasr.speech.manifest import Utterance
from quantasr.speech.transcript import Transcriber

RECIPES = ("default", "fast")
PEERS = ("OpenVINO bf16", "NNCF int8, OpenVINO bf16", "NNCF int8, OpenVINO fp32", "ORT dynamic int8", "ORT static int8")
NNCF = PEERS[1:3]
FLOATS = ("ORT fp32", "OpenVINO fp32", "our float graph, OpenVINO fp32")


def framework_graph(model: CtcModel, path: Path) -> Path:
    """The float graph of the model as NeMo computes it, which is what users of other quantizers have."""
    rewrite, model.rewrite = model.rewrite, None
    encoder: Any = model.module.get_submodule("encoder")
    if hasattr(encoder, "update_max_sequence_length"):
        # NeMo's masks come from a buffer, which a trace freezes at its length.
        encoder.update_max_sequence_length(seq_length=4999, device="cpu")
    save_graph(export_float(model), path)
    model.rewrite = rewrite
    return path


def peers_of(model: CtcModel, utterances: list[Utterance], folder: Path, threads: int) -> dict[str, Transcriber]:
    """What other tools make of the model, at their defaults, on their engines."""
    graph = framework_graph(model, folder / "float.onnx")
    inputs = []
    for utterance in utterances:
        features, lengths = model.inputs([utterance.load(RATE)])
        inputs.append({"features": features.numpy(), "lengths": lengths.numpy()})
    return peer_systems(model, graph, inputs, folder, threads)


def ours(source: Path, utterances: list[Utterance], folder: Path, threads: int) -> dict[str, Transcriber]:
    """Our artifacts, on every engine with every compute type."""
    systems: dict[str, Transcriber] = {}
    for recipe in RECIPES:
        artifact = quantize(source, folder / recipe, calibration=utterances, recipe=recipe, say=say)
        for engine, compute in engines_here():
            label = f"artifact {recipe}, {engine} {compute}"
            systems[label] = load(artifact, engine=engine, compute=compute, threads=threads, chunk_seconds=0)
    return systems


def native(source: Path, utterances: list[Utterance], folder: Path, threads: int) -> dict[str, Transcriber]:
    """PyTorch's own int8 on each of its backends; those that this build lacks are named and left out."""
    systems: dict[str, Transcriber] = {}
    for backend in TORCH_BACKENDS:
        place = folder / f"torch-{backend}"
        try:
            quantize(source, place, calibration=utterances, recipe="fast", engine=f"torch:{backend}", say=say)
        except EngineError as error:
            say(str(error))
            continue
        systems[f"native {backend}"] = load(place, threads=threads, chunk_seconds=0)
    return systems


def figures(name: str, timings: dict[str, Timing], parity: float) -> list[Figure]:
    """Every bar."""

    def best(labels: Any) -> tuple[str, Timing]:
        label = min((label for label in labels if label in timings), key=lambda label: timings[label].p50)
        return label, timings[label]

    label, artifact = best(label for label in timings if label.startswith("artifact"))
    bars = [
        ("best artifact ÷ best float engine (fp32)", best(FLOATS), 1.0),
        ("best artifact ÷ best of the other int8 and bf16", best(PEERS), 1.0),
    ]
    if name == "conformer-ctc-small":
        bars.append(("best artifact ÷ NNCF int8", best(NNCF), 0.75))
    if name == "quartznet-15x5":
        bars.append(("best artifact ÷ PyTorch fp32", best(["PyTorch fp32"]), 0.12))
    rows = []
    for title, (other, base), bar in bars:
        found = ratio(artifact, base)
        rows.append(Figure(title, found.median, bar, note=f"{found} {label} ÷ {other}"))
    natives = [label for label in timings if label.startswith("native")]
    if natives:
        label, timing = best(natives)
        found = ratio(timing, timings["PyTorch fp32"])
        bar = 0.20 if name == "quartznet-15x5" else 1.0
        rows.append(Figure("best native int8 ÷ PyTorch fp32", found.median, bar, note=f"{found} {label}"))
    rows.append(Figure("float graph − NeMo, log-probs", parity, 1e-3))
    return rows


def measure(name: str, arguments: argparse.Namespace, folder: Path) -> None:
    """Build one model in every way, time, and print."""
    say(name)
    folder.mkdir(parents=True)
    source = nemo_models.save(name, folder)
    utterances = calibration_speech(folder, arguments.calibration)
    original = load_original(str(source), arguments.threads)
    systems: dict[str, Transcriber] = {"PyTorch fp32": original.transcriber}
    systems |= peers_of(load_model(source), utterances, folder, arguments.threads)
    systems |= ours(source, utterances, folder, arguments.threads)
    if arguments.native:
        systems |= native(source, utterances, folder, arguments.threads)
    gc.collect()
    say(f"timing {len(systems)} systems")
    found = time_interleaved(list(systems.values()), ten_seconds(), rounds=arguments.rounds)
    timings = dict(zip(systems, found, strict=True))
    parity = Artifact.load(folder / "default").parity["float"]["largest_difference"]
    report(f"{name}, 10 s, batch 1, {arguments.threads} threads", timings, figures(name, timings, parity))


def main() -> None:
    """Measure each model."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(nemo_models.MODELS)}; all")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--calibration", type=int, default=8, help="utterances")
    options.add_argument("--native", action=argparse.BooleanOptionalAction, default=True, help="PyTorch's own int8 too")
    options.add_argument("--work", type=Path, help="keep what is built in this new folder")
    arguments = options.parse_args()
    unknown = set(arguments.models) - set(nemo_models.MODELS)
    if unknown:
        options.error(f"unknown model {sorted(unknown)[0]}: choose from {', '.join(nemo_models.MODELS)}")
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.models or nemo_models.MODELS:
            measure(name, arguments, (arguments.work or Path(scratch)) / name)


if __name__ == "__main__":
    main()
