"""The loop against the same steps written out in PyTorch, and what it does when something goes wrong."""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_training import Distance, Recording, Recordings, TinyNet
from torch import nn

from quantasr.errors import TrainingError
from quantasr.training import processes
from quantasr.training.loop import TrainResult, train
from quantasr.training.options import TrainOptions
from quantasr.training.run_folder import Run
from quantasr.training.shares import seed_step, shares

OPTIONS = TrainOptions(steps=6, rate=0.05, schedule="constant", validate_every=0, checkpoint_every=0, average=0)
Trained = Callable[..., tuple[nn.Module, TrainResult]]


@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    def run(options: TrainOptions = OPTIONS, name: str = "run", **more: Any) -> tuple[nn.Module, TrainResult]:
        net = more.pop("net", None) or TinyNet()
        loss, source = more.pop("loss", Distance()), more.pop("source", Recordings())
        more.setdefault("say", lambda line: None)
        return net, train(net, loss, source, options, Run(tmp_path / name), **more)

    return run


def written_out(
    optimizer: str, leave_out: tuple[int, ...] = (), batch_norm: bool = False
) -> tuple[TinyNet, list[float]]:
    """Six steps in plain PyTorch: mean loss over frames, gradients clipped to 1."""
    net, loss, losses = TinyNet(batch_norm=batch_norm), Distance(), []
    matrices = [p for p in net.parameters() if p.ndim == 2]
    others = [p for p in net.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    kind = torch.optim.AdamW(groups, lr=0.05) if optimizer == "adamw" else torch.optim.SGD(groups, 0.05, momentum=0.9)
    for step, recordings in enumerate(Recordings().batches(0, 6)):
        if step in leave_out:
            continue
        batch = loss.collate([recording.load() for recording in recordings], 0)
        mean = loss(net(batch.features, batch.lengths), batch) / batch.weight
        kind.zero_grad()
        mean.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        kind.step()
        losses.append(mean.item())
    return net, losses


def same(one: nn.Module, other: nn.Module, atol: float = 1e-6) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.allclose(a, b, atol=atol, rtol=0) for a, b in pairs)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_steps_are_those_of_pytorch(trained: Trained, optimizer: str) -> None:
    expected, losses = written_out(optimizer)
    net, result = trained(replace(OPTIONS, optimizer=optimizer))
    assert same(net, expected)
    assert list(result.losses.values()) == pytest.approx(losses, abs=1e-6)
    assert list(result.losses) == [1, 2, 3, 4, 5, 6]
    assert not net.training


@pytest.mark.parametrize("parts", [2, 3, 100])
def test_a_batch_in_parts_is_the_whole_batch(trained: Trained, parts: int) -> None:
    whole, result = trained()
    net, in_parts = trained(replace(OPTIONS, accumulate=parts), "parts")
    assert same(net, whole)
    assert list(in_parts.losses.values()) == pytest.approx(list(result.losses.values()), abs=1e-6)


def test_reading_ahead_changes_nothing(trained: Trained) -> None:
    nets = [trained(replace(OPTIONS, workers=n), str(n), net=TinyNet(0.2))[0] for n in (0, 1, 3)]
    assert same(nets[0], nets[1], 0) and same(nets[0], nets[2], 0)


def test_dropout_depends_on_the_seed_alone(trained: Trained) -> None:
    torch.manual_seed(5)
    first = trained(name="first", net=TinyNet(0.5))[0]
    torch.manual_seed(6)
    assert same(first, trained(name="second", net=TinyNet(0.5))[0], 0)
    assert not same(first, trained(replace(OPTIONS, seed=1), "third", net=TinyNet(0.5))[0])


def test_the_loss_s_seed_is_that_of_the_step(trained: Trained) -> None:
    seeds = []
    for parts in (1, 2):
        loss = Distance()
        trained(replace(OPTIONS, accumulate=parts), str(parts), loss=loss)
        seeds.append(loss.seeds)
    assert len(set(seeds[0])) == 6
    assert seeds[1] == [seed for seed in seeds[0] for _ in range(2)]


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_nan_step_leaves_everything_as_it_was(trained: Trained, batch_norm: bool) -> None:
    said: list[str] = []
    expected, losses = written_out("sgd", leave_out=(2,), batch_norm=batch_norm)
    options = replace(OPTIONS, optimizer="sgd")
    net, result = trained(options, loss=Distance(["2-3"]), say=said.append, net=TinyNet(batch_norm=batch_norm))
    assert result.skipped == 1 and result.steps == 6
    assert said[0] == "step 3: loss nan, norm of the gradient nan: skipped"
    assert list(result.losses) == [1, 2, 4, 5, 6]
    assert list(result.losses.values()) == pytest.approx(losses, abs=1e-6)
    assert same(net, expected)


def test_too_many_nan_steps_end_the_run(trained: Trained) -> None:
    with pytest.raises(TrainingError, match=r"20 steps in a row, up to step 21, had no finite loss.*lower the rate"):
        trained(replace(OPTIONS, steps=50), loss=Distance([f"{step}-0" for step in range(1, 50)]))


def test_an_empty_batch_is_skipped_too(trained: Trained) -> None:
    """All recordings of a step may turn out to be of no use to the loss."""

    class Nothing(Distance):
        def collate(self, examples: Any, seed: int) -> Any:
            batch = super().collate(examples, seed)
            return replace(batch, weight=0.0) if batch.ids[0].startswith("2-") else batch

    assert trained(loss=Nothing())[1].skipped == 1


def test_a_process_takes_every_other_recording_in_parts() -> None:
    """Seven recordings: the second of two processes has 1, 3 and 5, in parts of two and one."""
    options = replace(OPTIONS, accumulate=2, workers=0)
    (share,) = shares(Recordings((7,)), Distance(), options, 4, 5, rank=1, count=2)
    assert [(position, batch.ids) for position, batch in share.batches] == [(1, ("4-1", "4-3")), (5, ("4-5",))]
    # Frames: 2 + (4 + place) % 5.
    assert (share.step, share.examples, share.weight) == (4, 7, 2 + 4 + 6)
    assert share.longest == "4-5 of 0.6 s"
    (empty,) = shares(Recordings((1,)), Distance(), options, 4, 5, rank=1, count=2)
    assert (empty.batches, empty.weight, empty.longest) == ((), 0, "none")


def test_parts_of_a_batch_have_dropout_of_their_own() -> None:
    drawn = []
    for seed, step, position in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0)):
        seed_step(seed, step, position)
        drawn.append((torch.rand(()).item(), float(np.random.rand()), random.random()))
    assert drawn[4] == drawn[0]
    assert all(len(set(column)) == 4 for column in zip(*drawn, strict=True))


def figures(*values: float) -> Callable[[], dict[str, float]]:
    left = iter(values)
    return lambda: {"loss": -1.0, "wer": next(left)}


def test_training_ends_when_validation_gets_no_better(trained: Trained, tmp_path: Path) -> None:
    options = replace(OPTIONS, steps=50, validate_every=2, patience=2, average=1, keep=1)
    _, result = trained(options, validate=figures(0.5, 0.4, math.nan, 0.4, 0.0))
    assert (result.steps, result.figure, result.weights_from, result.ended_early) == (8, 0.4, (8,), True)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-000008"]


def test_the_weights_are_the_mean_of_the_best(trained: Trained, tmp_path: Path) -> None:
    options = replace(OPTIONS, validate_every=1, average=2, keep=1)
    net, result = trained(options, validate=figures(0.5, 0.1, 0.4, 0.2, 0.3, 0.6))
    assert (result.figure, result.weights_from, result.ended_early) == (0.1, (2, 4), False)
    found = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert found == ["step-000002", "step-000004", "step-000006"]
    second, fourth = (load_file(tmp_path / f"run/checkpoints/{name}/model.safetensors") for name in found[:2])
    for name, value in net.state_dict().items():
        assert torch.allclose(value, (second[name] + fourth[name]) / 2)


def test_without_validation_the_last_checkpoints_are_averaged(trained: Trained) -> None:
    assert trained(replace(OPTIONS, checkpoint_every=2, average=2))[1].weights_from == (4, 6)
    assert trained(replace(OPTIONS, checkpoint_every=4, average=1), "one")[1].weights_from == (6,)


def test_another_figure_can_decide(trained: Trained) -> None:
    options = replace(OPTIONS, validate_every=3, best_by="loss")
    assert trained(options, validate=figures(0.5, 0.4))[1].figure == -1
    with pytest.raises(TrainingError, match="best_by = 'cer': validation gives loss, wer"):
        trained(replace(options, best_by="cer"), "cer", validate=figures(0.5))


def test_patience_needs_validation(trained: Trained) -> None:
    with pytest.raises(TrainingError, match="patience and best_by need validation"):
        trained(replace(OPTIONS, patience=2))


def test_memory_that_is_not_enough_is_said_with_the_longest_recording(trained: Trained) -> None:
    class TooLarge(Distance):
        def __call__(self, output: Any, batch: Any) -> Any:
            return torch.empty(1 << 60)

    with pytest.raises(
        TrainingError, match=r"out of memory in step 1; its longest recording is 0-4 of 0.6 s: take more"
    ):
        trained(loss=TooLarge())


def test_other_errors_of_the_model_are_not_hidden(trained: Trained) -> None:
    class Wrong(Distance):
        def __call__(self, output: Any, batch: Any) -> Any:
            return output.logprobs @ torch.zeros(3, 3)

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        trained(loss=Wrong())


def test_data_that_ends_too_early(trained: Trained) -> None:
    class Short(Recordings):
        def batches(self, first: int, last: int) -> Iterator[list[Recording]]:
            return super().batches(first, 3)

    with pytest.raises(TrainingError, match="the data ended before step 4 of 6"):
        trained(source=Short())


def test_frozen_norms_keep_their_statistics(trained: Trained) -> None:
    net = TinyNet(batch_norm=True)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    trained(replace(OPTIONS, freeze=("norm", "first")), net=net)
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"last.weight", "last.bias", "log_scale"}


def test_what_is_called_when(trained: Trained) -> None:
    calls: list[Any] = []

    class Told(TinyNet):
        def after_step(self) -> None:
            calls.append("after")

    net = Told(batch_norm=True)

    def validate() -> dict[str, float]:
        calls.append(("validate", net.training, torch.is_grad_enabled()))
        return {"wer": 0.0}

    options = replace(OPTIONS, steps=3, validate_every=2, freeze=("norm",))
    trained(options, net=net, validate=validate, on_step=lambda n: calls.append((n, net.training, net.norm.training)))
    assert calls == [
        (0, True, False),
        "after",
        (1, True, False),
        "after",
        ("validate", False, False),
        (2, True, False),
        "after",
        ("validate", False, False),
    ]


def test_what_is_reported(trained: Trained, tmp_path: Path) -> None:
    said: list[str] = []
    options = replace(OPTIONS, schedule="linear", final_rate=0.5, report_every=4, validate_every=6)
    result = trained(options, say=said.append, validate=lambda: {"wer": 0.25})[1]
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4, 6, 6]
    assert rows[2] == {"step": 6, "validation_wer": 0.25}
    assert [row["rate"] for row in rows[:2]] == pytest.approx([0.05 * 0.7, 0.05 * 0.5])
    assert rows[0]["epoch"] == 0.4 and rows[0]["skipped"] == 0 and rows[0]["examples_per_second"] > 0
    # The mean over all frames: of steps 5 and 6, whose recordings have 4, 5 and 6, 2, 3 ... frames.
    frames = [sum(recording.frames for recording in batch) for batch in Recordings().batches(4, 6)]
    mean = (result.losses[5] * frames[0] + result.losses[6] * frames[1]) / sum(frames)
    assert rows[1]["loss"] == pytest.approx(mean)
    assert said[0].startswith("step 4/6  epoch 0.4  loss ")
    assert said[2] == "step 6/6  validation wer 0.25"

    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (events,) = (tmp_path / "run/tensorboard").iterdir()
    scalars = [
        (e.step, v.tag, v.tensor.float_val[0]) for e in EventFileLoader(str(events)).Load() for v in e.summary.value
    ]
    assert (6, "validation_wer", 0.25) in scalars
    assert [step for step, tag, _ in scalars if tag == "loss"] == [4, 6]


def test_one_changing_line_on_a_terminal(trained: Trained, monkeypatch: Any, capsys: Any) -> None:
    said: list[str] = []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    trained(replace(OPTIONS, report_every=1), say=said.append, progress=True)
    assert said == []
    assert "training" in capsys.readouterr().err


def test_fp16_needs_a_gpu(trained: Trained, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match=r"fp16.*needs a GPU"):
        trained(replace(OPTIONS, precision="fp16"))


def test_losses_too_large_for_fp16_are_scaled_less_and_that_is_resumed(
    trained: Trained, tmp_path: Path, monkeypatch: Any
) -> None:
    """On the CPU, which Accelerate does not take for fp16: with a scaler as it makes for GPUs."""
    make = processes._accelerator

    def scaled(precision: str) -> Any:
        accelerator = make("bf16")
        accelerator.state._shared_state["_mixed_precision"] = "fp16"
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18, growth_interval=4)
        return accelerator

    monkeypatch.setattr(processes, "_accelerator", scaled)
    options = replace(OPTIONS, steps=20, precision="fp16", checkpoint_every=10)
    net, result = trained(options)
    assert 1 <= result.skipped < 10
    state = json.loads((tmp_path / "run/checkpoints/step-000010/state.json").read_text())
    assert state["training"]["scaler"]["scale"] < 2.0**18
    shutil.rmtree(tmp_path / "run/checkpoints/step-000020")
    again = TinyNet()
    resumed = train(again, Distance(), Recordings(), options, Run(tmp_path / "run", resume=True), say=lambda line: None)
    assert same(net, again, 0)
    assert resumed.skipped == result.skipped


def test_bf16_computes_in_bf16_and_keeps_its_weights(trained: Trained) -> None:
    _, result = trained()
    net, rough = trained(replace(OPTIONS, precision="bf16"), "bf16")
    assert {value.dtype for value in net.state_dict().values()} == {torch.float32}
    assert rough.losses != result.losses
    assert rough.losses[1] == pytest.approx(result.losses[1], rel=0.01)
    # And back: Accelerate's settings are those of the whole process.
    assert trained(name="again")[1].losses == result.losses
