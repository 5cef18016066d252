"""Quantizers in training: values as exported, gradients as published, scales that follow or are learned."""

from __future__ import annotations

import math

import pytest
import torch

from quantasr.numerics.fake_quantize import fake_quantize, scale_and_zero_point
from quantasr.numerics.qtypes import QType
from quantasr.numerics.training import InputTraining, WeightTraining, trained_fake_quantize

FORMATS = [QType(8, True), QType(8, False), QType(4, True), QType(2, True), QType(5, False)]


@pytest.mark.parametrize("qtype", FORMATS, ids=str)
def test_the_values_are_those_of_the_simulation(qtype):
    x = torch.randn(7, 50, generator=torch.Generator().manual_seed(0)) * 3
    scale, zero_point = scale_and_zero_point(torch.tensor([-2.0]), torch.tensor([3.0]), qtype)
    assert torch.equal(
        trained_fake_quantize(x, scale[0], zero_point[0], qtype), fake_quantize(x, scale[0], zero_point[0], qtype)
    )


@pytest.mark.parametrize("qtype", FORMATS, ids=str)
def test_gradients_are_those_of_the_paper_through_autograd(qtype):
    """LSQ's definition written with detach() instead of a gradient of its own."""
    x = (torch.randn(4, 30, dtype=torch.float64) * 2).requires_grad_()
    log = torch.full((4,), -1.0, dtype=torch.float64).requires_grad_()
    zero_point = torch.full((4,), 0.0 if qtype.symmetric else 3.0).double()
    factor = 1 / math.sqrt(30 * qtype.quant_max)

    def by_autograd() -> torch.Tensor:
        scale, zero = log.exp()[:, None], zero_point[:, None]
        scale = scale.detach() + (scale - scale.detach()) * factor
        ratio = x / scale + zero
        ratio = ratio.clamp(qtype.quant_min, qtype.quant_max)
        rounded = ratio + (ratio.round() - ratio).detach()
        return (rounded - zero) * scale

    weights = torch.randn(4, 30, dtype=torch.float64)
    wanted = torch.autograd.grad((by_autograd() * weights).sum(), [x, log])
    found = torch.autograd.grad((trained_fake_quantize(x, log.exp(), zero_point, qtype) * weights).sum(), [x, log])
    # Where a value lies exactly at the end of the range both conventions are right; random values do not.
    torch.testing.assert_close(list(found), list(wanted))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("sliced", [False, True])
def test_layouts_in_memory_make_no_difference(order, sliced, monkeypatch):
    monkeypatch.setattr("quantasr.numerics.training._BLOCK", 7)  # blocks that do not fit
    base = torch.randn(4, 6, 10).permute(order)
    base = base[..., ::2] if sliced else base
    scale, zero_point, qtype = torch.tensor(0.3), torch.tensor(5.0), QType(4, False)
    gradient = torch.randn(base.shape)
    results = []
    for x in (base, base.contiguous()):
        x, log = x.detach().requires_grad_(), scale.clone().requires_grad_()
        found = trained_fake_quantize(x, log, zero_point, qtype)
        results.append((found, *torch.autograd.grad((found * gradient).sum(), [x, log])))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted)
    assert torch.equal(results[0][0], fake_quantize(base, scale, zero_point, qtype))


def test_gradient_of_the_scale_by_hand():
    # scale 1, 2 bits: -1, 0, 1. 0.4 -> 0: slope 0 - 0.4; 0.7 -> 1: slope 1 - 0.7; 5 -> 1, outside: slope 1; -9: -1.
    x = torch.tensor([0.4, 0.7, 5.0, -9.0], requires_grad=True)
    scale = torch.tensor(1.0, requires_grad=True)
    trained_fake_quantize(x, scale, torch.tensor(0), QType(2, True)).sum().backward()
    assert float(scale.grad) == pytest.approx((-0.4 + 0.3 + 1 - 1) / math.sqrt(4 * 1), abs=1e-6)
    assert x.grad.tolist() == [1, 1, 0, 0]


def test_observed_ranges_move_a_hundredth_of_the_way():
    scale, zero_point = scale_and_zero_point(torch.tensor([-1.0]), torch.tensor([1.0]), QType(8, False))
    shared = InputTraining(scale[0], zero_point[0], QType(8, False), learned=False).train()
    low, high = float(shared.low), float(shared.high)
    shared(torch.tensor([-3.0, 0.5], requires_grad=True))
    shared(torch.tensor([-1.0, 5.0], requires_grad=True))  # another part of the same step
    shared.follow(shared.range_seen())
    assert float(shared.low) == pytest.approx(low + 0.01 * (-3 - low))
    assert float(shared.high) == pytest.approx(high + 0.01 * (5 - high))
    assert float(shared.scale) == pytest.approx((float(shared.high) - float(shared.low)) / 255, rel=1e-5)
    assert torch.isinf(shared.range_seen()).all(), "what was taken in is forgotten"


def test_a_step_with_nan_moves_no_range():
    shared = InputTraining(torch.tensor(0.1), torch.tensor(0), QType(8, True), learned=False).train()
    shared(torch.tensor([float("nan"), 1.0], requires_grad=True))
    before = float(shared.log_scale)
    shared.follow(shared.range_seen())
    assert float(shared.log_scale) == before


def test_layers_that_read_one_tensor_read_one_rounded_tensor():
    shared = InputTraining(torch.tensor(0.1), torch.tensor(0), QType(8, True), learned=True).train()
    x = torch.randn(5)
    first = shared(x)
    assert shared(x) is first
    x += 1  # the same object, another tensor
    assert shared(x) is not first


def test_weight_scales_follow_the_weight_and_keep_what_the_observer_clipped():
    rows = torch.randn(3, 40)
    scale = rows.abs().amax(1) / 7 * 0.6  # clipped to six tenths
    weights = WeightTraining(rows, scale, torch.zeros(3), QType(4, True), learned=False).train()
    weights(2 * rows)
    torch.testing.assert_close(weights.scale, 2 * scale)
    weights.following = False
    weights(rows)
    torch.testing.assert_close(weights.scale, 2 * scale)


def test_bfloat16_is_rounded_in_float32():
    shared = InputTraining(torch.tensor(0.1), torch.tensor(0), QType(8, True), learned=True)
    x = torch.randn(100)
    with torch.autocast("cpu", torch.bfloat16):
        found = shared(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, fake_quantize(x, shared.scale.detach(), torch.tensor(0), QType(8, True)))
