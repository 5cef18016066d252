"""Observers: streaming equals one pass, and the ranges are those of raw data and of hand-worked numbers."""

import numpy as np
import pytest
import torch
from torch import Tensor

from quantasr.errors import CalibrationError, RecipeError
from quantasr.numerics.fake_quantize import quantize, scale_and_zero_point
from quantasr.numerics.histogram import BINS, Sample
from quantasr.numerics.observers import OBSERVERS, Entropy, HistogramObserver, MeanSquaredError, Observer, Percentile
from quantasr.numerics.observers import observer_factory as factory
from quantasr.numerics.qtypes import QType

INT8 = QType(8, True)
UINT8 = QType(8, False)


def _values(count: int = 50_000, seed: int = 0) -> Tensor:
    """Laplace with a shift and a few outliers: heavy tails, not symmetric."""
    rng = np.random.default_rng(seed)
    x = rng.laplace(0.1, 0.5, count)
    x[::5000] *= 8
    return torch.from_numpy(x.astype(np.float32))


def _seen(name: str, *tensors: Tensor) -> Observer:
    observer = factory(name)(1)
    for tensor in tensors:
        observer.observe(tensor.reshape(1, -1))
    return observer


@pytest.mark.parametrize("name", ["min_max", "percentile(99.9)", "mse", "entropy"])
@pytest.mark.parametrize("qtype", [INT8, UINT8], ids=str)
def test_any_order_and_any_chunks_give_what_one_pass_gives(name: str, qtype: QType) -> None:
    x = _values(20_000)
    whole = _seen(name, x).range(qtype)
    for parts in (x.split(777), x.split(6000)[::-1], x.sort().values.split(999), x.abs().sort().indices.split(5000)):
        pieces = [x[p] if p.dtype == torch.int64 else p for p in parts]
        assert _seen(name, *pieces).range(qtype) == whole


def test_the_histogram_is_the_same_whatever_the_order() -> None:
    x = _values(10_000) * 1e3
    one, many = Percentile(), Percentile()
    one.observe(x[None])
    for part in x.abs().sort().indices.split(321):  # grows all the time, so it widens again and again
        many.observe(x[part][None])
    assert torch.equal(one.histogram, many.histogram)
    assert torch.equal(one.width, many.width)
    assert one.histogram.sum() == x.numel()


def test_bins_hold_what_numpy_counts() -> None:
    x = _values(10_000)
    observer = Percentile()
    observer.observe(x[None])
    width = float(observer.width)
    edges = (np.arange(BINS + 1) - BINS // 2) * width
    expected, _ = np.histogram(x.numpy().astype(np.float64), edges)
    np.testing.assert_array_equal(observer.histogram[0].numpy(), expected)
    assert width * BINS / 4 <= float(x.abs().max()) < width * BINS / 2, "the bins are as fine as they can be"


@pytest.mark.parametrize("name", OBSERVERS)
def test_memory_does_not_grow(name: str) -> None:
    observer = factory(name)(2)

    def size() -> int:
        return sum(v.numel() for v in vars(observer).values() if isinstance(v, Tensor))

    observer.observe(torch.randn(2, 10))
    before = size()
    for n in (1000, 10, 5000):
        observer.observe(torch.randn(2, n) * n)
    assert size() == before
    assert not any(isinstance(v, list) for v in vars(observer).values())
    assert observer.count == 6020


@pytest.mark.parametrize("name", OBSERVERS)
def test_channels_are_observed_apart(name: str) -> None:
    rows = torch.stack([_values(3000, 1), _values(3000, 2) * 1e-4, _values(3000, 3).abs() * 1e4])
    together = factory(name)(3)
    together.observe(rows[:, :1000])
    together.observe(rows[:, 1000:])
    for qtype in (INT8, UINT8):
        low, high = together.range(qtype)
        for channel, row in enumerate(rows):
            expected = _seen(name, row[:1000], row[1000:]).range(qtype)
            assert (low[channel], high[channel]) == expected


def test_moving_average_by_hand() -> None:
    observer = factory("moving_average(0.25)")(1)
    for low, high in ((-1.0, 4.0), (-3.0, 0.0), (-1.0, 8.0)):
        observer.observe(torch.tensor([[low, 0.0, high]]))
    # low: -1, -1.5, -1.375; high: 4, 3, 4.25
    assert observer.range(UINT8) == (torch.tensor([-1.375]), torch.tensor([4.25]))


@pytest.mark.parametrize("percent", [99.99, 99.9, 99.0, 90.0])
def test_percentile_is_numpys_within_a_bin(percent: float) -> None:
    x = _values()
    observer = _seen(f"percentile({percent})", x[:1000], x[1000:])
    assert isinstance(observer, Percentile)
    bin_width = float(observer.width)
    low, high = observer.range(UINT8)
    tail = (100 - percent) / 2
    raw = x.numpy().astype(np.float64)
    # Between two values numpy draws a line, so beside the bin the gap to the next value counts.
    for found, at in ((low, tail), (high, 100 - tail)):
        below, above = np.percentile(raw, at, method="lower"), np.percentile(raw, at, method="higher")
        assert below - bin_width <= float(found) <= above + bin_width
    low, high = observer.range(INT8)
    assert low == -high
    below = np.percentile(np.abs(raw), percent, method="lower")
    assert below - bin_width <= float(high) <= np.percentile(np.abs(raw), percent, method="higher") + bin_width


def test_percentile_100_is_min_max() -> None:
    x = _values(5000)
    for qtype in (INT8, UINT8):
        low, high = _seen("percentile(100)", x).range(qtype)
        a, b = scale_and_zero_point(low, high, qtype), scale_and_zero_point(*_seen("min_max", x).range(qtype), qtype)
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def _error(x: Tensor, low: float, high: float, qtype: QType) -> float:
    scale, zero_point = scale_and_zero_point(torch.tensor([low]), torch.tensor([high]), qtype)
    return float(((quantize(x, scale, zero_point, qtype) - zero_point) * scale - x).double().square().mean())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_is_as_good_as_brute_force_on_the_raw_data(bits: int, symmetric: bool) -> None:
    x, qtype = _values(8000), QType(bits, symmetric)
    low, high = _seen("mse", x[:100], x[100:]).range(qtype)
    found = _error(x, float(low), float(high), qtype)
    most, least = float(x.max()), float(x.min())
    grid = np.linspace(1.0, 0.01, 60)
    if symmetric:
        bound = max(most, -least)
        best = min(_error(x, -bound * g, bound * g, qtype) for g in grid)
    else:
        best = min(_error(x, least * a, most * b, qtype) for a in grid[::3] for b in grid)
    assert found <= best * 1.03
    assert found < _error(x, least, most, qtype), "clipping the outliers must pay here"


def test_mse_keeps_the_whole_range_of_evenly_spread_values() -> None:
    low, high = _seen("mse", torch.linspace(-1, 1, 20_001)).range(INT8)
    assert float(high) == pytest.approx(1.0, abs=0.02) and low == -high


def test_entropy_clips_a_heavy_tail_and_keeps_an_even_spread() -> None:
    rng = np.random.default_rng(0)
    heavy = rng.standard_t(2.5, 200_000).astype(np.float32)
    low, high = _seen("entropy", torch.from_numpy(heavy)).range(INT8)
    # What is clipped is rare, and the range that is left is far from the most extreme value.
    assert float(high) < 0.5 * np.abs(heavy).max()
    assert np.mean(np.abs(heavy) > float(high)) < 0.01
    assert float(high) > np.percentile(np.abs(heavy), 95)
    low, high = _seen("entropy", torch.linspace(-1, 1, 100_000)).range(INT8)
    assert float(high) > 0.9 and low == -high


def test_entropy_of_one_sided_values_keeps_zero_as_the_lower_end() -> None:
    x = torch.from_numpy(np.random.default_rng(0).exponential(1.0, 50_000).astype(np.float32))
    low, high = _seen("entropy", x).range(UINT8)
    assert float(low) <= 0.001 and 2 < float(high) <= float(x.max())


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("qtype", [INT8, UINT8], ids=str)
@pytest.mark.parametrize("value", [0.0, 3.5, -3.5, 1e-30, 1e30, -1e-38])
def test_a_constant_comes_back_as_itself(name: str, qtype: QType, value: float) -> None:
    observer = factory(name)(1)
    observer.observe(torch.full((1, 100), value))
    observer.observe(torch.full((1, 7), value))
    low, high = observer.range(qtype)
    assert torch.isfinite(low).all() and torch.isfinite(high).all()
    scale, zero_point = scale_and_zero_point(low, high, qtype)
    back = (quantize(torch.tensor([value]), scale, zero_point, qtype) - zero_point) * scale
    if abs(value) > 1e-35:
        # A range chosen from a histogram may clip within the constant's bin.
        assert float(back) == pytest.approx(value, rel=2e-2)
    else:
        assert abs(float(back)) <= 1e-30


@pytest.mark.parametrize("name", OBSERVERS)
def test_zeros_before_values_change_no_bin(name: str) -> None:
    x = _values(2000)
    observer = factory(name)(1)
    observer.observe(torch.zeros(1, 50))
    observer.observe(x[None])
    assert observer.count == 2050
    if isinstance(observer, HistogramObserver):
        other = factory(name)(1)
        other.observe(torch.cat([x, torch.zeros(50)])[None])
        assert isinstance(other, HistogramObserver)
        assert torch.equal(observer.histogram, other.histogram)


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused_and_leave_no_trace(name: str, bad: float) -> None:
    observer = _seen(name, torch.ones(3))
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        observer.observe(torch.tensor([[0.0, bad]]))
    assert observer.count == 3


@pytest.mark.parametrize("name", OBSERVERS)
def test_nothing_seen_is_an_error(name: str) -> None:
    observer = factory(name)(1)
    observer.observe(torch.zeros(1, 0))
    with pytest.raises(CalibrationError, match="saw no values"):
        observer.range(INT8)


def test_a_shared_sample_is_counted_once_and_gives_the_same() -> None:
    x = _values(3000)
    sample = Sample(x[None])
    first, second = Percentile(), MeanSquaredError()
    second.observe(torch.full((1, 4), 1e4))  # another width, so the sample has to be widened for this one
    first.observe(sample)
    counted = sample.histogram()
    second.observe(sample)
    assert sample.histogram() is counted
    alone = MeanSquaredError()
    alone.observe(torch.full((1, 4), 1e4))
    alone.observe(x[None])
    assert torch.equal(second.histogram, alone.histogram)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("median", "'median' is unknown: choose one of min_max"),
        ("", "is unknown"),
        ("percentile(99.9", "is unknown"),
        ("percentile()", "not a number"),
        ("percentile(many)", "not a number"),
        ("percentile(50)", "above 50"),
        ("percentile(100.1)", "at most 100"),
        ("percentile(nan)", "above 50"),
        ("moving_average(0)", "above 0"),
        ("moving_average(1.5)", "at most 1"),
        ("moving_average(nan)", "above 0"),
        ("mse(3)", "only percentile and moving_average"),
    ],
)
def test_unknown_observers(name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        factory(name)


def test_an_argument_reaches_the_observer() -> None:
    observer = factory("percentile(99.5)")(3)
    assert isinstance(observer, Percentile)
    assert (observer.percentile, len(observer.low)) == (99.5, 3)
    assert isinstance(factory("entropy")(1), Entropy)
