"""``finetune`` and ``qat`` from a model's folder and manifests to what is written, for every source."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
import tiny_hf

import quantasr
from quantasr import pipeline, pipeline_training, sample
from quantasr.artifact import Artifact
from quantasr.errors import TrainingError
from quantasr.measure.gain import Gain
from quantasr.numerics.quantizers import Phase
from quantasr.pipeline import find_recipe, quantize
from quantasr.pipeline_training import finetune, qat
from quantasr.quantize import Prepared
from quantasr.recipes import Recipe
from quantasr.sources import FrameModel, load_model
from quantasr.speech.manifest import Utterance, read_manifest, write_manifest
from quantasr.training.config import TrainingConfig
from quantasr.training.lesson import Trained

KALDI = Path(__file__).parent / "data/kaldi/digits"
TRAIN = {"steps": 3, "batch": 2, "rate": 1e-3, "validate_every": 0}
Manifests = dict[str, Path]


@pytest.fixture(autouse=True)
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here depends on how fast an artifact is, and timing takes longer than all the rest."""
    monkeypatch.setattr(pipeline, "gain", lambda artifact, graph: Gain(1.0, ("artifact", "fp32"), ("float", "fp32")))


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Manifests:
    """Eight recordings of what tiny models could take for speech."""
    folder = tmp_path_factory.mktemp("noise")
    utterances = []
    for i, wave in enumerate(tiny_hf.speech(1.0, 0.7, 0.8, 0.9, 0.95, 0.6, 0.75, 0.85)):
        soundfile.write(folder / f"{i}.wav", wave, 16000)
        utterances.append(Utterance(f"u{i}", folder / f"{i}.wav", "abc de"))
    return parted(utterances, folder, 4, 6)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Manifests:
    """The sample's calibration strings."""
    return parted(read_manifest(sample.calibration()), tmp_path_factory.mktemp("digits"), 36, 40)


def parted(utterances: list[Utterance], folder: Path, first: int, second: int) -> Manifests:
    parts = {"train": utterances[:first], "calibration": utterances[first:second], "validation": utterances[second:]}
    for name, part in parts.items():
        write_manifest(part, folder / f"{name}.jsonl")
    return {name: folder / f"{name}.jsonl" for name in parts}


def configured(**tables: dict[str, Any]) -> TrainingConfig:
    return TrainingConfig.from_dict({**tables, "train": {**TRAIN, **tables.get("train", {})}})


def with_weights(place: str | Path, bits: int, observer: str = "mse") -> Recipe:
    """The family's default recipe with weights of ``bits``."""
    recipe = find_recipe("default", load_model(place, trust=True).family)
    defaults = replace(recipe.defaults, weight=replace(recipe.defaults.weight, bits=bits), weight_observer=observer)
    return replace(recipe, defaults=defaults)


def without_texts(manifest: Path, target: Path) -> Path:
    write_manifest([replace(u, text=None) for u in read_manifest(manifest)], target)
    return target


@pytest.fixture
def taught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Trained, Prepared]]:
    """Run :func:`qat`; what came of it, and the quantized model that was exported."""

    def run(place: str | Path, manifests: Manifests, config: TrainingConfig, **more: Any) -> tuple[Trained, Prepared]:
        found: list[Prepared] = []
        real = pipeline_training.convert

        def convert(prepared: Prepared) -> Any:
            found.append(prepared)
            return real(prepared)

        monkeypatch.setattr(pipeline_training, "convert", convert)
        trained = qat(place, tmp_path / "out", **{**manifests, "trust": True, "config": config, **more})
        return trained, found[0]

    return run


def assert_is_what_was_trained(prepared: Prepared, folder: Path, heard: Path) -> None:
    """The artifact's log-probs are those of the simulation, but where a value falls between two integers."""
    model = prepared.model
    assert isinstance(model, FrameModel)
    waves = [u.load(model.sample_rate) for u in read_manifest(heard)]
    with prepared.active(Phase.SIMULATE):
        simulated = model.logprobs(waves)
    exported = quantasr.load(folder, engine="onnxruntime").logprobs(waves)
    for ours, theirs in zip(simulated, exported, strict=True):
        assert ours.shape == theirs.shape
        assert np.mean(ours.argmax(1) == theirs.argmax(1)) > 0.9
        assert np.abs(ours - theirs).mean() < 0.05
    original = load_model(Artifact.load(folder).provenance["model"], trust=True)
    untrained = np.concatenate(original.logprobs(waves))
    assert (
        np.abs(np.concatenate(exported) - untrained).mean()
        > 2 * np.abs(np.concatenate(exported) - np.concatenate(simulated)).mean()
    )


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("wav2vec2-large", {"qat": {"scales": "learned"}}),
        ("quartznet", {"train": {"freeze_norms_after": 2}}),
        ("sb-wav2vec2", {"qat": {"scales": "observed", "freeze_scales_after": 2}}),
    ],
)
def test_every_source_becomes_an_artifact(
    tiny_model: Callable[[str], Path],
    noise: Manifests,
    taught: Callable[..., tuple[Trained, Prepared]],
    name: str,
    settings: dict[str, Any],
) -> None:
    place = tiny_model(name)
    trained, prepared = taught(place, noise, configured(**settings))
    assert trained.result.steps == 3 and trained.result.skipped == 0 and set(trained.result.losses) == {1, 2, 3}
    assert_is_what_was_trained(prepared, trained.folder, noise["validation"])
    artifact = Artifact.load(trained.folder)
    told = artifact.provenance["training"]
    assert (told["loss"], told["steps"], told["utterances"]) == ("ctc", 3, 4)
    assert told["config"] == configured(**settings).to_dict()
    assert artifact.recipe == find_recipe("default", artifact.family).to_dict()
    json.loads((trained.run / "config.json").read_text("utf-8"))
    assert [json.loads(line)["step"] for line in (trained.run / "metrics.jsonl").read_text("utf-8").splitlines()] == [3]


def test_every_layer_is_trained_whatever_froze_it_for_inference(
    tiny_model: Callable[[str], Path], noise: Manifests, tmp_path: Path
) -> None:
    """SpeechBrain's YAML has ``freeze: True`` for the lobe."""
    model = load_model(tiny_model("sb-wav2vec2"), trust=True)
    before = {name: tensor.clone() for name, tensor in model.module.named_parameters()}
    finetune(model, tmp_path / "out", train=noise["train"], validation=noise["validation"], config=configured())
    # Adam moves whatever has a gradient; a mask embedding has none where nothing is masked.
    same = [name for name, tensor in model.module.named_parameters() if (tensor == before[name]).all()]
    assert all("masked_spec_embed" in name for name in same), same


def test_a_chain_model_learns_to_live_with_two_bits(
    digits: Manifests, taught: Callable[..., tuple[Trained, Prepared]]
) -> None:
    config = configured(train={"steps": 12, "batch": 12, "rate": 2e-3, "scale_rate": 20.0})
    trained, prepared = taught(KALDI, digits, config, recipe=with_weights(KALDI, 2))
    losses = list(trained.result.losses.values())
    assert losses[-1] < losses[0] / 2
    assert trained.before["wer"] > 0.1 and trained.after["wer"] < trained.before["wer"] / 3
    assert_is_what_was_trained(prepared, trained.folder, digits["validation"])
    said = quantasr.load(trained.folder, engine="onnxruntime")
    rows = read_manifest(digits["validation"])
    heard = [t.text for t in said.transcribe([u.load(8000) for u in rows])]
    assert sum(text == u.text for text, u in zip(heard, rows, strict=True)) >= 6


@pytest.mark.parametrize("kind", ["distillation", "ctc+distillation"])
def test_the_float_original_teaches(
    tiny_model: Callable[[str], Path],
    noise: Manifests,
    tmp_path: Path,
    taught: Callable[..., tuple[Trained, Prepared]],
    kind: str,
) -> None:
    place = tiny_model("wav2vec2-large")
    manifests = dict(noise)
    if kind == "distillation":
        manifests = {n: without_texts(path, tmp_path / f"{n}.jsonl") for n, path in noise.items()}
    config = configured(train={"steps": 8, "rate": 2e-3, "clip": 0.0}, loss={"kind": kind})
    trained, _ = taught(place, manifests, config, recipe=with_weights(place, 2))
    losses = list(trained.result.losses.values())
    assert np.mean(losses[-2:]) < np.mean(losses[:2])
    # Without texts, validation can tell nothing but how far the student is from its teacher.
    assert set(trained.after) == ({"loss"} if kind == "distillation" else {"wer"})
    if kind == "distillation":
        assert trained.after["loss"] < trained.before["loss"]
        with pytest.raises(TrainingError, match="without a text"):
            qat(place, tmp_path / "ctc", **manifests, config=configured())
        # A live model is changed by training: then nobody is left to teach.
        with pytest.raises(TrainingError, match="give a teacher"):
            qat(load_model(place), tmp_path / "live", **manifests, config=config)


def test_what_trained_an_artifact_does_not_measure_it(
    tiny_model: Callable[[str], Path],
    noise: Manifests,
    taught: Callable[..., tuple[Trained, Prepared]],
    quantasr_cli: Callable[..., Any],
) -> None:
    trained, _ = taught(tiny_model("wav2vec2-large"), noise, configured(train={"steps": 1}))
    for name in ("train", "calibration"):
        ran = quantasr_cli("evaluate", trained.folder, "--manifest", noise[name], "--engine", "onnxruntime")
        assert ran.code == 1 and len(ran.complaints) == 1 and "calibrat" in ran.complaints[0], ran.err
    # The runtime needs no PyTorch for it.
    code = (
        f"import sys, quantasr, soundfile; recogniser = quantasr.load({str(trained.folder)!r}, engine='onnxruntime')\n"
        f"wave, _ = soundfile.read({str(noise['train'].parent / '7.wav')!r}, dtype='float32')\n"
        "print(len(recogniser.transcribe([wave])), 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == "1 False\n"


def integers(folder: Path) -> dict[str, bytes]:
    """Every constant of an artifact's graph: the integers of its weights, and all scales."""
    return {t.name: onnx.numpy_helper.to_array(t).tobytes() for t in onnx.load(folder / "graph.onnx").graph.initializer}


class StopAt:
    """Ctrl-C when a step has been reported."""

    def __init__(self, step: int) -> None:
        self._start = f"step {step}/"

    def __call__(self, line: str) -> None:
        if line.startswith(self._start):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_stopped_run_goes_on_to_the_same_integers(
    tiny_model: Callable[[str], Path], noise: Manifests, tmp_path: Path
) -> None:
    # Batch norms stop in the middle of the part that is done again; there is dropout, and all augmentation.
    settings = {"steps": 5, "report_every": 1, "freeze_norms_after": 4, "checkpoint_every": 10}
    config = configured(train=settings, data={"augment": {"speeds": [0.9, 1.0, 1.1], "noise": "coloured"}})
    place, signals = tiny_model("quartznet"), signal.getsignal(signal.SIGINT)
    options: dict[str, Any] = {**noise, "config": config, "recipe": with_weights(place, 4)}
    qat(place, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        qat(place, tmp_path / "broken", **options, say=StopAt(2))
    assert signal.getsignal(signal.SIGINT) is signals and not (tmp_path / "broken").exists()
    said: list[str] = []
    qat(place, tmp_path / "broken", **options, resume=True, say=said.append)
    assert any(line.endswith("going on after step 2") for line in said)
    whole, broken = integers(tmp_path / "whole"), integers(tmp_path / "broken")
    assert whole and whole == broken
    # A run that is done is only exported again, as after a full disk.
    qat(place, tmp_path / "broken", **options, resume=True, overwrite=True)
    assert integers(tmp_path / "broken") == whole

    for changed, words in (
        ({"recipe": with_weights(place, 8)}, r"differs in recipe \("),
        ({"config": replace(config, train=replace(config.train, rate=1e-4))}, r"differs in rate \("),
        ({"train": noise["calibration"], "calibration": noise["train"]}, "differs in train, utterances"),
        ({"model": tiny_model("jasper")}, "differs in .*weights"),
    ):
        arguments = {"model": place, **options, **changed}
        with pytest.raises(TrainingError, match=words):
            qat(arguments.pop("model"), tmp_path / "other", **arguments, run=tmp_path / "broken.run", resume=True)
        assert not (tmp_path / "other").exists()


def test_the_recipe_is_the_one_that_quantize_takes(
    tiny_model: Callable[[str], Path], noise: Manifests, tmp_path: Path, taught: Callable[..., tuple[Trained, Prepared]]
) -> None:
    """Trained with next to no rate, an artifact is the one that PTQ makes."""
    place, recipe = tiny_model("wav2vec2-large"), tmp_path / "w4.toml"
    recipe.write_text(with_weights(place, 4, "min_max").dumps(), "utf-8")
    trained, _ = taught(place, noise, configured(train={"rate": 1e-12, "weight_decay": 0.0}), recipe=recipe)
    ptq = quantize(place, tmp_path / "ptq", calibration=noise["calibration"], recipe=recipe)
    assert ptq.recipe == Artifact.load(trained.folder).recipe
    assert (tmp_path / "ptq" / "layers.json").read_bytes() == (trained.folder / "layers.json").read_bytes()
    ours, theirs = (quantasr.load(f, engine="onnxruntime") for f in (trained.folder, tmp_path / "ptq"))
    waves = [u.load(16000) for u in read_manifest(noise["validation"])]
    for a, b in zip(ours.logprobs(waves), theirs.logprobs(waves), strict=True):
        assert np.abs(a - b).mean() < 0.02


@pytest.mark.parametrize(("name", "target"), [("wav2vec2-large", "tuned"), ("quartznet", "tuned.nemo")])
def test_a_fine_tuned_model_is_what_it_was_when_it_comes_back(
    tiny_model: Callable[[str], Path], noise: Manifests, tmp_path: Path, name: str, target: str
) -> None:
    model = load_model(tiny_model(name))
    assert isinstance(model, FrameModel)
    waves = [u.load(16000) for u in read_manifest(noise["validation"])]
    before = model.logprobs(waves)
    speech = {"train": noise["train"], "validation": noise["validation"]}
    trained = finetune(model, tmp_path / target, **speech, config=configured())
    assert trained.folder == tmp_path / target and trained.run == tmp_path / f"{target}.run"
    again = load_model(trained.folder)
    for was, now, reloaded in zip(before, model.logprobs(waves), again.logprobs(waves), strict=True):
        assert np.abs(now - was).max() > 1e-3
        np.testing.assert_allclose(reloaded, now, atol=1e-5)


@pytest.mark.parametrize("vocabulary", ["characters", "file", ["x", "y", " "]], ids=["characters", "file", "list"])
def test_a_new_vocabulary(
    tiny_model: Callable[[str], Path], noise: Manifests, tmp_path: Path, vocabulary: str | list[str]
) -> None:
    words = ["xyz", "xy z"]
    rows = [replace(u, text=words[i % 2]) for i, u in enumerate(read_manifest(noise["train"]))]
    write_manifest(rows, tmp_path / "train.jsonl")
    given: Any = vocabulary
    if vocabulary == "file":
        given = tmp_path / "tokens.txt"
        given.write_text("x\ny\nz\n \n", "utf-8")
    options: dict[str, Any] = {"train": tmp_path / "train.jsonl", "config": configured(data={"holdout": "25%"})}
    place = tiny_model("wav2vec2-large")
    if isinstance(vocabulary, list):  # one without z
        options["config"] = configured(data={"holdout": "25%"})
        with pytest.raises(TrainingError, match="'z'"):
            finetune(place, tmp_path / "out", vocabulary=given, **options)
        assert not (tmp_path / "out").exists()
        return
    trained = finetune(place, tmp_path / "out", vocabulary=given, **options)
    model = load_model(trained.folder)
    assert {"x", "y", "z"} <= set(model.tokenizer.tokens) and "a" not in model.tokenizer.tokens
    if vocabulary == "file":
        return
    # And from there on it is a model as any other.
    texts = {"train": tmp_path / "train.jsonl", "calibration": noise["calibration"]}
    qat(trained.folder, tmp_path / "int8", **texts, config=options["config"])
    assert {"x", "y", "z"} <= set(json.loads((tmp_path / "int8/tokenizer.json").read_text("utf-8"))["tokens"])
