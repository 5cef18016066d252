"""The NeMo models trained on digit strings: error rates of the original, of artifacts and of native int8.

    python benchmarks/nemo_digits.py --threads 2
    python benchmarks/nemo_digits.py out/quartznet.nemo

Prints, for each model, WER with counts on strings never heard in training, and the paired difference from PyTorch;
then the largest difference beside its bar. Native int8 takes every layer that its backend has a kernel for, also where
float would be faster: the most that can cost accuracy. Transducers have no native int8.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from quantasr import sample
from quantasr.cli.output import say, show
from quantasr.engines import EngineOptions
from quantasr.engines.selection import candidates
from quantasr.engines.torch_native.backends import usable_backends
from quantasr.measure.evaluate import evaluate_systems
from quantasr.measure.original import load_original
from quantasr.measure.report import evaluation_table
from quantasr.pipeline import quantize
from quantasr.runtime import load
from quantasr.sources import CtcModel, load_model
from quantasr.speech.manifest import read_manifest
from quantasr.speech.transcript import Transcriber

MODELS = Path(__file__).parents[1] / "tests" / "data" / "nemo"
RECIPES = ("default", "fast")
BAR = 0.3  # points of WER


def artifacts(model: Path, folder: Path, threads: int) -> list[Transcriber]:
    """The model quantized with each recipe, on every engine with every compute type that this CPU has."""
    systems: list[Transcriber] = []
    for recipe in RECIPES:
        artifact = quantize(model, folder / recipe, calibration=sample.calibration(), recipe=recipe, say=say)
        for engine, chosen in candidates(EngineOptions(threads)):
            systems.append(load(artifact, engine=engine, compute=chosen.compute, threads=threads))
    return systems


def native(model: Path, folder: Path, threads: int) -> list[Transcriber]:
    """The model in PyTorch's own int8 with each recipe, on every backend that this build of PyTorch has."""
    systems: list[Transcriber] = []
    if not isinstance(load_model(model), CtcModel):
        return systems
    for recipe in RECIPES:
        for backend in usable_backends():
            artifact = quantize(
                model,
                folder / f"{recipe}-{backend}",
                calibration=sample.calibration(),
                recipe=recipe,
                engine=f"torch:{backend}",
                all_layers=True,
                say=say,
            )
            systems.append(load(artifact, threads=threads))
    return systems


def main() -> None:
    """Quantize in every way, and evaluate all of them in one interleaved run for each model."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("models", nargs="*", type=Path, default=sorted(MODELS.glob("*.nemo")), help=".nemo files")
    options.add_argument("--threads", type=int, default=2)
    arguments = options.parse_args()
    utterances = read_manifest(sample.evaluation())
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            original = load_original(str(model), arguments.threads).transcriber
            graphs = artifacts(model, Path(folder), arguments.threads)
            systems = [original, *graphs, *native(model, Path(folder), arguments.threads)]
            evaluation = evaluate_systems(systems, utterances)
        show(evaluation_table(evaluation))
        points = [100 * pair.difference for pair in evaluation.against_first()]
        for kind, found in (("artifact", points[: len(graphs)]), ("native int8", points[len(graphs) :])):
            if found:
                print(f"{model.stem}: worst {kind}: WER {max(found):+.2f} points; bar {BAR} points")


if __name__ == "__main__":
    main()
