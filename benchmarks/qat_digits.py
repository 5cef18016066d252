"""Quantization-aware training of every source's digit recogniser, in 8, 4 and 2 bits, with several seeds.

    python benchmarks/qat_digits.py --work /tmp/qat --jobs 2

Needs the recordings of single digits in the shared data. Training, validation and evaluation strings are made of other
takes; calibration strings are the sample's. Each result is added to WORK/results.jsonl as it comes, and what is there
is not done again; --report prints the tables of what is there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from compare import SHARED
from qat_report import report

from quantasr.cli.output import say
from quantasr.measure.evaluate import evaluate
from quantasr.numerics.quantizers import Phase
from quantasr.pipeline import find_recipe
from quantasr.pipeline_training import qat
from quantasr.quantize import calibrate, convert, prepare
from quantasr.recipes import Recipe, Rule
from quantasr.runtime import load
from quantasr.sources import FrameModel, load_model
from quantasr.speech.manifest import Utterance, read_manifest
from quantasr.training.augment import AugmentOptions
from quantasr.training.config import LossOptions, TrainingConfig
from quantasr.training.data_options import DataOptions
from quantasr.training.options import TrainOptions

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "src" / "quantasr" / "sample" / "digits"
STRINGS = {"training": 2400, "validation": 60, "evaluation": 600}


@dataclass(frozen=True)
class Source:
    """A trained recogniser of digit strings, and what its training takes: the learning rate of each task."""

    place: Path
    w4: float = 1e-4
    distilled: float = 4e-4
    w2: float = 5e-4
    w8: float = 5e-6
    recipe: str = "fast"
    precision: str = "bf16"


DATA = ROOT / "tests" / "data"
SOURCES = {
    "Hugging Face": Source(SAMPLE),
    "NeMo QuartzNet": Source(DATA / "nemo/quartznet.nemo", 4e-4, 1.6e-3, 2e-3, precision="fp32"),
    "NeMo Conformer": Source(DATA / "nemo/conformer.nemo"),
    "SpeechBrain": Source(DATA / "speechbrain/wav2vec2_ctc", distilled=6e-4),
    "Kaldi TDNN": Source(DATA / "kaldi/digits", 3e-3, 3e-3, 2e-3, recipe="default", precision="fp32"),
}


@dataclass(frozen=True)
class Task:
    """How many bits weights have, with one scale for what, and how it is trained: ``rate`` is a field of the source.

    ``every_layer``: those that the recipe leaves float too, first and last ones.
    """

    bits: int
    granularity: str
    steps: int
    rate: str
    loss: str = "auto"
    observer: str = "min_max"
    every_layer: bool = False

    def recipe(self, source: Source, family: str) -> Recipe:
        """The source's recipe with these weights."""
        base = find_recipe(source.recipe, family)
        weight = replace(base.defaults.weight, bits=self.bits, granularity=self.granularity)
        defaults = replace(base.defaults, weight=weight, weight_observer=self.observer)
        changed = replace(base, name=f"{base.name}-w{self.bits}", defaults=defaults)
        return replace(changed, rules=(Rule("*"),), exclude=()) if self.every_layer else changed


_W4 = Task(4, "per_tensor", 200, "w4", every_layer=True)
TASKS = {
    "w8a8": Task(8, "per_channel", 30, "w8"),
    "w4a8": _W4,
    "w4a8, distilled": replace(_W4, rate="distilled", loss="distillation"),
    "w2a8": Task(2, "per_channel", 200, "w2", observer="mse"),
}


def make_strings(work: Path) -> None:
    """Write the training, validation and evaluation strings and their manifests to ``work``, once."""
    if all((work / f"{name}.jsonl").is_file() for name in STRINGS):
        return
    sys.path.insert(0, str(ROOT / "examples"))
    from digit_strings import LONGEST, RATE, TAKES, read_corpus, string_together

    corpus = read_corpus(SHARED / "digits")
    for number, (name, count) in enumerate(STRINGS.items()):
        random = np.random.default_rng([77, number])
        part = [r for r in corpus if r.take in TAKES[name]]
        speakers = sorted({r.speaker for r in part})
        (work / name).mkdir(parents=True, exist_ok=True)
        lines = []
        for i in range(count):
            own = [r for r in part if r.speaker == speakers[i % len(speakers)]]
            drawn = [own[k] for k in random.integers(len(own), size=random.integers(1, LONGEST + 1))]
            wave = string_together([r.waves[0] for r in drawn], random)
            path = Path(name) / f"{i:05d}.flac"
            soundfile.write(work / path, wave, RATE)
            row = {"audio_filepath": str(path), "duration": len(wave) / RATE, "text": " ".join(r.text for r in drawn)}
            lines.append(json.dumps(row | {"speaker": drawn[0].speaker}) + "\n")
        (work / f"{name}.jsonl").write_text("".join(lines))


def config(source: Source, task: Task, seed: int) -> TrainingConfig:
    """The settings of one run."""
    train = TrainOptions(
        steps=task.steps,
        batch=8,
        rate=getattr(source, task.rate),
        scale_rate=10.0,
        warm_up=task.steps // 10,
        precision=source.precision,
        validate_every=0,
        seed=seed,
        report_every=50,
    )
    augment = AugmentOptions(speeds=(0.9, 1.0, 1.1), gain_db=3.0, noise="coloured")
    return TrainingConfig(train, DataOptions(augment=augment), LossOptions(kind=task.loss))


def errors(transcriber: Any, utterances: list[Utterance]) -> dict[str, Any]:
    """Errors and words of each utterance, to compare systems on the same words."""
    found = evaluate(transcriber, utterances, batch_size=16)
    counts = [c.substitutions + c.deletions + c.insertions for c in found.wer.utterances]
    return {"errors": counts, "words": [c.reference_length for c in found.wer.utterances]}


def run_plain(name: str, work: Path) -> Iterator[dict[str, Any]]:
    """The float model, and what quantizing without training makes of it."""
    source, utterances = SOURCES[name], _evaluation(work)
    yield {"source": name, "task": "float", **errors(_load(source).transcriber(), utterances)}
    speech = [u.load(8000) for u in read_manifest(SAMPLE / "calibration.jsonl")]
    for label, task in TASKS.items():
        if task.loss != "auto":
            continue
        model = _load(source)
        prepared = prepare(model, task.recipe(source, model.family))
        calibrate(prepared, speech)
        convert(prepared)
        with prepared.active(Phase.SIMULATE):
            yield {"source": name, "task": f"{label}, PTQ", **errors(model.transcriber(), utterances)}


def run_trained(name: str, label: str, seed: int, work: Path) -> dict[str, Any]:
    """One training: its simulation, and its artifact on ONNX Runtime, that of the first seed on OpenVINO too."""
    source, task, utterances = SOURCES[name], TASKS[label], _evaluation(work)
    model, teacher = _load(source), _load(source) if task.loss == "distillation" else None
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "artifact"
        trained = qat(
            model,
            folder,
            train=work / "training.jsonl",
            validation=work / "validation.jsonl",
            test=work / "evaluation.jsonl",
            calibration=SAMPLE / "calibration.jsonl",
            recipe=task.recipe(source, model.family),
            teacher=teacher,
            config=config(source, task, seed),
            say=lambda line: say(f"{name}, {label}, seed {seed}: {line}"),
        )
        seconds = time.monotonic() - began
        assert trained.prepared is not None
        with trained.prepared.active(Phase.SIMULATE):
            row = errors(model.transcriber(), utterances)
        engines = {
            engine: sum(errors(load(folder, engine=engine, compute="fp32"), utterances)["errors"])
            for engine in (("onnxruntime", "openvino") if seed == 0 else ("onnxruntime",))
        }
    return {"source": name, "task": label, "seed": seed, "seconds": seconds, "engines": engines, **row}


def _load(source: Source) -> FrameModel:
    model = load_model(source.place, trust=True)
    assert isinstance(model, FrameModel)
    return model


def _evaluation(work: Path) -> list[Utterance]:
    return sorted(read_manifest(work / "evaluation.jsonl"), key=lambda u: u.duration or 0.0)


def key_of(row: dict[str, Any]) -> tuple[str, str, int]:
    """What tells one result from another."""
    return row["source"], row["task"], row.get("seed", -1)


def read_results(work: Path) -> list[dict[str, Any]]:
    """The results that are there."""
    path = work / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def work_on(name: str, tasks: list[str], seeds: list[int], work: Path) -> None:
    """All that is to be done of one source."""
    done = {key_of(row) for row in read_results(work)}

    def keep(row: dict[str, Any]) -> None:
        with (work / "results.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        say(f"{row['source']}, {row['task']}: {sum(row['errors'])} errors in {sum(row['words'])} words")

    if (name, "float", -1) not in done:
        for row in run_plain(name, work):
            keep(row)
    for seed, label in product(seeds, tasks):
        if (name, label, seed) not in done:
            keep(run_trained(name, label, seed, work))


def main() -> None:
    """Run what is missing, several sources at a time, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the strings and of the results")
    parser.add_argument("--sources", nargs="+", choices=list(SOURCES), default=list(SOURCES))
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="sources at a time, each with one thread")
    parser.add_argument("--report", action="store_true", help="only print the tables of what is there")
    arguments = parser.parse_args()
    if not arguments.report:
        if not (SHARED / "digits" / "all.jsonl").is_file():
            raise SystemExit(f"{SHARED / 'digits'}: the recordings of digits are missing: nothing to train on")
        make_strings(arguments.work)
        if len(arguments.sources) == 1:
            import torch

            torch.set_num_threads(1)
            work_on(arguments.sources[0], arguments.tasks, arguments.seeds, arguments.work)
            return
        _in_processes(arguments)
    report(read_results(arguments.work))


def _in_processes(arguments: argparse.Namespace) -> None:
    """Each source in a process of its own, ``--jobs`` of them at a time."""
    waiting, running = list(arguments.sources), list[subprocess.Popen[bytes]]()
    common = ["--work", str(arguments.work), "--tasks", *arguments.tasks, "--seeds", *map(str, arguments.seeds)]
    while waiting or running:
        while waiting and len(running) < arguments.jobs:
            running.append(subprocess.Popen([sys.executable, __file__, "--sources", waiting.pop(0), *common]))
        time.sleep(1)
        failed = [process for process in running if process.poll()]
        if failed:
            raise SystemExit(failed[0].returncode)
        running = [process for process in running if process.poll() is None]


if __name__ == "__main__":
    main()
