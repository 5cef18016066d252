"""Run in two processes: trains in several ways and writes what each process has found."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_training import Distance, Recording, Recordings, TinyNet

from quantasr.errors import TrainingError
from quantasr.training.loop import train
from quantasr.training.options import TrainOptions
from quantasr.training.processes import Processes
from quantasr.training.run_folder import Run

OPTIONS = TrainOptions(steps=8, rate=0.02, validate_every=0, checkpoint_every=4, average=0)
UNEVEN = Recordings(sizes=(5, 1, 3, 8))


class Broken(Recording):
    """A recording that cannot be read; where it stands, the second process loads it."""

    def load(self) -> Any:
        raise OSError("cannot be read")


class Failing(Recordings):
    def batches(self, first: int, last: int) -> Any:
        for recordings in super().batches(first, last):
            yield [recordings[0], Broken("0-1", 3)]


def main(out: Path) -> None:
    found: dict[str, Any] = {}

    def run(name: str, options: TrainOptions, source: Recordings, loss: Distance, **more: Any) -> None:
        net = TinyNet()
        with torch.no_grad():
            net.last.bias += Processes().rank  # processes that begin apart are brought together first
        result = train(net, loss, source, options, Run(out / name), say=lambda line: None, **more)
        values = {key: value.tolist() for key, value in net.state_dict().items()}
        found[name] = {"losses": result.losses, "skipped": result.skipped, "weights": values}

    run("even", OPTIONS, Recordings(), Distance())
    run("uneven", OPTIONS, UNEVEN, Distance())
    run("parts", replace(OPTIONS, accumulate=3), UNEVEN, Distance())
    run("nan", OPTIONS, Recordings(), Distance(nan_at=("2-1",)))
    run("models", replace(OPTIONS, sync="models", sync_every=4), Recordings(), Distance())
    run("validated", replace(OPTIONS, validate_every=4), Recordings(), Distance(), validate=lambda: {"wer": 1.0})
    found["helpers"] = helpers()
    found["stopped"] = stopped_and_resumed(out / "stopped")
    try:
        run("failing", OPTIONS, Failing(), Distance())
    except (TrainingError, OSError) as error:
        found["failing"] = str(error)
    (out / f"{Processes().rank}.json").write_text(json.dumps(found))


def helpers() -> dict[str, Any]:
    processes = Processes()
    both, one, none = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    both.grad = torch.full((2,), 1.0 + processes.rank)
    if processes.rank == 1:
        one.grad = torch.ones(2)
    processes.sum_gradients([both, one, none])
    mine = {"a": torch.tensor([float(processes.rank)]), "steps": torch.tensor(7 + processes.rank)}
    if processes.rank == 1:
        mine["b"] = torch.tensor([3.0])
    means = processes.average(mine)
    gradients = [None if p.grad is None else p.grad.tolist() for p in (both, one, none)]
    return {"gradients": gradients, "means": {name: value.tolist() for name, value in means.items()}}


def stopped_and_resumed(folder: Path) -> dict[str, Any]:
    """Only the second process is asked to end."""
    rank = Processes().rank

    def ask(step: int) -> None:
        if rank == 1 and step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    try:
        train(TinyNet(), Distance(), UNEVEN, OPTIONS, Run(folder), on_step=ask, say=lambda line: None)
    except KeyboardInterrupt:
        Processes().sum(0.0)  # the checkpoint is there
        at = [path.name for path in (folder / "checkpoints").iterdir()]
    net = TinyNet()
    train(net, Distance(), UNEVEN, OPTIONS, Run(folder, resume=True), say=lambda line: None)
    return {"at": at, "weights": {key: value.tolist() for key, value in net.state_dict().items()}}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
