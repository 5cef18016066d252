"""Copies of Kaldi models with weights of few bits: what changes, what does not, and that nothing is half-written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from quantasr import load_model, sample
from quantasr.errors import ArtifactError, ModelLoadError, RecipeError
from quantasr.kaldi.nnet3 import read_model, write_model
from quantasr.numerics.qtypes import QType
from quantasr.numerics.quantizers import Phase
from quantasr.pipeline_kaldi import requantize
from quantasr.quantize import calibrate, convert, prepare
from quantasr.recipes import Recipe, Rule
from quantasr.recipes.recipe import QConfig
from quantasr.speech.manifest import read_manifest

DIGITS = Path(__file__).parents[1] / "data" / "kaldi" / "digits"
WAVES = [utterance.load(8000) for utterance in read_manifest(sample.evaluation())[20:23]]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_copy_of_a_folder_differs_in_the_weights_alone(tmp_path: Path) -> None:
    made = requantize(DIGITS, tmp_path / "copy", 8)
    before, after = contents(DIGITS), contents(tmp_path / "copy")
    assert [name for name in before if before[name] != after.get(name)] == ["final.mdl"] and set(before) == set(after)
    old, new = read_model(DIGITS / "final.mdl"), read_model(tmp_path / "copy" / "final.mdl")
    rounded = {layer.name: layer for layer in made.layers}
    for name, component in old.network.components.items():
        for field, value in component.fields.items():
            same = np.array_equal(value, new.network.components[name].fields[field])
            assert same == (name not in rounded or field not in ("LinearParams", "Params") or name == "lda")
    # lda holds zeros and single ones, which 8 bits have exactly; output-xent is for training only.
    assert len(rounded) == 18 and set(made.left_float) == {
        "prefinal-xent.affine",
        "prefinal-xent.linear",
        "output-xent.affine",
    }
    row = rounded["tdnnf2.linear"]
    weight = old.network.components["tdnnf2.linear"].fields["LinearParams"]
    step = np.abs(weight).max(1, keepdims=True) / 127
    new_weight = new.network.components["tdnnf2.linear"].fields["LinearParams"]
    np.testing.assert_allclose(new_weight, np.round(weight / step) * step, atol=1e-6)
    assert row.max_error == pytest.approx(np.abs(new_weight - weight).max()) and row.max_error <= step.max() / 2 + 1e-7
    assert json.loads(json.dumps(made.to_dict()))["layers"][0]["name"] == made.layers[0].name


def test_back_to_the_same_bytes(tmp_path: Path) -> None:
    """Integers times scales are not rounded again, so a copy of a copy is the copy."""
    requantize(DIGITS / "final.mdl", tmp_path / "once.mdl", 4, granularity="per_tensor")
    requantize(tmp_path / "once.mdl", tmp_path / "twice.mdl", 4, granularity="per_tensor")
    once, twice = (read_model(tmp_path / name) for name in ("once.mdl", "twice.mdl"))
    for name, component in once.network.components.items():
        for field in ("LinearParams", "Params"):
            if np.ndim(component.fields.get(field)) == 2:
                np.testing.assert_allclose(twice.network.components[name].fields[field], component.fields[field], 1e-6)
    write_model(once, tmp_path / "again.mdl")
    assert (tmp_path / "again.mdl").read_bytes() == (tmp_path / "once.mdl").read_bytes()


@pytest.mark.parametrize("weight", [QType(8, False), QType(5, True, "per_channel")])
def test_a_copy_computes_what_the_simulation_of_weights_alone_does(weight: QType, tmp_path: Path) -> None:
    recipe = Recipe("some", (Rule("tdnnf*"),), QConfig("weight_only", weight), exclude=("tdnnf3",))
    made = requantize(DIGITS, tmp_path / "copy", recipe)
    assert {layer.name.split(".")[0] for layer in made.layers} == {f"tdnnf{n}" for n in (2, 4, 5, 6, 7)}
    prepared = prepare(load_model(DIGITS), recipe)
    calibrate(prepared, WAVES[:1])
    convert(prepared)
    with prepared.active(Phase.SIMULATE):
        expected = prepared.model.logprobs(WAVES)
    found = load_model(tmp_path / "copy").logprobs(WAVES)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), torch.from_numpy(other), rtol=0, atol=2e-5)


def test_what_is_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"tdnf2.*did you mean"):
        requantize(DIGITS, tmp_path / "copy", Recipe("x", (Rule("tdnf2.linear"),)))
    with pytest.raises(RecipeError, match="bits = 1"):
        requantize(DIGITS, tmp_path / "copy", 1)
    with pytest.raises(ModelLoadError, match=r"has no final\.mdl"):
        requantize(tmp_path, tmp_path / "copy", 8)
    groups = QConfig("weight_only", QType(4, True, "per_group", 32))
    with pytest.raises(RecipeError, match="per_tensor or per_channel"):
        requantize(DIGITS, tmp_path / "copy", Recipe("x", (Rule("*"),), groups))
    assert not list(tmp_path.iterdir())
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(ArtifactError, match="exists"):
        requantize(DIGITS, tmp_path / "there", 8)
    with pytest.raises(ArtifactError, match="exists"):
        requantize(DIGITS / "final.mdl", tmp_path / "there" / "file", 8)
    assert contents(tmp_path) == {"there/file": b""}
