"""The digit sample: error rates of float and int8 on strings never heard in training, and one whole process.

    python benchmarks/sample.py --threads 2

Prints WER with counts, the paired difference from float, and the wall time of `quantasr transcribe` on one short file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

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


def main() -> None:
    """Quantize with every recipe, evaluate on every engine, and time the process."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--runs", type=int, default=9, help="of the whole process")
    arguments = options.parse_args()
    utterances = read_manifest(sample.evaluation())
    with tempfile.TemporaryDirectory() as folder:
        artifacts = [
            quantize(sample.model(), Path(folder) / recipe, calibration=sample.calibration(), recipe=recipe, say=say)
            for recipe in ("default", "fast", "fastest")
        ]
        systems = [load_original(str(sample.model()), arguments.threads).transcriber]
        for artifact in artifacts:
            for engine, chosen in candidates(EngineOptions(arguments.threads)):
                systems.append(load(artifact, engine=engine, compute=chosen.compute, threads=arguments.threads))
        show(evaluation_table(evaluate_systems(systems, utterances)))
        parity = Table(title="Frames with the best token of the simulation")
        for column in ("recipe", "engine", "same", "frames"):
            parity.add_column(column)
        for artifact in artifacts:
            for name, row in artifact.parity.items():
                if name.startswith("quantized"):
                    parity.add_row(artifact.name, name, f"{row['same_argmax']:.2%}", str(row["frames"]))
        Console(width=120).print(parity)
        whole_process(artifacts[0].folder, utterances[0].audio, arguments.runs)


def whole_process(artifact: Path, audio: Path, runs: int) -> None:
    """Time `quantasr transcribe ARTIFACT FILE`, start to end; the first run chooses the engine and is shown apart."""
    command = [sys.executable, "-m", "quantasr", "transcribe", str(artifact), str(audio)]
    seconds = []
    for _ in range(runs + 1):
        begin = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - begin)
    low, middle, high = np.percentile(seconds[1:], [0, 50, 100])
    print(
        f"whole process: median {middle:.2f} s of {runs} runs [{low:.2f}, {high:.2f}]; bar 2 s; "
        f"first {seconds[0]:.2f} s"
    )


if __name__ == "__main__":
    main()
