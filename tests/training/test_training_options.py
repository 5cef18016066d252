"""Options of training: checked when built, and the learning rates and optimizers that they stand for."""

from __future__ import annotations

import json
import math
import tomllib
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from tiny_training import TinyNet
from torch import nn

from quantasr.errors import TrainingError
from quantasr.kaldi.nnet3 import Component
from quantasr.sources.kaldi.layers import BatchNorm as KaldiBatchNorm
from quantasr.training.optimizers import freeze, load_optimizer_tensors, make_optimizer, optimizer_tensors, set_rate
from quantasr.training.options import TrainOptions
from quantasr.training.schedules import rate_factor


def test_options_survive_json_and_toml() -> None:
    options = TrainOptions(steps=7, rate=1e-3, betas=(0.8, 0.9), freeze=("encoder.layers[0:2]", "*.norm"))
    assert TrainOptions.from_dict(json.loads(json.dumps(options.to_dict()))) == options
    assert TrainOptions.from_dict(tomllib.loads(tomli_w.dumps(TrainOptions().to_dict()))) == TrainOptions()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"rate": 0}, "rate = 0.0: must be more than 0"),
        ({"rate": math.inf}, "rate = inf: write a finite number"),
        ({"rate": True}, "rate = True: write a number"),
        ({"batch": 0}, "batch = 0: must be 1 or more"),
        ({"batch": 2.0}, "batch = 2.0: write a whole number"),
        ({"steps": 0}, "steps = 0: must be 1 or more"),
        ({"patience": -1}, "patience = -1: must be 0 or more"),
        ({"optimizer": "adam"}, "optimizer = 'adam': known are adamw, sgd"),
        ({"schedule": "step"}, "schedule = 'step': known are cosine, linear, exponential, constant"),
        ({"schedule": "exponential", "final_rate": 0.0}, "final_rate = 0.0: the share of rate at the end"),
        ({"betas": (0.9,)}, "betas = (0.9,): must be from 0 to below 1"),
        ({"betas": ("a", "b")}, "betas = ('a', 'b'): write a list"),
        ({"freeze": "encoder"}, "freeze = 'encoder': write a list"),
        ({"freeze": ("layers[-1]",)}, "freeze: 'layers[-1]': [-1] counts from the back"),
        ({"sync": "models", "sync_every": 30, "validate_every": 100}, "sync_every = 30: validate_every and"),
        ({"learning_rate": 1}, "unknown option 'learning_rate'"),
    ],
)
def test_wrong_options_are_named(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(TrainingError) as error:
        TrainOptions.from_dict(wrong, "train.toml")
    assert str(error.value).startswith("train.toml: ")
    assert words in str(error.value)


def factors(**options: Any) -> list[float]:
    return [rate_factor(TrainOptions(**options), step, 7) for step in range(7)]


def test_schedules_are_those_worked_out_by_hand() -> None:
    """Two steps of warm-up, then five from 1 to 0.2: a quarter of the way apart."""
    warm = [1 / 3, 2 / 3]
    common = {"warm_up": 2, "final_rate": 0.2}
    assert factors(schedule="constant", **common) == pytest.approx([*warm, 1, 1, 1, 1, 1])
    assert factors(schedule="linear", **common) == pytest.approx([*warm, 1, 0.8, 0.6, 0.4, 0.2])
    half = math.sqrt(0.5)
    cosine = [1, 0.2 + 0.4 * (1 + half), 0.6, 0.2 + 0.4 * (1 - half), 0.2]
    assert factors(schedule="cosine", **common) == pytest.approx([*warm, *cosine])
    # Kaldi's 1e-5 to 5e-6: the same ratio from each step to the next.
    halved = [1, 0.5**0.25, 0.5**0.5, 0.5**0.75, 0.5]
    assert factors(schedule="exponential", warm_up=2, final_rate=0.5) == pytest.approx([*warm, *halved])


def test_one_step_and_nothing_but_warm_up() -> None:
    assert rate_factor(TrainOptions(), 0, 1) == 1
    assert factors(warm_up=7) == pytest.approx([step / 8 for step in range(1, 8)])


def test_epochs_become_steps_unless_steps_are_given() -> None:
    assert TrainOptions(epochs=1.5).total_steps(10) == 15
    assert TrainOptions(epochs=0.01).total_steps(10) == 1
    assert TrainOptions(epochs=1.5, steps=4).total_steps(10) == 4


def test_weight_decay_is_for_matrices_and_scales_have_a_rate_of_their_own() -> None:
    net = TinyNet()
    optimizer = make_optimizer(net, TrainOptions(rate=0.1, scale_rate=5, weight_decay=0.3))
    set_rate(optimizer, 0.01)
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = next(name for name, other in net.named_parameters() if other is parameter)
            found[name] = (group["lr"], group["weight_decay"])
    assert found == {
        "first.weight": (0.01, 0.3),
        "first.bias": (0.01, 0.0),
        "norm.weight": (0.01, 0.0),
        "norm.bias": (0.01, 0.0),
        "last.weight": (0.01, 0.3),
        "last.bias": (0.01, 0.0),
        "log_scale": (0.05, 0.0),
    }


def test_frozen_modules_are_not_trained_and_their_norms_are_known() -> None:
    net = nn.Sequential(TinyNet(batch_norm=True), TinyNet(batch_norm=True))
    norms = freeze(net, ["0", "1.norm"])
    assert norms == [net[0].norm, net[1].norm]
    trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert trained == {f"1.{name}" for name in ("first.weight", "first.bias", "last.weight", "last.bias", "log_scale")}


def test_freezing_what_is_not_there_or_everything() -> None:
    with pytest.raises(TrainingError, match="freeze = 'frist': no such module; the nearest are first"):
        freeze(TinyNet(), ["frist"])
    with pytest.raises(TrainingError, match="nothing is left to train"):
        freeze(nn.Sequential(nn.Linear(2, 2)), ["0"])


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_an_optimizer_s_state_as_tensors(name: str) -> None:
    """Moved to another optimizer, it takes the same next step."""
    options = TrainOptions(optimizer=name, rate=0.1)
    nets = [TinyNet(), TinyNet()]
    optimizers = [make_optimizer(net, options) for net in nets]

    def step(i: int) -> None:
        optimizers[i].zero_grad()
        sum((parameter.square().sum() for parameter in nets[i].parameters()), torch.zeros(())).backward()
        optimizers[i].step()

    step(0)
    step(0)
    nets[1].load_state_dict(nets[0].state_dict())
    load_optimizer_tensors(optimizers[1], nets[1], optimizer_tensors(optimizers[0], nets[0]))
    step(0)
    step(1)
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_kaldis_batch_norms_are_among_them() -> None:
    norm = KaldiBatchNorm(
        Component(
            "BatchNormComponent",
            "norm",
            {
                "Dim": 2,
                "BlockDim": 2,
                "Epsilon": 1e-3,
                "TargetRms": 1.0,
                "TestMode": False,
                "Count": 1.0,
                "StatsMean": np.zeros(2, np.float32),
                "StatsVar": np.ones(2, np.float32),
            },
        )
    )
    net = nn.Sequential(nn.Linear(2, 2), norm)
    assert freeze(net, ["1"]) == [norm]
