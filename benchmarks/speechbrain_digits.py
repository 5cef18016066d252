"""The SpeechBrain models trained on digit strings: error rates of SpeechBrain, of artifacts and of native int8.

    python benchmarks/speechbrain_digits.py --threads 2
    python benchmarks/speechbrain_digits.py tests/data/speechbrain/crdnn_ctc --json

Prints, for each model, WER with counts on strings never heard in training, and the paired difference from SpeechBrain's
own transcripts (``transcribe_batch``, a recording at a time); then the largest difference beside its bar, and whether
SpeechBrain counts as many errors in each system's hypotheses as we do. Native int8 is
measured as users get it (the fastest backend, layers that gain time), and once more on every backend with every layer
that it has a kernel for: the most that can cost accuracy.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from quantasr import sample
from quantasr.cli.output import say, show, write_json
from quantasr.engines import EngineOptions
from quantasr.engines.selection import candidates
from quantasr.engines.torch_native.backends import usable_backends
from quantasr.measure.evaluate import EvalResult, Evaluation, evaluate_systems
from quantasr.measure.report import evaluation_table
from quantasr.pipeline import quantize
from quantasr.recipes import builtin_names
from quantasr.runtime import load
from quantasr.sources import CtcModel, load_model
from quantasr.sources.speechbrain.interface import open_interface
from quantasr.speech.attention import AttentionTranscriber
from quantasr.speech.manifest import read_manifest
from quantasr.speech.transcript import Transcriber, Waveform

MODELS = Path(__file__).parents[1] / "tests" / "data" / "speechbrain"
RECIPES = ("default", "fast", "published")  # as far as the model's family has them
BAR = 0.3  # points of WER
SEARCHED_BAR = 0.5  # of native int8 with an attention decoder


def speechbrain_itself(folder: Path) -> Transcriber:
    """The model as SpeechBrain runs it, with none of our code between the samples and the text."""
    asr = open_interface(str(folder), revision=None, trust=True)
    whole = torch.ones(1)

    def recognise(wave: Waveform) -> str:
        return str(asr.transcribe_batch(torch.from_numpy(wave)[None], whole)[0][0])

    rate = asr.audio_normalizer.sample_rate
    return AttentionTranscriber(
        recognise, name=f"{folder.name} [SpeechBrain]", sample_rate=rate, min_samples=0, chunk_seconds=0
    )


def artifacts(folder: Path, out: Path, recipes: Sequence[str], threads: int) -> list[Transcriber]:
    """The model quantized with each recipe, on every engine with every compute type that this CPU has."""
    systems: list[Transcriber] = []
    for recipe in recipes:
        artifact = quantize(folder, out / recipe, calibration=sample.calibration(), recipe=recipe, trust=True, say=say)
        for engine, chosen in candidates(EngineOptions(threads)):
            systems.append(load(artifact, engine=engine, compute=chosen.compute, threads=threads))
    return systems


def native(
    folder: Path, out: Path, recipes: Sequence[str], threads: int, backends: Sequence[str] | None = None
) -> list[Transcriber]:
    """The model in PyTorch's own int8 with each recipe: every layer on each of ``backends``, or as users get it."""
    systems: list[Transcriber] = []
    for recipe, backend in product(recipes, backends or ["auto"]):
        artifact = quantize(
            folder,
            out / f"{recipe}-{backend}",
            calibration=sample.calibration(),
            recipe=recipe,
            engine=f"torch:{backend}",
            all_layers=backends is not None,
            trust=True,
            say=say,
        )
        systems.append(load(artifact, threads=threads, trust=True))
    return systems


def speechbrain_errors(result: EvalResult) -> tuple[int, float]:
    """Errors and WER in percent that SpeechBrain counts in the same hypotheses."""
    from speechbrain.utils.metric_stats import ErrorRateStats

    stats = ErrorRateStats()
    ids = [utterance.id for utterance in result.utterances]
    stats.append(ids, [h.split() for h in result.hypotheses], [r.split() for r in result.references])
    summary = stats.summarize()
    return int(summary["num_edits"]), float(summary["WER"])


def measure(folder: Path, recipes: Sequence[str], threads: int, limit: int | None) -> dict[str, Any]:
    """Quantize in every way and evaluate all of them in one interleaved run; prints the table and what it shows."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as made:
        model = load_model(folder, trust=True)
        known = [recipe for recipe in recipes if f"{model.family}-{recipe}" in builtin_names()]
        ctc = isinstance(model, CtcModel)
        systems = {"SpeechBrain": [speechbrain_itself(folder)]}
        systems["float"] = [model.transcriber(name=f"{model.name} [PyTorch fp32]", chunk_seconds=0)]
        systems["artifact"] = artifacts(folder, Path(made) / "graphs", known, threads)
        systems["native int8"] = native(folder, Path(made) / "native", known, threads)
        everywhere = native(folder, Path(made) / "everywhere", known, threads, usable_backends())
        systems["native int8, every layer on every backend"] = everywhere
        kinds = [kind for kind, found in systems.items() for _ in found]
        utterances = read_manifest(sample.evaluation())
        evaluation = evaluate_systems([s for found in systems.values() for s in found], utterances, limit=limit)
    show(evaluation_table(evaluation))
    return report(folder.name, evaluation, kinds, BAR if ctc else SEARCHED_BAR)


def report(name: str, evaluation: Evaluation, kinds: list[str], bar: float) -> dict[str, Any]:
    """Print the verdicts of one model, whose native int8 may lose ``bar`` points; returns its figures for programs."""
    points = [0.0, *(100 * pair.difference for pair in evaluation.against_first())]
    for kind in dict.fromkeys(kinds[1:]):
        worst = max(p for p, k in zip(points, kinds, strict=True) if k == kind)
        against = "" if kind == "float" else f"; bar {BAR if kind == 'artifact' else bar} points"
        print(f"{name}: worst {kind}: WER {worst:+.2f} points{against}")
    rows, equal = [], 0
    for result, kind, point in zip(evaluation.results, kinds, points, strict=True):
        ours, (edits, theirs) = result.wer, speechbrain_errors(result)
        same = ours.counts.errors == edits and math.isclose(100 * ours.rate, theirs)
        equal += same
        if not same:
            print(f"{result.system}: we count {ours.counts.errors} errors, SpeechBrain {edits}")
        rows.append({"kind": kind, "points": point, "speechbrain_wer": theirs, **result.to_dict()})
    print(f"{name}: SpeechBrain's ErrorRateStats counts as many errors as we in {equal} of {len(rows)} systems\n")
    return {"model": name, "bar": bar, "systems": rows}


def main() -> None:
    """Measure each model."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folders = sorted(path.parent for path in MODELS.glob("*/hyperparams.yaml"))
    options.add_argument("models", nargs="*", type=Path, default=folders, help="SpeechBrain folders")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--limit", type=int, help="only the first so many strings")
    options.add_argument("--recipes", nargs="*", default=RECIPES, help="built-in recipes (default: all three)")
    options.add_argument("--json", action="store_true", help="a line of JSON for each model at the end")
    arguments = options.parse_args()
    measured = [measure(model, arguments.recipes, arguments.threads, arguments.limit) for model in arguments.models]
    for row in measured if arguments.json else ():
        write_json(row)


if __name__ == "__main__":
    main()
