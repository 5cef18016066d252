"""The whole way: from a model folder and speech to an artifact, and nothing left behind when it fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tiny_hf

import quantasr
from quantasr import parity, pipeline, sample
from quantasr.artifact import Artifact
from quantasr.engines import ENGINES
from quantasr.errors import ArtifactError, CalibrationError, EngineError, ManifestError, QuantasrError, RecipeError
from quantasr.pipeline import find_recipe, quantize
from quantasr.recipes import Recipe, Rule, builtin_recipe
from quantasr.speech.manifest import Utterance, read_manifest, write_manifest


@pytest.fixture
def model(tiny_hf_folder: Callable[[str], Path]) -> Path:
    return tiny_hf_folder("wav2vec2-large")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three recordings."""
    folder = tmp_path_factory.mktemp("speech")
    utterances = []
    for i, wave in enumerate(tiny_hf.speech(1.0, 0.7, 0.4)):
        soundfile.write(folder / f"{i}.wav", wave, 16000)
        utterances.append(Utterance(f"u{i}", folder / f"{i}.wav", "abc"))
    write_manifest(utterances, folder / "manifest.jsonl")
    return folder / "manifest.jsonl"


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    """Where the artifact goes; afterwards, nothing else may lie beside it."""
    folder = tmp_path / "out" / "artifact"
    yield folder
    left = [path.name for path in (tmp_path / "out").iterdir()] if (tmp_path / "out").exists() else []
    assert left in ([], ["artifact"])


def test_end_to_end(model: Path, manifest: Path, output: Path) -> None:
    said: list[str] = []
    artifact = quantize(model, output, calibration=manifest, recipe="fast", limit=2, say=said.append)
    assert Artifact.load(output) == artifact
    assert {path.name for path in output.iterdir()} == {
        "artifact.json",
        "calibration.json",
        "graph.onnx",
        "layers.json",
        "recipe.toml",
        "tokenizer.json",
    }
    assert len(said) == 6 and said[0].startswith("loading") and "2 utterances" in said[2]
    assert artifact.provenance["calibration"] == {"utterances": 2, "seconds": 1.7}
    assert artifact.provenance["model"] == str(model)
    assert artifact.recipe == builtin_recipe("wav2vec2", "fast").to_dict()
    assert Recipe.load(output / "recipe.toml") == builtin_recipe("wav2vec2", "fast")
    assert set(artifact.parity) == {
        "float",
        "simulation_to_original",
        "simulation_to_itself",
        *(f"quantized_{engine}" for engine in ENGINES),
    }
    assert artifact.parity["float"]["largest_difference"] < 1e-4 and artifact.parity["float"]["same_argmax"] == 1.0
    assert all(artifact.parity[f"quantized_{engine}"]["same_argmax"] > 0.95 for engine in ENGINES)
    layers = {row["path"]: row for row in json.loads((output / "layers.json").read_text("utf-8"))}
    assert layers["lm_head"] == {
        "path": "lm_head",
        "kind": "linear",
        "shape": [16, 32],
        "mode": "float",
        "reason": "the recipe leaves it float",
    }
    assert layers["wav2vec2.encoder.layers.0.attention.q_proj"]["mode"] == "static"


@pytest.mark.parametrize("recipe", ["default", "fast"])
def test_the_sample_keeps_its_texts(recipe: str, output: Path) -> None:
    """A trained model on real speech: the original, the artifact and both engines say the same."""
    artifact = quantize(
        sample.model(),
        output,
        calibration=sample.calibration(),
        evaluation=sample.evaluation(),
        recipe=recipe,
        limit=16,
    )
    utterances = read_manifest(sample.evaluation())[:20]
    original = quantasr.load_model(sample.model()).transcriber()
    waves = [utterance.load(original.sample_rate) for utterance in utterances]
    expected = [transcript.text for transcript in original.transcribe(waves)]
    for engine in ENGINES:
        assert artifact.parity[f"quantized_{engine}"]["same_argmax"] >= 0.995
        recogniser = quantasr.load(output, engine=engine, threads=1, compute="fp32")
        found = [transcript.text for transcript in recogniser.transcribe(waves)]
        assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 19


def test_a_loaded_model_and_utterances_will_do(model: Path, manifest: Path, output: Path) -> None:
    recipe = Recipe("mine", (Rule("*.attention.*", {"mode": "weight_only"}),))
    artifact = quantize(quantasr.load_model(model), output, calibration=read_manifest(manifest), recipe=recipe, limit=1)
    assert artifact.name == f"{model.name}-mine"
    assert {row["mode"] for row in artifact.layers()} == {"weight_only", "float"}


def test_weights_beside_the_graph_belong_to_the_artifact(
    model: Path, manifest: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantasr.export.graph._EXTERNAL_ABOVE", 1000)
    artifact = quantize(model, output, calibration=manifest, limit=1)
    assert "graph.onnx.data" in artifact.files
    for engine in ENGINES:
        assert quantasr.load(output, engine=engine).transcribe(tiny_hf.speech(0.5))
    weights = output / "graph.onnx.data"
    weights.write_bytes(b"x" + weights.read_bytes()[1:])
    with pytest.raises(ArtifactError, match=r"graph\.onnx\.data"):
        Artifact.load(output)


def test_long_recordings_are_compared_in_part(
    model: Path, manifest: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "_SECONDS", 0.1)
    artifact = quantize(model, output, calibration=manifest)
    assert 100 < artifact.parity["float"]["frames"] < 3 * 0.1 / 0.0025
    assert artifact.provenance["calibration"]["seconds"] == 2.1, "calibration hears all of them"


def _fails(kind: type[BaseException], match: str, output: Path, model: Any, **options: Any) -> None:
    with pytest.raises(kind, match=match):
        quantize(model, output, **options)
    assert not output.exists()


def test_speech_to_calibrate_with_is_not_speech_to_evaluate_with(model: Path, manifest: Path, output: Path) -> None:
    _fails(ManifestError, "3 of 3 calibration utterances", output, model, calibration=manifest, evaluation=manifest)
    utterances = read_manifest(manifest)
    _fails(ManifestError, "1 of 2", output, model, calibration=utterances[:2], evaluation=utterances[1:])
    _fails(ManifestError, "1 of 1", output, model, calibration=manifest, evaluation=utterances[:1], limit=1)
    quantize(model, output, calibration=utterances[:1], evaluation=utterances[1:])


def test_no_speech(model: Path, manifest: Path, output: Path) -> None:
    _fails(CalibrationError, "no calibration utterances", output, model, calibration=[])
    _fails(CalibrationError, "no calibration utterances", output, model, calibration=manifest, limit=0)
    _fails(ManifestError, "none.jsonl", output, model, calibration=manifest.parent / "none.jsonl")


def test_a_recording_that_is_missing(model: Path, manifest: Path, output: Path, tmp_path: Path) -> None:
    utterances = [*read_manifest(manifest), *(Utterance(f"x{i}", tmp_path / "none.wav", None) for i in range(3))]
    _fails(QuantasrError, "none.wav", output, model, calibration=utterances)


def test_what_exists_is_refused_before_the_work_begins(model: Path, manifest: Path, output: Path) -> None:
    quantize(model, output, calibration=manifest, limit=1)
    before = (output / "artifact.json").read_bytes()
    started: list[str] = []
    with pytest.raises(ArtifactError, match="exists already: choose another folder, or allow --overwrite"):
        quantize(model, output, calibration=manifest, say=started.append)
    assert not started
    # What cannot be replaced stays as it is.
    with pytest.raises(RecipeError):
        quantize(model, output, calibration=manifest, recipe="none", overwrite=True)
    assert (output / "artifact.json").read_bytes() == before
    assert quantize(model, output, calibration=manifest, recipe="fast", overwrite=True).recipe["name"].endswith("fast")
    assert (output / "artifact.json").read_bytes() != before


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_that_is_no_artifact_is_never_replaced(
    overwrite: bool, model: Path, manifest: Path, output: Path
) -> None:
    output.mkdir(parents=True)
    (output / "thesis.tex").write_text("three years", "utf-8")
    with pytest.raises(ArtifactError, match="is no artifact"):
        quantize(model, output, calibration=manifest, overwrite=overwrite)
    assert (output / "thesis.tex").read_text("utf-8") == "three years"


@pytest.mark.parametrize("step", ["calibrate", "convert", "export_quantized", "save_graph", "write_parts"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ArtifactError])
def test_a_failure_at_any_step_leaves_nothing(
    error: type[BaseException],
    step: str,
    model: Path,
    manifest: Path,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error("at this step")

    monkeypatch.setattr(pipeline, step, fail)
    _fails(error, "at this step", output, model, calibration=manifest, limit=1)


def test_a_float_graph_that_differs(model: Path, manifest: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "FLOAT_TOLERANCE", 0.0)
    _fails(ArtifactError, "float graph differs from the original by", output, model, calibration=manifest, limit=1)


@pytest.fixture
def broken_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO gives something else than the simulation."""
    run = parity.graph_logprobs

    def patched(model: Any, folder: Path, engine: str, *rest: Any) -> list[np.ndarray]:
        return [-row if engine == "openvino" else row for row in run(model, folder, engine, *rest)]

    monkeypatch.setattr(parity, "graph_logprobs", patched)


@pytest.mark.usefixtures("broken_openvino")
def test_an_engine_that_gives_something_else(model: Path, manifest: Path, output: Path) -> None:
    _fails(
        ArtifactError,
        "on openvino the quantized graph's log-probs differ",
        output,
        model,
        calibration=manifest,
        limit=1,
    )
    # Unless it is not to be used at all.
    recipe = Recipe("mine", (Rule("*.attention.*"),), engine="onnxruntime")
    artifact = quantize(model, output, calibration=manifest, limit=1, recipe=recipe)
    assert artifact.parity["quantized_openvino"]["same_argmax"] < 0.9


def test_an_engine_that_computes_a_layer_wrongly_is_told_with_the_layer(
    model: Path, manifest: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a CPU whose products saturate: wherever the engine runs a linear layer alone, that one is too small."""
    load = parity.load_engine

    class Saturating:
        def __init__(self, name: str, graph: Path, options: Any) -> None:
            self.name, self.compute, self._layer = name, "fp32", graph.name == "layer.onnx"
            self._engine = load(name, graph, options)

        def run(self, feed: Any) -> dict[str, np.ndarray]:
            found = self._engine.run(feed)
            # Of the whole graph the result is nonsense, of a layer alone half of what it should be.
            return {key: (row / 2 if self._layer else np.roll(row, 1, -1)) for key, row in found.items()}

    def patched(name: str, graph: Path, options: Any) -> Any:
        quantized = name == "openvino" and (graph.name == "layer.onnx" or "artifact" in graph.parent.name)
        return Saturating(name, graph, options) if quantized else load(name, graph, options)

    monkeypatch.setattr(parity, "load_engine", patched)
    where = r"layers are wrong by themselves, the most \S*(encoder|lm_head)\S* \(MatMul\): off by"
    _fails(ArtifactError, where, output, model, calibration=manifest, limit=1)


def test_an_engine_that_refuses_the_graph(
    model: Path, manifest: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = parity.graph_logprobs
    refusing = {"openvino"}

    def patched(model: Any, folder: Path, engine: str, *rest: Any) -> list[np.ndarray]:
        # The float graph, which lies in another folder, is taken.
        if engine in refusing and "artifact" in folder.name:
            raise EngineError(f"{engine} cannot load it")
        return run(model, folder, engine, *rest)

    monkeypatch.setattr(parity, "graph_logprobs", patched)
    recipe = Recipe("mine", (Rule("*.attention.*"),), engine="openvino")
    _fails(EngineError, "openvino cannot load it", output, model, calibration=manifest, recipe=recipe, limit=1)
    artifact = quantize(model, output, calibration=manifest, limit=1)
    assert artifact.parity["quantized_openvino"] == {"error": "openvino cannot load it"}
    refusing.add("onnxruntime")
    with pytest.raises(EngineError, match="onnxruntime cannot load it; openvino cannot load it"):
        quantize(model, output, calibration=manifest, limit=1, overwrite=True)
    assert Artifact.load(output) == artifact


def test_recipes_by_name_and_by_file(tmp_path: Path) -> None:
    mine = Recipe("mine", (Rule("*"),))
    assert find_recipe(mine, "wav2vec2") is mine
    assert find_recipe("fast", "wav2vec2").name == "wav2vec2-fast"
    assert find_recipe("default", "wav2vec2_bert").name == "wav2vec2_bert-default"
    assert find_recipe("wav2vec2-fast", "wav2vec2_bert").name == "wav2vec2-fast"
    path = tmp_path / "mine.toml"
    path.write_text(mine.dumps(), "utf-8")
    assert find_recipe(path, "wav2vec2") == find_recipe(str(path), "wav2vec2") == mine
    with pytest.raises(RecipeError, match=r"none\.toml: cannot read the recipe"):
        find_recipe(str(tmp_path / "none.toml"), "wav2vec2")
    with pytest.raises(RecipeError, match="choose one of bf16, fp16, default, fast, fastest"):
        find_recipe("small", "wav2vec2")
