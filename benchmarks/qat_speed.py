"""How long a step of quantization-aware training takes beside a float fine-tuning step, at wav2vec2-base's real size.

    python benchmarks/qat_speed.py --threads 2 --rounds 7

All take the same step (forward, CTC, backward, clipping, AdamW) on the same batch, in turns in one run. The peer is
PyTorch's own eager QAT (torch.ao.quantization.prepare_qat) of the same layers.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from compare import RATE, SHARED
from rich.console import Console
from rich.table import Table
from torch import nn
from wav2vec2_base import random_base

from quantasr.cli.output import say
from quantasr.pipeline import find_recipe
from quantasr.quantize import calibrate, prepare
from quantasr.quantize.training import QatOptions, QatState
from quantasr.recipes import Recipe
from quantasr.sources import load_model
from quantasr.speech.manifest import read_manifest
from quantasr.training.batch import Example
from quantasr.training.losses import CtcLoss
from quantasr.training.optimizers import make_optimizer
from quantasr.training.options import TrainOptions
from quantasr.training.trainee import Trainee

BAR = 1.5
BATCH, SECONDS = 4, 10.0
Step = Callable[[], float]


def examples() -> list[Example]:
    """Four recordings of ten seconds: real speech where the shared data is there, noise where it is not."""
    samples = round(SECONDS * RATE)
    manifest = SHARED / "speechocean762" / "train.jsonl"
    if manifest.is_file():
        speech = np.concatenate([u.load(RATE) for u in read_manifest(manifest)[:40]])
    else:
        say(f"{manifest} is missing: training on noise, which takes as long")
        speech = np.random.default_rng(0).normal(0, 0.1, BATCH * samples).astype(np.float32)
    text = "TEN SECONDS OF SPEECH HAVE ABOUT THIRTY WORDS OF WHICH THESE ARE SOME AND THE REST IS MADE UP"
    return [Example(str(i), speech[i * samples : (i + 1) * samples], text) for i in range(BATCH)]


def step_of(trainee: nn.Module, loss: Any, batch: Any, after: Callable[[], None] = lambda: None) -> Step:
    """One optimizer step, and the seconds that it takes."""
    optimizer = make_optimizer(trainee, TrainOptions(rate=1e-6))
    parameters = [p for p in trainee.parameters() if p.requires_grad]
    trainee.train()

    def step() -> float:
        begin = time.perf_counter()
        value = loss(trainee(batch.features, batch.lengths), batch) / batch.weight
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        after()
        return time.perf_counter() - begin

    return step


def our_step(folder: Path, recipe: Recipe | str, options: QatOptions, loss: Any, batch: Any) -> Step:
    """Our quantization-aware training of the model in ``folder``."""
    model = load_model(folder)
    prepared = prepare(model, find_recipe(recipe, model.family))
    calibrate(prepared, [batch.features[0].numpy()])
    trainee = Trainee(model, QatState(prepared, options))
    return step_of(trainee, loss, batch, trainee.after_step)


def eager_step(folder: Path, loss: Any, batch: Any) -> Step:
    """PyTorch's own: every linear layer of the model with torch.ao's fake quantization, at its defaults."""
    from torch.ao.quantization import get_default_qat_qconfig, prepare_qat

    model = load_model(folder)
    trainee = Trainee(model)
    layers: Any = model.module.base_model.encoder
    for part in layers.modules():
        if isinstance(part, nn.Linear):
            part.qconfig = copy.deepcopy(get_default_qat_qconfig("x86"))
    prepare_qat(layers.train(), inplace=True)
    return step_of(trainee, loss, batch)


def main() -> None:
    """Time all in turns; print the table and the figure beside its bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = random_base(Path(scratch) / "base")
        plain = load_model(folder)
        loss: Any = CtcLoss(plain)
        batch = loss.collate(examples(), 0)
        steps = {"float": step_of(Trainee(plain), loss, batch)}
        for recipe in ("default", "fastest"):
            for scales in ("learned", "observed"):
                say(f"preparing {recipe}, {scales}")
                steps[f"{recipe}, {scales}"] = our_step(folder, recipe, QatOptions(scales=scales), loss, batch)
        steps["torch.ao prepare_qat (linear layers)"] = eager_step(folder, loss, batch)
        times: dict[str, list[float]] = {name: [] for name in steps}
        for turn in range(arguments.rounds + 1):
            for name, step in steps.items():
                seconds = step()
                if turn:  # the first takes memory
                    times[name].append(seconds)
            say(f"round {turn} of {arguments.rounds}")
    report(times, arguments)


def report(times: dict[str, list[float]], arguments: argparse.Namespace) -> None:
    """A row for each, with the median of its ratios to the float step of the same round, and their range."""
    table = Table(title=f"A step on {BATCH} x {SECONDS:g} s, {arguments.threads} threads, {arguments.rounds} rounds")
    for column in ("step", "seconds", "÷ float", "range"):
        table.add_column(column, justify="left" if column == "step" else "right")
    rows = {}
    for name, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, times["float"], strict=True)]
        rows[name] = {"seconds": median(seconds), "ratio": median(ratios), "low": min(ratios), "high": max(ratios)}
        row = rows[name]
        table.add_row(name, f"{row['seconds']:.2f}", f"{row['ratio']:.3f}", f"{row['low']:.2f}-{row['high']:.2f}")
    Console().print(table)
    worst = max(row["ratio"] for name, row in rows.items() if "torch.ao" not in name)
    print(f"slowest of ours ÷ float: {worst:.3f} (bar {BAR}): {'met' if worst <= BAR else 'MISSED'}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
