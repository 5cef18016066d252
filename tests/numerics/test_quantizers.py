"""The modules that attach to layers: what they do in each phase, and the integers they keep."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from quantasr.errors import CalibrationError, RecipeError
from quantasr.numerics.observers import observer_factory
from quantasr.numerics.qtypes import BITS, QType
from quantasr.numerics.quantizers import DynamicInputQuantizer, InputQuantizer, Phase, Samples, WeightQuantizer

MIN_MAX = observer_factory("min_max")


def _weight_quantizer(weight: torch.Tensor, qtype: QType, axis: int = 0, observer: str = "min_max") -> WeightQuantizer:
    quantizer = WeightQuantizer(qtype, observer_factory(observer), axis)
    quantizer.freeze(weight)
    quantizer.phase = Phase.SIMULATE
    return quantizer


def test_an_input_passes_unchanged_until_it_is_simulated() -> None:
    quantizer = InputQuantizer(QType(8, False), MIN_MAX)
    x = torch.tensor([[-1.0, 0.013], [0.5, 3.0]])
    assert quantizer(x) is x
    assert quantizer.observer.count == 0
    quantizer.phase = Phase.OBSERVE
    assert quantizer(x) is x
    assert quantizer.observer.count == 4
    quantizer.freeze()
    assert float(quantizer.scale) == pytest.approx(4 / 255) and int(quantizer.zero_point) == 64
    quantizer.phase = Phase.SIMULATE
    assert not torch.equal(quantizer(x), x)
    torch.testing.assert_close(quantizer(x), x, atol=4 / 255, rtol=0)


def test_an_input_that_was_never_seen_has_no_scale() -> None:
    with pytest.raises(CalibrationError):
        InputQuantizer(QType(8, False), MIN_MAX).freeze()
    with pytest.raises(CalibrationError):
        DynamicInputQuantizer(QType(8, False)).freeze()


def test_input_formats_that_do_not_exist() -> None:
    with pytest.raises(RecipeError, match="per_tensor"):
        InputQuantizer(QType(8, False, "per_channel"), MIN_MAX)
    with pytest.raises(RecipeError, match="mode dynamic"):
        DynamicInputQuantizer(QType(8, True))


def test_one_tensor_is_sampled_once_unless_it_was_changed_in_place() -> None:
    samples = Samples()
    x = torch.randn(3, 4)
    first = samples.of(x)
    assert samples.of(x) is first
    assert samples.of(x.clone()) is not first
    first = samples.of(x)
    x.mul_(2)
    assert samples.of(x) is not first
    assert float(samples.of(x).high) == pytest.approx(float(x.max()))
    with torch.inference_mode():
        untracked = torch.randn(3)
        first = samples.of(untracked)
        assert samples.of(untracked) is not first, "changes of inference tensors cannot be seen"


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group"])
@pytest.mark.parametrize("size", [12, 13])
def test_weights_are_rounded_by_scales_of_their_own(bits: int, symmetric: bool, granularity: str, size: int) -> None:
    qtype = QType(bits, symmetric, granularity, 4 if granularity == "per_group" else None)
    weight = torch.randn(5, size, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, 5)[:, None]
    quantizer = _weight_quantizer(weight, qtype)
    groups = -(-size // 4)
    assert quantizer.scale.shape == {"per_tensor": (), "per_channel": (5,), "per_group": (5, groups)}[granularity]
    assert int(quantizer.integers.min()) >= qtype.quant_min and int(quantizer.integers.max()) <= qtype.quant_max
    back = quantizer(weight)
    step = {
        "per_tensor": lambda: quantizer.scale.expand(5, size),
        "per_channel": lambda: quantizer.scale[:, None].expand(5, size),
        "per_group": lambda: quantizer.scale.repeat_interleave(4, 1)[:, :size],
    }[granularity]()
    assert ((back - weight).abs() <= step * (1.0 if not symmetric else 0.5) * (1 + 1e-3)).all()
    # By hand: the scale of each group is its own largest magnitude, over the largest integer.
    if symmetric and granularity == "per_group":
        last = weight[:, (groups - 1) * 4 :].abs().amax(1) / qtype.quant_max
        torch.testing.assert_close(quantizer.scale[:, -1], last)


def test_the_channel_axis_of_a_transposed_convolution() -> None:
    weight = torch.randn(3, 4, 5) * torch.tensor([1.0, 10.0, 100.0, 1000.0])[None, :, None]
    quantizer = _weight_quantizer(weight, QType(8, True, "per_channel"), axis=1)
    torch.testing.assert_close(quantizer.scale, weight.abs().amax((0, 2)) / 127)
    assert ((quantizer(weight) - weight).abs() <= quantizer.scale[None, :, None] * 0.5001).all()


@pytest.mark.parametrize("observer", ["min_max", "mse", "percentile(99)"])
def test_rows_in_blocks_give_the_scales_of_single_rows(observer: str) -> None:
    weight = torch.randn(600, 24, generator=torch.Generator().manual_seed(0))  # more rows than one block holds
    qtype = QType(4, True, "per_channel")
    whole = _weight_quantizer(weight, qtype, observer=observer)
    for row in (0, 511, 512, 599):
        alone = _weight_quantizer(weight[row : row + 1], qtype, observer=observer)
        assert whole.scale[row] == alone.scale[0]


def test_a_weight_is_itself_again_in_float() -> None:
    layer = nn.Linear(6, 3)
    before = layer.weight.detach().clone()
    quantizer = WeightQuantizer(QType(4, True, "per_channel"), MIN_MAX, 0)
    parametrize.register_parametrization(layer, "weight", quantizer, unsafe=True)
    assert torch.equal(layer.weight, before)
    quantizer.phase = Phase.SIMULATE
    assert not torch.equal(layer.weight, before)
    assert len(layer.weight.unique()) <= 3 * 15
    quantizer.phase = Phase.FLOAT
    assert torch.equal(layer.weight, before)


def test_groups_are_for_matrices() -> None:
    quantizer = WeightQuantizer(QType(4, True, "per_group", 8), MIN_MAX, 0)
    quantizer.check(torch.zeros(4, 8), "linear")
    with pytest.raises(RecipeError, match="conv: granularity per_group is for matrices"):
        quantizer.check(torch.zeros(4, 8, 3), "conv")


def test_a_weight_with_nan_is_refused() -> None:
    with pytest.raises(CalibrationError, match="NaN"):
        _weight_quantizer(torch.tensor([[1.0, float("nan")]]), QType(8, True))
