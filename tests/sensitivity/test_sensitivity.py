"""The verb: one part of a model in int8 at a time, on trained models and on tiny ones of each kind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import quantasr
from quantasr import load_model, sample
from quantasr.errors import AudioError, CalibrationError, EngineError, ManifestError, RecipeError
from quantasr.measure.sensitivity import Sensitivity
from quantasr.numerics.quantizers import Phase
from quantasr.quantize import calibrate, convert, prepare
from quantasr.quantize.layers import find_layers
from quantasr.recipes import Recipe, Rule, builtin_recipe
from quantasr.sensitivity import advised_recipe
from quantasr.sensitivity.harm import compare, divergences
from quantasr.sensitivity.study import Study, study
from quantasr.sources import AsrModel
from quantasr.speech.manifest import Utterance, read_manifest

NEMO = Path(__file__).parents[1] / "data" / "nemo"
CALIBRATION = read_manifest(sample.calibration())[:3]
EVALUATION = read_manifest(sample.evaluation())[20:23]
WAVES = [utterance.load(8000) for utterance in CALIBRATION]
QUICK: dict[str, Any] = {"calibration": CALIBRATION, "threads": 1, "rounds": 2}


@pytest.fixture(scope="module")
def studied() -> Iterator[Study]:
    found = study(load_model(sample.model()), None, WAVES)
    yield found
    found.close()


def test_divergence_worked_by_hand() -> None:
    with np.errstate(divide="ignore"):
        p, q = np.log(np.float32([[0.5, 0.5, 0.0], [1, 0, 0]])), np.log(np.float32([[0.25, 0.75, 0.0], [0.5, 0.5, 0]]))
    # 0.5 ln(0.5 / 0.25) + 0.5 ln(0.5 / 0.75), and ln(1 / 0.5)
    np.testing.assert_allclose(divergences(p, q), [0.143841, 0.693147], atol=1e-6)
    assert divergences(p, p).tolist() == [0.0, 0.0]


def test_nothing_quantized_is_the_float_model_and_everything_the_usual_simulation(studied: Study) -> None:
    reference = prepare(load_model(sample.model()), Recipe("all", (Rule("*"),), attention_products=True))
    original = reference.model.logprobs(WAVES)
    calibrate(reference, WAVES)
    convert(reference)
    with reference.active(Phase.SIMULATE):
        expected = reference.model.logprobs(WAVES)
    with studied.quantized(()):
        nothing = studied.model.logprobs(WAVES)
    with studied.quantized([*studied.kinds, *studied.products]):
        everything = studied.model.logprobs(WAVES)
    for found, wanted in ((nothing, original), (everything, expected)):
        for left, right in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(left, right)
    assert not all(np.array_equal(*pair) for pair in zip(original, expected, strict=True))


def test_only_the_named_layers_are_rounded(studied: Study) -> None:
    variants = {name: (lambda paths=paths: studied.quantized(paths)) for name, paths in (("", []), ("a", ["lm_head"]))}
    harms = compare(studied.model, CALIBRATION, variants, texts=True).harms
    assert harms[""].kl == 0.0 and harms[""].same_argmax == 1.0 and harms[""].wer.difference == 0.0  # type: ignore[union-attr]
    assert harms["a"].kl > 0.0
    rounded = [path for path in studied.prepared.paths() if path != "lm_head"]
    with studied.quantized(["lm_head"]):
        assert {q.phase for q in studied.prepared.quantizers(rounded)} == {Phase.FLOAT}
        assert {q.phase for q in studied.prepared.quantizers(["lm_head"])} == {Phase.SIMULATE}
    assert {q.phase for q in studied.prepared.quantizers()} == {Phase.FLOAT}


def test_quantizers_come_back_as_they_were(studied: Study) -> None:
    paths = ["lm_head", "wav2vec2.feature_projection.projection"]
    with studied.quantized(paths):
        before = studied.model.logprobs(WAVES)
    with studied.detached():
        assert not any("parametrizations" in name for name, _ in studied.model.module.named_parameters())
    with studied.quantized(paths):
        for left, right in zip(before, studied.model.logprobs(WAVES), strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.fixture(scope="module")
def table() -> Sensitivity:
    """The sample, with times of a graph and a recipe of its own."""
    return quantasr.sensitivity(
        sample.model(), evaluation=EVALUATION, recipe="fast", engine="onnxruntime", compute="fp32", **QUICK
    )


def test_the_table(table: Sensitivity) -> None:
    assert {part.name for part in table.parts} == {
        *("wav2vec2.feature_extractor", "wav2vec2.feature_projection", "wav2vec2.encoder.pos_conv_embed", "lm_head"),
        *(f"wav2vec2.encoder.layers.{i}" for i in range(4)),
        "attention products",
    }
    kls = [part.harm.kl for part in table.parts]
    assert kls == sorted(kls, reverse=True) and min(kls) > 0
    assert table.parts[0].name == "wav2vec2.feature_extractor", "loud and quiet frames share a scale there"
    everything, recipe = table.totals[:2]
    assert [everything.name, recipe.name] == ["everything", "recipe wav2vec2-fast"]
    assert sum(part.macs for part in table.parts) == pytest.approx(everything.macs) == pytest.approx(1.0)
    assert sum(part.parameters for part in table.parts) == everything.parameters
    assert set(recipe.layers) < set(everything.layers) and "lm_head" not in recipe.layers
    assert recipe.harm.kl < everything.harm.kl
    for part in (*table.parts, *table.totals):
        assert part.time is not None and part.time.low <= part.time.median <= part.time.high
        assert part.harm.wer is not None and part.harm.wer.a.counts.reference_length == 12
    assert (table.engine, table.compute, table.utterances) == ("onnxruntime", "fp32", 3)
    json.dumps(table.to_dict())


def test_the_recipe_leaves_float_what_the_table_says(table: Sensitivity) -> None:
    model = load_model(sample.model())
    kinds = {path: kind for path, (kind, _) in find_layers(model.module).items()}
    left = {path for part in table.parts if part.leave_float for path in part.layers if path in kinds}
    for base in (None, builtin_recipe("wav2vec2", "fast")):
        recipe = advised_recipe(table, model, base)
        assert recipe is not None
        again = Recipe.from_dict(recipe.to_dict())
        assert {path for path, kind in kinds.items() if again.qconfig(path, kind).mode == "float"} == left
        prepare(load_model(sample.model()), again)
    # Names that users know, not each layer of a module. Which they are depends on times as well.
    assert set(again.exclude) <= {part.name for part in table.parts if part.leave_float}


def test_a_broken_layer_ranks_first() -> None:
    model = load_model(sample.model())
    broken = "wav2vec2.encoder.layers.1.feed_forward.intermediate_dense"
    layer: Any = model.module.get_submodule("wav2vec2.encoder.layers.1")
    weight = layer.feed_forward.intermediate_dense.weight
    with torch.no_grad():
        # A giant in each channel leaves the other weights a few integers; what it multiplies is always zero.
        weight[:, 7] = 30 * weight.abs().max()
        layer.final_layer_norm.weight[7] = layer.final_layer_norm.bias[7] = 0.0
    found = quantasr.sensitivity(model, by="layer", match="wav2vec2.encoder.layers.*.feed_forward", time=False, **QUICK)
    assert len(found.parts) == 8 and found.parts[0].name == broken
    assert found.parts[0].harm.kl > 3 * found.parts[1].harm.kl
    assert not any("parametrizations" in name for name, _ in model.module.named_parameters())


def test_pytorch_own_int8_is_timed_in_place() -> None:
    model = load_model(sample.model())
    before = model.logprobs(WAVES)
    found = quantasr.sensitivity(model, by="kind", engine="torch:onednn", **QUICK)
    parts = {part.name: part for part in found.parts}
    assert parts["linear"].time is not None and parts["conv1d"].time is not None
    assert parts["attention products"].advice.startswith("leave float: PyTorch has no int8 for it")
    assert found.engine == "torch:onednn" and found.notes[0].startswith("log-probs are compared on the calibration")
    for left, right in zip(before, model.logprobs(WAVES), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-4)


@pytest.mark.parametrize("name", ["quartznet", "conformer"])
def test_nemo(name: str) -> None:
    found = quantasr.sensitivity(NEMO / f"{name}.nemo", engine="onnxruntime", match="*decoder*", **QUICK)
    (part,) = found.parts
    assert part.name == "decoder" and 0 < part.harm.kl < 1e-3 and part.time is not None


def test_recurrent_layers_run_in_pytorch(tmp_path: Path) -> None:
    import tiny_speechbrain

    tiny_speechbrain.save("sb-crdnn", tmp_path)
    found = quantasr.sensitivity(tmp_path, by="kind", engine="onnxruntime", trust=True, **QUICK)
    parts = {part.name: part for part in found.parts}
    assert parts["lstm"].harm.kl > 0 and parts["lstm"].macs > 0.1
    assert parts["lstm"].advice == "leave float: only --engine torch has int8 for it"
    assert parts["linear"].time is not None


def test_attention_models_are_compared_along_their_own_text(tmp_path: Path) -> None:
    import tiny_speechbrain_attention

    tiny_speechbrain_attention.write_attention(tmp_path, "gru_beam")
    options = QUICK | {"calibration": CALIBRATION[:1], "trust": True}
    found = quantasr.sensitivity(tmp_path, by="part", time=False, **options)
    parts = {part.name: part for part in found.parts}
    assert parts["decoder"].harm.kl > 0 and parts["encoder"].harm.kl > 0
    assert set(parts) >= {"encoder", "decoder", "lm"}, "CTC's layer is in the encoder's graph"
    assert parts["lm"].advice == "leave float: only WER can show what it does", "only the search asks it"


def test_texts_that_are_missing_and_recordings_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_text("no audio at all", "utf-8")
    silent = [Utterance("bad", tmp_path / "bad.wav", None), Utterance("some", EVALUATION[0].audio, None)]
    found = quantasr.sensitivity(sample.model(), evaluation=silent, by="part", time=False, **QUICK)
    assert found.notes == ("2 of 2 utterances have no text: WER is left out",)
    assert found.parts[0].harm.wer is None and "bad.wav" in found.failures["bad"] and found.utterances == 1
    with pytest.raises(AudioError, match=r"none of 1 recordings can be read; the first: .*bad\.wav"):
        quantasr.sensitivity(sample.model(), evaluation=silent[:1], by="part", time=False, **QUICK)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"by": "shape"}, RecipeError, "choose one of module, layer, kind, part"),
        ({"match": "encoder.*"}, RecipeError, r"pattern 'encoder\.\*' matches no layer"),
        ({"engine": "tensorrt"}, EngineError, "choose one of auto, onnxruntime, openvino, torch"),
        ({"engine": "torch:float"}, EngineError, "has no int8 to be measured"),
        ({"calibration": []}, CalibrationError, "no calibration utterances"),
        ({"evaluation": CALIBRATION[:1]}, ManifestError, "1 of 3 calibration utterances"),
        ({"recipe": "small"}, RecipeError, "no built-in recipe 'small'"),
        ({"max_kl": float("nan")}, RecipeError, "give 0 or more nats"),
    ],
)
def test_what_is_refused_before_the_work_begins(
    options: dict[str, Any], error: type[Exception], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr(import_module("quantasr.sensitivity"), "study", never)
    with pytest.raises(error, match=match):
        quantasr.sensitivity(sample.model(), **QUICK | options)


@pytest.mark.parametrize("step", ["convert", "compare", "count_macs"])
def test_the_model_is_float_again_whatever_happens(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    where = "quantasr.sensitivity.study" if step == "convert" else "quantasr.sensitivity"
    monkeypatch.setattr(import_module(where), step, stop)
    model: AsrModel = load_model(sample.model())
    before: Callable[[], Any] = lambda: model.logprobs(WAVES[:1])[0]  # noqa: E731
    expected = before()
    with pytest.raises(KeyboardInterrupt):
        quantasr.sensitivity(model, time=False, **QUICK)
    assert not any("parametrizations" in name for name, _ in model.module.named_parameters())
    np.testing.assert_allclose(before(), expected, atol=1e-4)
