"""Integer layers: hand-worked numbers, exact fractions, and the simulation, bit for bit."""

from __future__ import annotations

from fractions import Fraction
from itertools import product as indices

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from quantasr.errors import RecipeError
from quantasr.numerics.qtypes import QType
from quantasr.quantize.integer import Form, Product, Quantized, layer
from quantasr.quantize.integer.arithmetic import same_padding

BITS = st.integers(2, 16)


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def per_tensor(x: Tensor, scale: float, zero_point: int, bits: int = 8, symmetric: bool = False) -> Quantized:
    qtype = QType(bits, symmetric)
    return Quantized.fixed(x, torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), qtype)


def weights_of(w: Tensor, qtype: QType) -> Quantized:
    """As a WeightQuantizer rounds."""
    from quantasr.numerics.observers import MinMax
    from quantasr.numerics.quantizers import WeightQuantizer

    quantizer = WeightQuantizer(qtype, MinMax, 0)
    quantizer.freeze(w)
    return Quantized(quantizer.integers, quantizer.scale, quantizer.zero_point, qtype)


def bits_of(x: Tensor) -> list[int]:
    """The patterns of float32, so that -0 and 0, and NaNs, are told apart."""
    return [int(value) for value in x.contiguous().view(torch.int32).flatten()]


def test_a_linear_layer_worked_by_hand() -> None:
    # x: scale 0.5, zero 4: [1, -1, 2.5] -> [6, 2, 9]; w: scale 0.25, zero 3: [0.5, -0.75, 0] -> [5, 0, 3]
    x, w = per_tensor(tensor([[1.0, -1.0, 2.5]]), 0.5, 4), per_tensor(tensor([[0.5, -0.75, 0.0]]), 0.25, 3)
    assert x.integers.tolist() == [[6, 2, 9]] and w.integers.tolist() == [[5, 0, 3]]
    # 57 - 3 * 17 - 4 * 8 + 3 * 4 * 3 = 10, and 10 * 0.125; the bias 0.3 is 2.4 -> 2 of those
    assert layer(x, w, None, Product()).tolist() == [[1.25]]
    assert layer(x, w, tensor([0.3]), Product()).tolist() == [[1.5]]


def test_padding_is_zero_and_not_the_integer_zero() -> None:
    x = per_tensor(tensor([[[1.0, 2.0]]]), 1.0, 100)
    w = per_tensor(tensor([[[1.0, 1.0, 1.0]]]), 1.0, 7)
    for form in Form:
        assert layer(x, w, None, Product(1, (1,), ((1, 1),), (1,)), form).tolist() == [[[3.0, 3.0]]]


def test_a_bias_that_32_bits_cannot_hold_is_added_as_it_is() -> None:
    x = per_tensor(tensor([[3.0]]), 1e-5, 0, 16)
    w = per_tensor(tensor([[0.001]]), 1e-6, 0, 16)
    for form in Form:
        (out,) = layer(x, w, tensor([1234.5]), Product(), form)[0].tolist()
        assert out == pytest.approx(1234.5 + 0.65535 * 0.001, abs=1e-4)  # x is cut at 0.65535


def test_sums_that_could_be_inexact_are_refused() -> None:
    wide = Quantized(torch.zeros(1, 2**20), torch.tensor(1.0), torch.tensor(0), QType(16, False))
    with pytest.raises(RecipeError, match=r"sums of 1048576 products of 16 and 16 bits pass 2\*\*53"):
        layer(wide, wide, None, Product())
    eight = Quantized(torch.zeros(1, 2**20), torch.tensor(1.0), torch.tensor(0), QType(8, False))
    assert layer(eight, eight, None, Product()).tolist() == [[0.0]]


def test_groups_of_inputs_have_no_integer_form() -> None:
    with pytest.raises(RecipeError, match="per_group"):
        Quantized(
            torch.zeros(1, 4), torch.ones(1, 2), torch.zeros(1, 2), QType(4, granularity="per_group", group_size=2)
        )


# Scales far apart, values far outside of the other values, and nothing but zeros.
MAGNITUDES = st.sampled_from([0.0, 1e-30, 1e-6, 0.3, 1.0, 50.0, 1e6, 1e15])


@st.composite
def linears(draw: st.DrawFn) -> tuple[Quantized, Quantized, Tensor | None]:
    rows, inputs, outputs = draw(st.integers(1, 4)), draw(st.integers(1, 40)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = tensor(rng.normal(draw(st.sampled_from([0.0, 3.0, -40.0])), 1, (rows, inputs)) * draw(MAGNITUDES))
    w = tensor(rng.standard_t(2, (outputs, inputs)) * draw(MAGNITUDES))
    if draw(st.booleans()):
        x[0, 0] = 100 * x.abs().max()
    symmetric = draw(st.booleans())
    granularity = draw(st.sampled_from(["per_tensor", "per_channel"]))
    weight = weights_of(w, QType(draw(BITS), symmetric, granularity))
    bias = tensor(rng.normal(0, 1, outputs) * draw(MAGNITUDES)) if draw(st.booleans()) else None
    return Quantized.of(x, QType(draw(BITS), draw(st.booleans()))), weight, bias


@settings(max_examples=300, deadline=None)
@given(linears())
def test_linear_layers_agree_with_their_simulation_bit_by_bit(case: tuple[Quantized, Quantized, Tensor | None]) -> None:
    x, weight, bias = case
    integer = layer(x, weight, bias, Product(), Form.INTEGER)
    assert bits_of(integer) == bits_of(layer(x, weight, bias, Product(), Form.SIMULATED))


@settings(max_examples=60, deadline=None)
@given(linears())
def test_linear_layers_are_the_exact_sum_rounded(case: tuple[Quantized, Quantized, Tensor | None]) -> None:
    x, weight, _ = case
    found = layer(x, weight, None, Product())
    rows, outputs = x.integers.tolist(), weight.integers.tolist()
    for i, c in indices(range(len(rows)), range(len(outputs))):
        scale, zero = (t[c] if t.ndim else t for t in (weight.scale, weight.zero_point))
        total = sum(
            Fraction(x.scale.item()) * (int(a) - int(x.zero_point)) * Fraction(scale.item()) * (int(b) - int(zero))
            for a, b in zip(rows[i], outputs[c], strict=True)
        )
        # float(Fraction) rounds once to float64; what is below the smallest float32 becomes zero.
        assert found[i, c].item() == np.float32(float(total))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Quantized, Quantized, Tensor | None, Product]:
    dims, groups = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    inputs, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 3)) for _ in range(dims)]
    dilation = [draw(st.integers(1, 2)) for _ in range(dims)]
    padding = [(draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(dims)]
    size = [d * (k - 1) + draw(st.integers(1, 6)) for k, d in zip(kernel, dilation, strict=True)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = tensor(rng.normal(draw(st.sampled_from([0.0, 2.0])), 1, (draw(st.integers(1, 2)), inputs, *size)))
    w = tensor(rng.normal(0, draw(st.sampled_from([1e-6, 0.3, 1e6])), (outputs, inputs // groups, *kernel)))
    granularity = draw(st.sampled_from(["per_tensor", "per_channel"]))
    weight = weights_of(w, QType(draw(BITS), draw(st.booleans()), granularity))
    bias = tensor(rng.normal(0, 1, outputs)) if draw(st.booleans()) else None
    strides = tuple(draw(st.integers(1, 3)) for _ in range(dims))
    product = Product(dims, strides, tuple(padding), tuple(dilation), groups)
    return Quantized.of(x, QType(draw(BITS), draw(st.booleans()))), weight, bias, product


@settings(max_examples=200, deadline=None)
@given(convolutions())
def test_convolutions_agree_with_their_simulation_bit_by_bit(
    case: tuple[Quantized, Quantized, Tensor | None, Product],
) -> None:
    x, weight, bias, product = case
    integer = layer(x, weight, bias, product, Form.INTEGER)
    assert bits_of(integer) == bits_of(layer(x, weight, bias, product, Form.SIMULATED))
    # And they are that convolution: the usual simulation, in float64, on what fake quantization gives.
    pads = [n for pair in reversed(product.padding) for n in pair]
    convolution = (functional.conv1d, functional.conv2d)[product.dims - 1]
    usual = convolution(
        functional.pad(x.simulated().double(), pads),
        weight.simulated().double(),
        None if bias is None else bias.double(),
        product.stride,
        0,
        product.dilation,
        product.groups,
    )
    step = float(x.scale.double() * weight.scale.double().max()) if bias is not None else 0.0  # of the bias's integers
    size = float(usual.abs().max()) + 1e-30
    torch.testing.assert_close(integer.double(), usual, rtol=1e-5, atol=1e-5 * size + step)


def test_with_scales_that_are_powers_of_two_plain_float64_gives_the_same_bits() -> None:
    """No recovery of integers here: dequantized products and their sums are exact in float64 by themselves."""
    rng = np.random.default_rng(0)
    for bits in (2, 5, 8, 16):
        x = per_tensor(tensor(rng.normal(0, 1, (5, 300))), 2.0 ** (3 - bits), 2 ** (bits - 1), bits)
        w = per_tensor(tensor(rng.normal(0, 1, (7, 300))), 2.0 ** (2 - bits), 2 ** (bits - 2), bits)
        expected = functional.linear(x.simulated().double(), w.simulated().double()).float()
        assert bits_of(layer(x, w, None, Product())) == bits_of(expected)


def test_the_usual_simulation_is_off_by_the_order_of_its_sums_alone() -> None:
    rng = np.random.default_rng(1)
    x = Quantized.of(tensor(rng.normal(0, 1, (50, 1024))), QType(8, False))
    w = weights_of(tensor(rng.normal(0, 0.05, (64, 1024))), QType(8, False))
    exact = layer(x, w, None, Product())
    usual = functional.linear(x.simulated(), w.simulated())
    off = (usual - exact).abs() / exact.abs().max()
    assert 0 < off.max() < 1e-5
    assert (usual != exact).float().mean() > 0.3


def test_same_padding_as_pytorch() -> None:
    x, w = torch.randn(1, 2, 9, 8), torch.randn(3, 2, 4, 3)
    product = Product(2, (1, 1), same_padding((4, 3), (1, 2)), (1, 2))
    found = product(product.padded(x, 0.0), w)
    torch.testing.assert_close(found, functional.conv2d(x, w, padding="same", dilation=(1, 2)))
