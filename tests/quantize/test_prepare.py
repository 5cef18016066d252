"""Quantizers on a live model: where they sit, why a layer has none, and that the float model is only a phase away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_hf
import torch
from tiny_nets import asr_model, quantized, recipe, simulate, waves
from torch import Tensor, nn

from quantasr import load_model
from quantasr.errors import RecipeError
from quantasr.numerics.quantizers import Phase
from quantasr.quantize import Prepared, calibrate, convert, prepare
from quantasr.recipes import builtin_names, builtin_recipe
from quantasr.sources import CtcModel


class Net(nn.Module):
    """A linear layer, one that is called with a keyword, one that is never called, and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.second = nn.Linear(32, 16)
        self.unused = nn.Linear(16, 16)
        self.table = nn.Embedding(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        return self.second(input=hidden) + self.table(torch.zeros(1, dtype=torch.long))


@pytest.fixture
def model() -> CtcModel:
    torch.manual_seed(0)
    return asr_model(Net())


def _run(prepared: Prepared, phase: Phase, x: np.ndarray) -> np.ndarray:
    with prepared.active(phase), torch.no_grad():
        return prepared.model.graph(torch.from_numpy(x)).numpy()


X = np.stack(waves(2, seed=5))


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
@pytest.mark.parametrize("storage", ["fp32", "fp16"])
def test_float_is_the_original_to_the_bit(model: CtcModel, mode: str, storage: str) -> None:
    with torch.no_grad():
        before = model.graph(torch.from_numpy(X)).numpy()
    prepared = quantized(model, recipe({"match": "*.first", "mode": mode}, float_storage=storage))
    simulated = simulate(prepared, X)
    assert np.abs(simulated - before).max() > 1e-3
    np.testing.assert_array_equal(_run(prepared, Phase.FLOAT, X), before)
    with torch.no_grad():
        np.testing.assert_array_equal(model.graph(torch.from_numpy(X)).numpy(), before)
    np.testing.assert_array_equal(simulate(prepared, X), simulated)


def test_the_model_stays_float_after_an_error_inside_a_phase(model: CtcModel) -> None:
    prepared = quantized(model, recipe({"match": "*.first"}))
    with torch.no_grad():
        before = model.graph(torch.from_numpy(X))
        with pytest.raises(KeyError), prepared.active(Phase.SIMULATE):
            raise KeyError("whatever")
        assert torch.equal(model.graph(torch.from_numpy(X)), before)


def test_training_mode_comes_back(model: CtcModel) -> None:
    model.module.train()
    prepared = quantized(model, recipe({"match": "*.first"}))
    assert model.module.training
    with prepared.active(Phase.SIMULATE):
        assert not model.module.training
    assert model.module.training


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
def test_the_plan_says_what_was_done_and_why_not(model: CtcModel, mode: str) -> None:
    prepared = quantized(model, recipe({"match": "*", "kind": "linear", "mode": mode}))
    plan = {row.path: row for row in prepared.plan}
    assert list(plan) == ["body.first", "body.second", "body.unused", "body.table"]
    assert plan["body.first"].qconfig.mode == plan["body.second"].qconfig.mode == mode
    assert (plan["body.unused"].qconfig.mode, plan["body.unused"].reason) == (
        "float",
        "it is never called when transcribing",
    )
    assert (plan["body.table"].qconfig.mode, plan["body.table"].reason) == ("float", "the recipe leaves it float")
    assert plan["body.first"].shape == (32, 16) and plan["body.first"].kind == "linear"
    assert set(prepared.weights) == {"body.first", "body.second"}
    assert set(prepared.inputs) == (set() if mode == "weight_only" else set(prepared.weights))
    # A layer that was left float is a plain layer again.
    assert type(model.module.get_submodule("body.unused")) is nn.Linear
    assert not model.module.get_submodule("body.unused")._forward_pre_hooks
    row = plan["body.first"].to_dict()
    assert row["mode"] == mode and ("input" in row) == (mode != "weight_only") and "reason" not in row
    assert plan["body.table"].to_dict() == {
        "path": "body.table",
        "kind": "embedding",
        "shape": [4, 16],
        "mode": "float",
        "reason": "the recipe leaves it float",
    }


def test_a_keyword_argument_is_an_input_too(model: CtcModel) -> None:
    prepared = quantized(model, recipe({"match": "*.second"}))
    assert prepared.inputs["body.second"].observer.count == 3 * 40 * 32  # type: ignore[union-attr]


def test_an_embedding_has_a_weight_but_no_input(model: CtcModel) -> None:
    prepared = quantized(model, recipe({"match": "*.table", "weight": {"bits": 4}}))
    assert list(prepared.weights) == ["body.table"] and not prepared.inputs
    assert len(model.module.get_submodule("body.table").weight.unique()) > 15
    with prepared.active(Phase.SIMULATE):
        table = model.module.get_submodule("body.table").weight
        assert isinstance(table, Tensor) and all(len(row.unique()) <= 15 for row in table)


def test_reduce_range_leaves_weights_7_bits(model: CtcModel) -> None:
    prepared = quantized(model, recipe({"match": "*.first"}))
    assert int(prepared.weights["body.first"].integers.abs().max()) == 63
    assert next(r for r in prepared.plan if r.path == "body.first").qconfig.weight.bits == 7
    prepared = quantized(asr_model(Net()), recipe({"match": "*.first"}, reduce_range=False))
    assert int(prepared.weights["body.first"].integers.abs().max()) == 127


def test_a_model_may_be_prepared_again(model: CtcModel) -> None:
    first = simulate(quantized(model, recipe({"match": "*.first", "weight": {"bits": 4}})), X)
    again = simulate(quantized(model, recipe({"match": "*.first", "weight": {"bits": 8}})), X)
    torch.manual_seed(0)
    fresh = simulate(quantized(asr_model(Net()), recipe({"match": "*.first", "weight": {"bits": 8}})), X)
    np.testing.assert_array_equal(again, fresh)
    assert np.abs(again - first).max() > 1e-3


def test_a_recipe_that_does_not_fit(model: CtcModel) -> None:
    with pytest.raises(RecipeError, match="matches no layer"):
        prepare(model, recipe({"match": "*.third"}))
    conv = asr_model(nn.Conv1d(16, 16, 3), channels_first=True)
    with pytest.raises(RecipeError, match="body: granularity per_group is for matrices"):
        prepare(conv, recipe({"match": "*", "weight": {"granularity": "per_group", "group_size": 8}}))
    prepared = prepare(model, recipe({"match": "*.unused"}))
    calibrate(prepared, waves(1))
    with pytest.raises(RecipeError, match="no layer that it names is ever called"):
        convert(prepared)


def test_float16_storage_is_simulated_and_only_then() -> None:
    torch.manual_seed(0)
    model = asr_model(nn.Sequential(nn.Linear(16, 300), nn.Linear(300, 16)))
    big = model.module.get_submodule("body.1").weight
    assert isinstance(big, Tensor)
    original = big.detach().clone()
    prepared = quantized(model, recipe({"match": "*.0"}, float_storage="fp16"))
    assert torch.equal(big, original)
    with prepared.active(Phase.SIMULATE):
        assert torch.equal(big, original.half().float()) and not torch.equal(big, original)
    assert torch.equal(big, original)


@pytest.mark.parametrize("name", ["wavlm-large", "wav2vec2-large", "bert-relative-key"])
def test_layers_fed_by_one_tensor_get_one_scale(name: str, tiny_hf_folder: Callable[[str], Path]) -> None:
    """Also that the projections of WavLM, whose own attention only takes their weights, are quantized at all."""
    model = load_model(tiny_hf_folder(name))
    prepared = quantized(model, builtin_recipe(model.family), tiny_hf.speech(0.5, 0.7))
    groups = {}
    for path, quantizer in prepared.inputs.items():
        parent, _, last = path.rpartition(".")
        if last in ("q_proj", "k_proj", "v_proj", "linear_q", "linear_k", "linear_v"):
            groups.setdefault(parent, []).append((float(quantizer.scale), int(quantizer.zero_point)))  # type: ignore[union-attr]
    assert len(groups) == 2
    assert all(len(group) == 3 and len(set(group)) == 1 for group in groups.values())
    assert not [row for row in prepared.plan if "never called" in row.reason]


@pytest.mark.parametrize("variant", ["default", "fast", "fastest"])
@pytest.mark.parametrize("name", tiny_hf.VARIANTS)
def test_built_in_recipes_fit_every_family(name: str, variant: str, tiny_hf_folder: Callable[[str], Path]) -> None:
    model = load_model(tiny_hf_folder(name))
    if f"{model.family}-{variant}" not in builtin_names():
        pytest.skip("there is none")
    prepared = quantized(model, builtin_recipe(model.family, variant), tiny_hf.speech(0.5))
    assert (prepared.products is not None) == (variant == "fastest")
    plan = {row.path: row for row in prepared.plan}
    quantized_share = sum(np.prod(r.shape) for r in plan.values() if r.qconfig.mode != "float")
    assert quantized_share > 0.4 * sum(np.prod(r.shape) for r in plan.values())
    assert plan["lm_head"].qconfig.mode == "float"
    first = [
        path for path in plan if "conv_layers.0." in path or ("feature_projection" in path and name.startswith("bert"))
    ]
    assert first and all(plan[path].qconfig.mode == "float" for path in first)
    assert not [row.path for row in plan.values() if row.kind == "depthwise_conv1d" and row.path in prepared.weights]
