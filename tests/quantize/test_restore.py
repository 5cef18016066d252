"""A model that an error left in the middle of being quantized."""

from collections.abc import Callable

import numpy as np
import pytest
import tiny_nets
import torch
from torch import nn

from quantasr.errors import CalibrationError, RecipeError
from quantasr.quantize import calibrate, convert, prepare
from quantasr.quantize.restore import unchanged_on_error
from quantasr.recipes import Recipe, Rule

ALL = Recipe("all", (Rule("*"),), float_storage="fp16")


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.utils.parametrizations.weight_norm(nn.Linear(16, 8))
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.linear(x).transpose(1, 2)).transpose(1, 2))


def whole(module: nn.Module) -> list[object]:
    """Everything that a module is, by identity, and its values."""
    parts = [
        (name, type(part), sorted(vars(part)), len(part._forward_pre_hooks)) for name, part in module.named_modules()
    ]
    return [parts, {name: (id(t), t.data_ptr()) for name, t in module.state_dict(keep_vars=True).items()}]


def spoil(model: object) -> None:
    prepared = prepare(model, ALL)  # type: ignore[arg-type]
    calibrate(prepared, [np.random.default_rng(0).normal(0, 0.1, 1600).astype(np.float32)])
    convert(prepared)
    raise CalibrationError("too late")


def test_everything_is_as_it_was_after_an_error() -> None:
    torch.manual_seed(0)
    body = Body()
    body(torch.randn(2, 5, 16))  # statistics that are not 0 and 1
    model = tiny_nets.asr_model(body.eval())
    x = torch.randn(1, 7 * 16)
    before, output = whole(model.module), model.module(x)
    with pytest.raises(CalibrationError), unchanged_on_error(model.module):
        spoil(model)
    assert whole(model.module) == before
    assert torch.equal(model.module(x), output)


def test_without_the_guard_it_is_not() -> None:
    model = tiny_nets.asr_model(Body().eval())
    before = whole(model.module)
    with pytest.raises(CalibrationError):
        spoil(model)
    assert whole(model.module) != before


def test_what_went_well_stays() -> None:
    body = Body().eval()
    with unchanged_on_error(body):
        body.head = nn.Identity()
    assert isinstance(body.head, nn.Identity)


@pytest.mark.parametrize("change", [lambda m: m.half(), lambda m: m.requires_grad_(False), lambda m: m.train()])
def test_types_and_flags_come_back(change: Callable[[nn.Module], object]) -> None:
    body = Body().eval()
    before = [(p.dtype, p.requires_grad) for p in body.parameters()]
    with pytest.raises(RecipeError), unchanged_on_error(body):
        change(body)
        raise RecipeError("no")
    assert [(p.dtype, p.requires_grad) for p in body.parameters()] == before and not body.training
