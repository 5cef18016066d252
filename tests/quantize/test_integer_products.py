"""Live models in integers: attached, of any framework's classes, and taken off again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from quantasr import load_model, sample
from quantasr.errors import RecipeError
from quantasr.numerics.qtypes import QType
from quantasr.numerics.quantizers import Phase
from quantasr.quantize import Prepared, calibrate, convert, prepare
from quantasr.quantize.integer import Form, integer_products
from quantasr.recipes import Recipe, Rule
from quantasr.recipes.recipe import QConfig
from quantasr.speech.manifest import read_manifest

WAVES = [u.load(8000) for u in read_manifest(sample.calibration())[:3]]
A8 = QType(8, symmetric=False)
PAPER = QConfig("static", QType(8, False), A8, input_observer="min_max")


def converted(where: Path | str, qconfig: QConfig = PAPER, match: str = "*") -> Prepared:
    model = load_model(where)
    waves = WAVES if model.sample_rate == 8000 else [np.repeat(wave, 2) for wave in WAVES]
    prepared = prepare(model, Recipe("integers", (Rule(match),), defaults=qconfig))
    calibrate(prepared, waves)
    convert(prepared)
    return prepared


@pytest.fixture(scope="module")
def digits() -> Prepared:
    return converted(sample.model())


@pytest.mark.parametrize("inputs", [None, A8, QType(4, False)])
def test_integers_and_simulation_give_the_same_log_probs_bit_by_bit(digits: Prepared, inputs: QType | None) -> None:
    found = []
    for form in Form:
        with integer_products(digits, inputs=inputs, form=form) as products:
            found.append(digits.model.logprobs(WAVES))
        assert products.met == set(products.layers) == set(digits.weights)
    for one, other in zip(*found, strict=True):
        assert one.tobytes() == other.tobytes()


def test_calibrated_integers_are_the_usual_simulation_up_to_its_own_rounding(digits: Prepared) -> None:
    original = digits.model.logprobs(WAVES)
    with digits.active(Phase.SIMULATE):
        usual = digits.model.logprobs(WAVES)
    with integer_products(digits) as _:
        integers = digits.model.logprobs(WAVES)
    for float_, one, other in zip(original, usual, integers, strict=True):
        quantized, off = np.abs(one - float_).mean(), np.abs(one - other).mean()
        assert 0 < off < quantized  # integers of biases, and last bits that later layers make larger
        assert (one.argmax(1) == other.argmax(1)).mean() > 0.95
    for before, after in zip(original, digits.model.logprobs(WAVES), strict=True):
        assert before.tobytes() == after.tobytes()  # nothing is left behind


def test_only_the_layers_of_the_recipe() -> None:
    prepared = converted(sample.model(), match="wav2vec2.encoder.layers.0")
    with integer_products(prepared) as products:
        prepared.model.logprobs(WAVES)
    assert products.met == set(products.layers)
    assert products.met and all(path.startswith("wav2vec2.encoder.layers.0.") for path in products.met)


def test_weights_alone_leave_the_products_in_float(digits: Prepared) -> None:
    prepared = converted(sample.model(), replace(PAPER, mode="weight_only"))
    with integer_products(prepared) as products:
        found = prepared.model.logprobs(WAVES)
    with prepared.active(Phase.SIMULATE):
        expected = prepared.model.logprobs(WAVES)
    assert not products.layers
    for one, other in zip(found, expected, strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("name", ["conformer"])
def test_a_frameworks_own_classes(tiny_nemo_file: Callable[[str], Path], name: str) -> None:
    prepared = converted(tiny_nemo_file(name), replace(PAPER, weight=QType(16, False), input=QType(16, False)))
    waves = [np.repeat(wave, 2) for wave in WAVES]
    original = prepared.model.logprobs(waves)
    with integer_products(prepared, inputs=QType(16, False)) as products:
        integers = prepared.model.logprobs(waves)
    assert products.met == set(products.layers) == set(prepared.weights)
    for one, other in zip(original, integers, strict=True):
        np.testing.assert_allclose(one, other, atol=0.02)  # 16 bits are nearly float


def test_one_weight_with_two_calibrated_inputs_is_refused() -> None:
    model = load_model(sample.model())
    layers = dict(model.module.named_modules())
    one, other = (layers[f"wav2vec2.encoder.layers.0.attention.{name}_proj"] for name in "qk")
    other.weight = one.weight
    prepared = prepare(model, Recipe("tied", (Rule("wav2vec2.encoder.layers.0.attention"),), defaults=PAPER))
    calibrate(prepared, WAVES)
    convert(prepared)
    with (
        pytest.raises(RecipeError, match=r"q_proj.* share one weight|k_proj.* share one weight"),
        integer_products(prepared),
    ):
        pass
    assert torch.is_tensor(model.module.get_submodule("wav2vec2.encoder.layers.0.attention.q_proj").weight)
