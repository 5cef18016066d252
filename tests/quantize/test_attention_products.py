"""Attention products: found while calibrating, quantized in the simulation, named as their nodes in the graph."""

import torch
from torch import Tensor, nn

from quantasr.numerics.observers import observer_factory
from quantasr.numerics.qtypes import QType
from quantasr.numerics.quantizers import OperandQuantizer, Phase
from quantasr.quantize.functional import ProductQuantizers


class Attention(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.transpose(1, 2), -1) @ v


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attention(q, k, v)


def test_both_products_are_observed_and_quantized() -> None:
    torch.manual_seed(0)
    model, (q, k, v) = Model(), torch.randn(3, 2, 5, 4).unbind(0)
    products = ProductQuantizers(model, lambda _: OperandQuantizer(QType(8, False), observer_factory("min_max")))
    products.phase = Phase.OBSERVE
    with products:
        original = model(q, k, v)
    assert list(products.quantizers) == ["attention.MatMul", "attention.MatMul_1"]
    for pair in products.quantizers.values():
        for quantizer in pair:
            quantizer.freeze()
            quantizer.phase = Phase.SIMULATE
    (left, right), (probabilities, values) = products.quantizers.values()
    assert left.qtype.symmetric and right.qtype.symmetric and values.qtype.symmetric
    assert not probabilities.qtype.symmetric and int(probabilities.zero_point) == 0

    def rounded(x: Tensor, low: int, high: int, scale: float) -> Tensor:
        return (x / scale).round().clamp(low, high) * scale

    qq, kk, vv = (rounded(x, -127, 127, float(x.abs().max()) / 127) for x in (q, k, v))
    p = torch.softmax(qq @ kk.transpose(1, 2), -1)
    by_hand = rounded(p, 0, 255, float(torch.softmax(q @ k.transpose(1, 2), -1).max()) / 255) @ vv
    with products:
        simulated = model(q, k, v)
    torch.testing.assert_close(simulated, by_hand, atol=1e-6, rtol=0)
    assert 0 < (simulated - original).abs().max() < 0.1
    torch.testing.assert_close(model(q, k, v), original)  # outside of the mode nothing is quantized
