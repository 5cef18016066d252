"""The arithmetic against hand-worked numbers, PyTorch's own fake quantization, and ONNX's reference."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from quantasr.numerics.fake_quantize import (
    dequantize_weight,
    dynamic_fake_quantize,
    fake_quantize,
    quantize,
    scale_and_zero_point,
)
from quantasr.numerics.qtypes import BITS, QType

_ONNX_TYPES = {
    "int4": TensorProto.INT4,
    "uint4": TensorProto.UINT4,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int16": TensorProto.INT16,
    "uint16": TensorProto.UINT16,
}


def _scale(low: float, high: float, qtype: QType) -> tuple[float, int]:
    scale, zero_point = scale_and_zero_point(torch.tensor([low]), torch.tensor([high]), qtype)
    assert zero_point.dtype == torch.int32
    return scale.item(), int(zero_point.item())


@pytest.mark.parametrize(
    ("low", "high", "qtype", "scale", "zero_point"),
    [
        (-1.0, 3.0, QType(8, False), 4 / 255, 64),  # 255 / 4 = 63.75
        (-2.0, 2.54, QType(8, True), 2.54 / 127, 0),
        (-2.54, 2.0, QType(8, True), 2.54 / 127, 0),
        (1.0, 3.0, QType(8, False), 3 / 255, 0),  # widened to hold zero
        (-3.0, -1.0, QType(8, False), 3 / 255, 255),
        (-1.0, 1.0, QType(2, True), 1.0, 0),
        (-1.0, 2.0, QType(2, False), 1.0, 1),
        (0.0, 15.0, QType(4, False), 1.0, 0),
        (-7.0, 7.0, QType(4, True), 1.0, 0),
        (-1.0, 1.0, QType(16, False), 2 / 65535, 32768),
        (0.0, 0.0, QType(8, False), 1.0, 0),
        (0.0, 0.0, QType(8, True), 1.0, 0),
        (1e-42, 1e-42, QType(8, True), 1.0, 0),  # nothing that float32 can divide by
    ],
)
def test_hand_worked_scales(low: float, high: float, qtype: QType, scale: float, zero_point: int) -> None:
    found = _scale(low, high, qtype)
    assert found == (pytest.approx(scale, rel=1e-6), zero_point)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_is_exact_and_the_error_inside_the_range_is_at_most_half_a_step(bits: int, symmetric: bool) -> None:
    qtype = QType(bits, symmetric)
    low, high = torch.tensor([-0.7]), torch.tensor([2.1])
    scale, zero_point = scale_and_zero_point(low, high, qtype)
    x = torch.cat([torch.zeros(1), torch.linspace(-0.7, 2.1, 1001)])
    y = fake_quantize(x, scale[0], zero_point[0], qtype)
    assert y[0] == 0
    # An affine zero point is rounded, which shifts the range by up to half a step.
    slack = 0.5 if symmetric else 1.0
    assert (y - x).abs().max() <= slack * scale[0] + 1e-6  # float32 cannot say it finer near 2
    integers = quantize(x, scale[0], zero_point[0], qtype)
    assert integers.min() >= qtype.quant_min and integers.max() <= qtype.quant_max
    assert torch.equal(integers, integers.round())


def test_ties_go_to_the_even_integer() -> None:
    qtype = QType(8, True)
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.49, 3.51])
    assert fake_quantize(x, torch.tensor(1.0), torch.tensor(0), qtype).tolist() == [0, 2, 2, 0, -2, -2, 3, 4]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_values_and_gradients_are_those_of_torch_per_tensor(bits: int, symmetric: bool) -> None:
    qtype = QType(bits, symmetric)
    scale, zero_point = scale_and_zero_point(torch.tensor([-0.9]), torch.tensor([1.3]), qtype)
    # No ties: PyTorch rounds after adding the zero point, so half way it goes elsewhere than ONNX when that is odd.
    values = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    mine, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()
    y = fake_quantize(mine, scale[0], zero_point[0], qtype)
    expected = torch.fake_quantize_per_tensor_affine(
        theirs, float(scale), int(zero_point), qtype.quant_min, qtype.quant_max
    )
    # PyTorch multiplies by 1 / scale, so a value beside a rounding border may land on the other side.
    differs = (y - expected).abs() > 1e-6
    assert differs.float().mean() < (1e-3 if bits <= 8 else 0.02)
    assert (y - expected).abs().max() <= scale * 1.01
    weights = torch.linspace(-1, 1, len(values))
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    assert mine.grad is not None and theirs.grad is not None
    assert torch.equal(mine.grad[~differs], theirs.grad[~differs])
    assert (mine.grad == 0).any() and (mine.grad != 0).any()


def test_the_gradient_is_straight_through_inside_and_zero_outside() -> None:
    x = torch.tensor([-200.0, -127.0, -0.4, 0.0, 126.9, 127.4, 128.0], requires_grad=True)
    fake_quantize(x, torch.tensor(1.0), torch.tensor(0), QType(8, True)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("storage_bits", [4, 8, 16])
@pytest.mark.parametrize("symmetric", [True, False])
def test_values_are_those_of_the_onnx_reference(storage_bits: int, symmetric: bool) -> None:
    """Over values on and beside every rounding border: integers and real values agree to the last bit."""
    qtype = QType(storage_bits, symmetric)
    scale, zero_point = scale_and_zero_point(torch.tensor([-0.9]), torch.tensor([1.3]), qtype)
    x = torch.cat([torch.randn(2000, generator=torch.Generator().manual_seed(1)), _ties(scale[0])])
    # ONNX saturates to the whole of the storage; a symmetric format leaves its lowest value out.
    x = x.clamp(min=float((qtype.quant_min - zero_point) * scale))
    kind = _ONNX_TYPES[qtype.storage]
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["y"]),
        ],
        "reference",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])],
        [
            helper.make_tensor("scale", TensorProto.FLOAT, [], scale.tolist()),
            helper.make_tensor("zero_point", kind, [], zero_point.tolist()),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    onnx.checker.check_model(model)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x.numpy()})
    np.testing.assert_array_equal(fake_quantize(x, scale[0], zero_point[0], qtype).numpy(), expected)


@pytest.mark.parametrize("low_high", [(-1.0, 3.0), (0.2, 3.0), (-3.0, -0.2), (0.0, 0.0)])
def test_dynamic_is_that_of_the_onnx_reference(low_high: tuple[float, float]) -> None:
    x = torch.empty(500).uniform_(*low_high, generator=torch.Generator().manual_seed(2)) if any(low_high) else None
    x = torch.zeros(5) if x is None else x
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero_point"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["y"]),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "reference",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])],
        ),
        opset_imports=[helper.make_opsetid("", 21)],
    )
    expected = (
        np.zeros(5, np.float32) if not any(low_high) else ReferenceEvaluator(model).run(None, {"x": x.numpy()})[0]
    )
    np.testing.assert_allclose(dynamic_fake_quantize(x).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_per_channel_are_those_of_torch(symmetric: bool) -> None:
    qtype = QType(8, symmetric, "per_channel")
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(3)) * torch.logspace(-2, 1, 6)[:, None]
    scale, zero_point = scale_and_zero_point(weight.amin(1), weight.amax(1), qtype)
    integers = quantize(weight, scale[:, None], zero_point[:, None], qtype)
    mine = dequantize_weight(integers, scale, zero_point, qtype, axis=0)
    expected = torch.fake_quantize_per_channel_affine(weight, scale, zero_point, 0, qtype.quant_min, qtype.quant_max)
    torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-7)


def test_a_last_short_group_has_a_scale_of_its_own() -> None:
    qtype = QType(8, True, "per_group", 2)
    integers = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
    scale = torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]])
    real = dequantize_weight(integers, scale, torch.zeros(2, 3, dtype=torch.int32), qtype, axis=0)
    assert real.tolist() == [[1, 2, 30, 40, 500], [12, 14, 160, 180, 2000]]


def _ties(scale: torch.Tensor) -> torch.Tensor:
    """Values half way between two integers, as nearly as float32 has them."""
    return (torch.arange(-100, 100) + 0.5) * scale
