"""Two processes on the CPU, as ``accelerate launch --multi_gpu`` and ``torchrun`` start them, against one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import Distance, Recordings, TinyNet
from two_processes import OPTIONS, UNEVEN

from quantasr.training.loop import TrainResult, train
from quantasr.training.processes import started_alone
from quantasr.training.run_folder import Run

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the first and the second process have found."""
    out = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What torchrun and `accelerate launch` set, but without their own processes, which take seconds to start.
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(out)],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(text[-3000:] for text in errors)
    first, second = (json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1))
    return first, second


def alone(tmp_path: Path, source: Recordings, loss: Distance | None = None) -> tuple[TinyNet, TrainResult]:
    net = TinyNet()
    return net, train(net, loss or Distance(), source, OPTIONS, Run(tmp_path / "one"), say=lambda line: None)


def assert_same(one: TinyNet, two: dict[str, Any], tolerance: float = 1e-6) -> None:
    for name, value in one.state_dict().items():
        np.testing.assert_allclose(np.asarray(two[name]), value.numpy(), atol=tolerance, rtol=0, err_msg=name)


@pytest.mark.parametrize("name", ["even", "uneven", "parts"])
def test_two_processes_have_the_losses_and_weights_of_one(found: Any, name: str, tmp_path: Path) -> None:
    net, result = alone(tmp_path, Recordings() if name == "even" else UNEVEN)
    for process in found:
        losses = process[name]["losses"]
        assert list(losses) == [str(step) for step in range(1, 9)]
        np.testing.assert_allclose(list(losses.values()), list(result.losses.values()), atol=1e-6)
        assert_same(net, process[name]["weights"])


def test_a_nan_in_one_process_is_skipped_by_both(found: Any, tmp_path: Path) -> None:
    net, result = alone(tmp_path, Recordings(), Distance(nan_at=("2-1",)))
    assert result.skipped == 1
    for process in found:
        assert process["nan"]["skipped"] == 1
        assert "3" not in process["nan"]["losses"]
        assert_same(net, process["nan"]["weights"])


@dataclass(frozen=True)
class Half(Recordings):
    """What one of two processes gets."""

    rank: int = 0

    def batches(self, first: int, last: int) -> Any:
        for recordings in super().batches(first, last):
            yield recordings[self.rank :: 2]


def test_models_of_parallel_jobs_are_averaged(found: Any, tmp_path: Path) -> None:
    """One round of four steps by hand: each half alone, then the mean of both."""
    options = replace(OPTIONS, checkpoint_every=4)
    nets = []
    for rank in (0, 1):
        net = TinyNet()
        stop = StopAt(4)
        with pytest.raises(KeyboardInterrupt):
            train(net, Distance(), Half(rank=rank), options, Run(tmp_path / str(rank)), on_step=stop, say=print)
        nets.append(net.state_dict())
    mean = {name: (value + nets[1][name]) / 2 for name, value in nets[0].items()}
    first, second = found
    assert first["models"]["weights"] == second["models"]["weights"]
    # The second round begins from there: its first loss is that of the mean model on both halves.
    both = TinyNet()
    both.load_state_dict(mean)
    loss = Distance()
    batch = loss.collate([r.load() for r in next(iter(Recordings().batches(4, 5)))], 0)
    with torch.no_grad():
        expected = float(loss(both(batch.features, batch.lengths), batch)) / batch.weight
    assert first["models"]["losses"]["5"] == pytest.approx(expected, abs=1e-6)


class StopAt:
    """Stops a run before a step, from outside of it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, step: int) -> None:
        if step == self.step:
            raise KeyboardInterrupt


def test_validation_is_the_main_process_s_and_counts_for_both(found: Any) -> None:
    assert found[0]["validated"] == found[1]["validated"]


def test_gradients_and_states_that_only_one_process_has(found: Any) -> None:
    for process in found:
        assert process["helpers"]["gradients"] == [[3.0, 3.0], [1.0, 1.0], None]
        assert process["helpers"]["means"] == {"a": [0.5], "steps": 7, "b": [3.0]}


def test_a_request_to_one_process_stops_both_after_the_same_step(found: Any) -> None:
    for process in found:
        assert process["stopped"]["at"] == ["step-000003"]
        assert process["stopped"]["weights"] == process["uneven"]["weights"]


def test_an_error_of_one_process_ends_the_other(found: Any) -> None:
    assert found[0]["failing"] == "another process has stopped: its own message says why"
    assert found[1]["failing"] == "cannot be read"


def test_accelerate_s_launcher_for_cpus_starts_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What ``accelerate launch --cpu --num_processes 2`` sets (1.15)."""
    assert started_alone() == ""
    for name, value in (("ACCELERATE_USE_CPU", "True"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    said: list[str] = []
    train(TinyNet(), Distance(), Recordings(), OPTIONS, Run(tmp_path / "one"), say=said.append)
    assert "starts one process: for several take --multi_gpu" in said[0]
