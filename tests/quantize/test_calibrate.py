"""Calibration: streaming, bounded, the same in any order, and clear about what cannot be used."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tiny_nets import WIDTH, asr_model, recipe, simulate, waves
from torch import Tensor, nn

from quantasr.errors import AudioError, CalibrationError
from quantasr.numerics.quantizers import Phase
from quantasr.quantize import Prepared, calibrate, convert, prepare


class Attention(nn.Module):
    """Two products of activations in one module, and one in another."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(1, 2) / 4
        return torch.bmm(torch.softmax(scores, -1), self.v(x))


def _prepared(**changes: object) -> Prepared:
    torch.manual_seed(0)
    return prepare(asr_model(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))), recipe(**changes))


def _scales(prepared: Prepared) -> dict[str, tuple[float, int]]:
    convert(prepared)
    return {path: (float(q.scale), int(q.zero_point)) for path, q in prepared.inputs.items()}  # type: ignore[union-attr]


def test_a_generator_is_consumed_one_at_a_time() -> None:
    prepared = _prepared()
    counts = []

    def stream() -> Iterator[np.ndarray]:
        for wave in waves(5):
            counts.append(prepared.inputs["body.0"].observer.count)  # type: ignore[union-attr]
            yield wave

    assert calibrate(prepared, stream()) == 5
    assert counts == [i * 40 * WIDTH for i in range(5)]


def test_scales_are_the_same_in_any_order_and_hand_worked() -> None:
    speech = [*waves(2, 40), *waves(2, 7, seed=8), waves(1, 100, seed=9)[0] * 3]
    observer = {"input": {"observer": "min_max"}}
    found = []
    for order in (speech, speech[::-1]):
        prepared = _prepared(defaults=observer)
        calibrate(prepared, order)
        found.append(_scales(prepared))
    assert found[0] == found[1]
    values = np.concatenate(speech)
    span = float(values.max()) - float(values.min())
    assert found[0]["body.0"] == (pytest.approx(span / 255, rel=1e-6), round(-float(values.min()) / span * 255))
    for name in ("percentile(99.9)", "mse", "entropy"):
        scales = []
        for order in (speech, speech[::-1]):
            prepared = _prepared(defaults={"input": {"observer": name}})
            calibrate(prepared, order)
            scales.append(_scales(prepared))
        assert scales[0] == scales[1]


def test_long_recordings_are_cut_as_when_transcribing() -> None:
    prepared = _prepared()
    lengths = []
    prepared.model.module.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1] / 1600))
    calibrate(prepared, [waves(1, 8000)[0]])  # 80 s
    assert max(lengths) <= 30.0 and len(lengths) == 3


def test_short_recordings_are_filled_up() -> None:
    prepared = _prepared()
    assert calibrate(prepared, [np.ones(3, np.float32)]) == 1
    assert prepared.inputs["body.0"].observer.count == WIDTH  # type: ignore[union-attr]


def test_weights_stay_float_while_observing() -> None:
    prepared = _prepared(defaults={"weight": {"bits": 2}, "input": {"observer": "min_max"}})
    calibrate(prepared, waves())
    with torch.no_grad():
        hidden = torch.relu(
            prepared.model.module.get_submodule("body.0")(torch.from_numpy(np.stack(waves())).reshape(-1, 16))
        )
    assert float(prepared.inputs["body.2"].observer.high) == pytest.approx(float(hidden.max()), rel=1e-5)  # type: ignore[union-attr]


def test_no_recordings() -> None:
    with pytest.raises(CalibrationError, match="no calibration recordings"):
        calibrate(_prepared(), [])
    with pytest.raises(CalibrationError, match="no calibration recordings"):
        calibrate(_prepared(), iter(()))


@pytest.mark.parametrize(
    "bad", [np.zeros(0), np.array([0.0, np.nan] * 40), np.array([0.0, np.inf] * 40), np.zeros((2, 80))]
)
def test_recordings_that_cannot_be_used(bad: np.ndarray) -> None:
    with pytest.raises(AudioError):
        calibrate(_prepared(), [*waves(1), bad.astype(np.float32)])


def test_a_layer_that_gives_nan() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(torch.log(x))  # NaN where the wave is negative

    with pytest.raises(CalibrationError, match="NaN or infinity"):
        calibrate(prepare(asr_model(Broken()), recipe()), waves(1))


def test_converting_without_calibration() -> None:
    with pytest.raises(CalibrationError, match="calibrate before converting"):
        convert(_prepared())
    with pytest.raises(CalibrationError, match="never called"):
        convert(_prepared(defaults={"mode": "dynamic"}))


def test_silence_gives_scales_that_work() -> None:
    prepared = _prepared()
    calibrate(prepared, [np.zeros(WIDTH * 10, np.float32)])
    convert(prepared)
    assert np.isfinite(simulate(prepared, np.stack(waves(1)))).all()


def test_attention_products_are_observed_from_the_first_recording_on() -> None:
    torch.manual_seed(0)
    chosen = recipe({"match": "*.v"}, attention_products=True)
    prepared = prepare(asr_model(Attention()), chosen)
    calibrate(prepared, waves(3))
    assert prepared.products is not None
    (q, k), (probabilities, v) = prepared.products.quantizers.values()
    assert [x.observer.count for x in (q, k, v)] == [3 * 40 * 16] * 3
    assert probabilities.observer.count == 3 * 40 * 40
    convert(prepared)
    x = torch.from_numpy(np.stack(waves(1, seed=6)))
    body: Attention = prepared.model.module.get_submodule("body")  # type: ignore[assignment]
    with prepared.active(Phase.SIMULATE), torch.no_grad():
        simulated = prepared.model.graph(x)
        frames = x.reshape(1, -1, WIDTH)
        scores = torch.matmul(q(body.q(frames)), k(body.k(frames).transpose(1, 2))) / 4
        expected = torch.matmul(probabilities(torch.softmax(scores, -1)), v(body.v(frames)))
    torch.testing.assert_close(simulated, expected)
    with torch.no_grad():
        assert (prepared.model.graph(x) - simulated).abs().max() > 1e-4


def test_products_are_left_alone_unless_the_recipe_asks() -> None:
    prepared = prepare(asr_model(Attention()), recipe({"match": "*.v"}))
    assert prepared.products is None
