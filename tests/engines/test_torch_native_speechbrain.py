"""PyTorch's own int8 in SpeechBrain's models: live, and written to a folder and built again."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

pytest.importorskip("speechbrain")

import tiny_speechbrain
from safetensors.torch import load_file
from tiny_speechbrain_attention import KINDS, write_attention

import quantasr
from quantasr.artifact import Artifact
from quantasr.engines.torch_native.backends import find_backend
from quantasr.engines.torch_native.convert import Calibrated, calibrate_native, choose
from quantasr.errors import ModelLoadError
from quantasr.measure.agreement import agreement
from quantasr.pipeline_native import NativeOptions, quantize_native
from quantasr.quantize import prepare
from quantasr.recipes import Recipe
from quantasr.runtime import load_native
from quantasr.sources import AsrModel, load_model
from quantasr.speech.manifest import read_manifest

_KINDS = {
    "lstm": "dynamic",
    "gru": "dynamic",
    "lstm_cell": "dynamic",
    "gru_cell": "dynamic",
    "embedding": "weight_only",
}


def recipe(mode: str) -> Recipe:
    """Every layer there is: linear ones in ``mode``, convolutions static."""
    rules = [{"match": "*"}, {"match": "*", "kind": "linear", "mode": mode, "optional": True}]
    rules += [{"match": "*", "kind": kind, "mode": how, "optional": True} for kind, how in _KINDS.items()]
    defaults = {"mode": "static", "weight": {"observer": "min_max"}, "input": {"observer": "min_max"}}
    return Recipe.from_dict({"format": 1, "name": mode, "defaults": defaults, "rules": rules})


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def open_model(kind: str, folder: Path) -> AsrModel:
    folder.mkdir(parents=True, exist_ok=True)
    (write_attention(folder, kind) if kind in KINDS else tiny_speechbrain.save(kind, folder))
    return load_model(folder, trust=True)


def convert(model: AsrModel, mode: str, waves: list[np.ndarray], backend: str = "onednn") -> Calibrated:
    found = find_backend(backend)
    calibrated = calibrate_native(prepare(model, recipe(mode)), waves, [found], seconds=1.0)
    chosen = choose(calibrated, found, timing=False)
    calibrated.install(chosen.plan)
    # An embedding of the search is dynamic, so is every recurrent layer; each layer that is called is in int8.
    uncalled = [path for path, reason in chosen.reasons.items() if "never called" not in reason]
    assert uncalled == [], chosen.reasons
    assert chosen.plan.dynamic and chosen.plan.layers
    return calibrated


@pytest.mark.parametrize("mode", ["static", "dynamic"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_int8_is_close_to_float(kind: str, mode: str, tmp_path: Path) -> None:
    model = open_model(kind, tmp_path)
    waves = [noise(12000 + 3000 * i, i) for i in range(3)]
    paths = model.paths(waves)
    before = model.logprobs(waves, paths)
    convert(model, mode, waves)
    found = agreement(model.logprobs(waves, paths), before)
    assert found.same_argmax >= 0.85
    assert found.mean_difference < 0.08 * np.concatenate(before).std()
    assert found.mean_difference > 1e-5, "nothing was rounded"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An interface of SpeechBrain's with every layer in int8, a recurrent decoder and a language model among them."""
    model: Any = open_model("gru_beam", tmp_path_factory.mktemp("asr"))
    convert(model, "static", [noise(16000)])
    return model


def test_its_own_methods_go_on_working(converted: Any, tmp_path: Path) -> None:
    wave = noise(12000, 5)
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    expected = converted.transcriber().transcribe([wave])[0].text
    assert expected
    assert converted.interface.transcribe_batch(torch.from_numpy(wave)[None], torch.ones(1))[0] == [expected]
    assert converted.interface.transcribe_file(str(tmp_path / "a.wav")) == expected
    two = np.stack([wave, noise(12000, 6)])
    assert len(converted.interface.transcribe_batch(torch.from_numpy(two), torch.ones(2))[0]) == 2


def test_attributes_stay_reachable(converted: Any) -> None:
    mods = converted.interface.mods
    cell, lstm = mods["decoder"].dec.rnn.rnn_cells[0], mods["encoder"].model.RNN.rnn
    assert (cell.hidden_size, cell.weight_ih.shape) == (32, (96, 64))
    assert (lstm.hidden_size, lstm.bidirectional, lstm.weight_ih_l0.shape[0]) == (32, True, 128)
    assert mods["decoder"].fc.w.weight.shape == (30, 32)
    assert mods["decoder"].emb.Embedding.weight.shape == (30, 32)
    assert mods["ctc_lin"].w.out_features == 30


def test_it_can_be_copied_moved_and_listed(converted: Any) -> None:
    wave = torch.from_numpy(noise(12000, 5))[None]
    expected = converted.interface.transcribe_batch(wave, torch.ones(1))[0]
    twin = copy.deepcopy(converted.interface)
    assert twin.transcribe_batch(wave, torch.ones(1))[0] == expected
    assert copy.copy(converted.interface).eval().transcribe_batch(wave, torch.ones(1))[0] == expected
    assert converted.interface.to("cpu").transcribe_batch(wave, torch.ones(1))[0] == expected
    assert len(converted.interface.state_dict()) > 0
    assert "PackedWeight" not in str(converted.interface)


def test_uninstalled_it_is_float_again(tmp_path: Path) -> None:
    model = open_model("lstm_greedy", tmp_path)
    waves = [noise(12000)]
    calibrated = convert(model, "dynamic", waves)
    int8 = model.logprobs(waves, model.paths(waves))
    calibrated.uninstall()
    paths = model.paths(waves)
    back, original = model.logprobs(waves, paths), load_model(tmp_path, trust=True).logprobs(waves, paths)
    np.testing.assert_allclose(back[0], original[0], atol=1e-4)
    assert np.abs(int8[0][: len(back[0])] - back[0][: len(int8[0])]).max() > 1e-3


def write(kind: str, folder: Path) -> tuple[AsrModel, Artifact]:
    """A model of a kind, converted, and the folder that it was written to; both have a wave beside them."""
    model = open_model(kind, folder / kind)
    rows = []
    for i in range(2):
        if not (folder / f"{i}.wav").exists():  # such files have the time in them
            soundfile.write(folder / f"{i}.wav", noise(12000, i), 16000, subtype="FLOAT")
        rows.append(json.dumps({"audio_filepath": str(folder / f"{i}.wav"), "text": "a", "duration": 0.75}))
    (folder / "speech.jsonl").write_text("\n".join(rows) + "\n")
    options = NativeOptions("onednn", timing=False, seconds=1.0)
    speech = [noise(12000, i) for i in range(2)]
    output = folder / f"{kind}-int8"
    return model, quantize_native(
        model, output, read_manifest(folder / "speech.jsonl"), speech, recipe("dynamic"), options
    )


_REBUILT = ("gru_beam", "conformer_greedy", "sb-wav2vec2", "sb-crdnn")

# Another process: neither the folder of the original nor the network is there.
_RUN = """
import sys, numpy as np
from pathlib import Path
from quantasr.artifact import WHOLE, Artifact
from quantasr.runtime import load_native, recogniser
wave = np.load("wave.npy")
for name in sys.argv[1:]:
    artifact = Artifact.load(Path(name))
    engine = load_native(artifact, trust=True)
    rows = engine.model.logprobs([wave])[0]
    np.save(f"{name}.npy", rows)
    Path(f"{name}.txt").write_text(recogniser(artifact, {WHOLE: engine}).transcribe([wave])[0].text)
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[AsrModel, Artifact]]]:
    folder = tmp_path_factory.mktemp("written")
    return folder, {kind: write(kind, folder) for kind in _REBUILT}


def test_another_process_gives_every_bit(written: Any, tmp_path: Path) -> None:
    _, models = written
    wave = noise(15000, 9)
    np.save(tmp_path / "wave.npy", wave)
    for kind, (_, artifact) in models.items():
        artifact.folder.rename(tmp_path / kind)
    before = {path.name for path in tmp_path.iterdir()}
    try:
        (tmp_path / "run.py").write_text(_RUN)
        command = [sys.executable, "run.py", *models]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    finally:
        for kind, (_, artifact) in models.items():
            (tmp_path / kind).rename(artifact.folder)
    assert done.returncode == 0, done.stderr
    for kind, (model, _) in models.items():
        np.testing.assert_array_equal(np.load(tmp_path / f"{kind}.npy"), model.logprobs([wave])[0])
        assert (tmp_path / f"{kind}.txt").read_text() == model.transcriber().transcribe([wave])[0].text
    expected = {f"{kind}.{ending}" for kind in models for ending in ("npy", "txt")}
    left = {path.name for path in tmp_path.iterdir()} - before
    assert left == expected | {"run.py"}, "it wrote something else"


@pytest.mark.parametrize("kind", _REBUILT)
def test_every_weight_is_stored_once_and_nothing_is_pickled(written: Any, kind: str) -> None:
    model, artifact = written[1][kind]
    folder = artifact.folder
    for path in folder.iterdir():
        head = path.read_bytes()[:4]
        assert not head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")), path.name
        assert path.suffix != ".ckpt"
    stored = load_file(folder / "model.safetensors")
    floats = sum(t.numel() for name, t in stored.items() if not name.startswith("quantasr."))
    integers = sum(t.numel() for name, t in stored.items() if name.startswith("quantasr.integers."))
    buffers = sum(b.numel() for b in model.module.buffers())
    assert floats + integers <= model.provenance["parameters"] * 1.02 + buffers
    assert str(folder.parent) not in (folder / "speechbrain.json").read_text().replace(model.provenance["model"], "")


def test_a_folder_is_evaluated_and_inspected_as_any(written: Any) -> None:
    from quantasr.measure.audit import audit
    from quantasr.measure.evaluate import evaluate

    folder, models = written
    model, artifact = models["gru_beam"]
    loaded = quantasr.load(artifact.folder, trust=True)
    assert artifact.decoder == "attention" and loaded.sample_rate == 16000
    found = audit(artifact, loaded.engines, seconds=1.0)
    assert found.int8_share > 0.5
    assert {row.executed for row in found.layers if row.path == "decoder.dec.rnn.rnn_cells.0"} == {"int8"}
    with pytest.raises(ValueError, match="calibration speech"):
        evaluate(loaded, folder / "speech.jsonl")
    soundfile.write(folder / "new.wav", noise(12000, 77), 16000, subtype="FLOAT")
    row = {"audio_filepath": str(folder / "new.wav"), "text": "a", "duration": 0.75}
    (folder / "new.jsonl").write_text(json.dumps(row) + "\n")
    texts = [t.text for t in evaluate(loaded, folder / "new.jsonl").transcripts]
    assert texts == [model.transcriber().transcribe([noise(12000, 77)])[0].text]


def test_without_trust_nothing_of_it_runs(written: Any, tmp_path: Path) -> None:
    _, artifact = written[1]["gru_beam"]
    yaml = artifact.folder / "hyperparams.yaml"
    text, ran = yaml.read_text(), tmp_path / "ran"
    yaml.write_text(f"{text}\nevil: !apply:pathlib.Path.touch [!new:pathlib.Path ['{ran}']]\n")
    try:
        with pytest.raises(ModelLoadError, match=r"runs whatever code it names.*--trust") as caught:
            load_native(artifact)
        assert "\n" not in str(caught.value)
        assert not ran.exists()
        load_native(artifact, trust=True)
        assert ran.exists()  # so it would have been noticed
    finally:
        yaml.write_text(text)


def test_a_damaged_description_is_one_line(written: Any) -> None:
    _, artifact = written[1]["sb-crdnn"]
    path = artifact.folder / "speechbrain.json"
    text = path.read_text()
    for broken in ("{", json.dumps({"provenance": {}})):
        path.write_text(broken)
        with pytest.raises(ModelLoadError) as caught:
            load_native(artifact, trust=True)
        assert "\n" not in str(caught.value)
    path.write_text(text)
