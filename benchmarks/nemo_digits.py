"""The two NeMo models trained on digit strings: error rates of the original, of artifacts and of native int8.

    python benchmarks/nemo_digits.py --threads 2
    python benchmarks/nemo_digits.py out/quartznet.nemo

Prints, for each model, WER with counts on strings never heard in training, and the paired difference from PyTorch.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from quantasr import sample
from quantasr.cli.output import say, show
from quantasr.engines.engine import EngineOptions
from quantasr.engines.selection import candidates
from quantasr.measure.evaluate import evaluate_systems
from quantasr.measure.original import load_original
from quantasr.measure.report import evaluation_table
from quantasr.pipeline import quantize
from quantasr.runtime import load
from quantasr.speech.manifest import read_manifest
from quantasr.speech.transcript import Transcriber

MODELS = Path(__file__).parents[1] / "tests" / "data" / "nemo"


def artifacts(model: Path, folder: Path, threads: int) -> list[Transcriber]:
    """The model quantized with each recipe, on every engine with every compute type that this CPU has."""
    systems: list[Transcriber] = []
    for recipe in ("default", "fast"):
        artifact = quantize(model, folder / recipe, calibration=sample.calibration(), recipe=recipe, say=say)
        for engine, chosen in candidates(EngineOptions(threads)):
            systems.append(load(artifact, engine=engine, compute=chosen.compute, threads=threads))
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
            systems: list[Transcriber] = [load_original(str(model), arguments.threads).transcriber]
            systems += artifacts(model, Path(folder), arguments.threads)
            show(evaluation_table(evaluate_systems(systems, utterances)))


if __name__ == "__main__":
    main()
