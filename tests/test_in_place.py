"""A live SpeechBrain recogniser that goes on in int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_speechbrain
import torch
from torch import nn

import quantasr
from quantasr.errors import AudioError, CalibrationError, EngineError, ModelLoadError, RecipeError
from quantasr.recipes import Recipe, Rule

RATE = 16000


def speech(count: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(rng.normal(0, 0.1, RATE) * np.hanning(RATE)).astype(np.float32) for _ in range(count)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("in_place")
    for name in ("sb-wav2vec2", "sb-crdnn"):
        (root / name).mkdir()
        tiny_speechbrain.save(name, root / name)
    return {folder.name: folder for folder in root.iterdir()}


def open_original(folder: Path) -> Any:
    return tiny_speechbrain.original(folder)


def outputs(asr: Any) -> list[torch.Tensor]:
    return [asr.encode_batch(torch.from_numpy(wave)[None], torch.ones(1)) for wave in speech()]


@pytest.mark.parametrize("engine", ["torch:onednn", "torch:fbgemm"])
def test_it_goes_on_in_its_own_code(folders: dict[str, Path], engine: str, tmp_path: Path) -> None:
    asr = open_original(folders["sb-wav2vec2"])
    before = outputs(asr)
    report = quantasr.quantize_in_place(
        asr, "published", calibration=speech(), engine=engine, all_layers=True, seconds=1
    )
    after = outputs(asr)
    rows = {row["path"]: row for row in report.layers}
    assert "linear_dynamic" in rows["encoder.wav2vec2.model.encoder.layers.0.attention.q_proj"]["kernel"] or (
        rows["encoder.wav2vec2.model.encoder.layers.0.attention.q_proj"]["mode"] == "dynamic"
    )
    assert rows["encoder.wav2vec2.model.feature_extractor.conv_layers.1.conv"]["mode"] == "static"
    assert rows["encoder.ctc_lin.w"]["mode"] == "float"
    assert any("attention" in row["path"] and row["kind"] == "product" for row in report.layers), "said to stay float"
    difference = max(float((a - b).abs().max()) for a, b in zip(after, before, strict=True))
    assert 0 < difference < 1.0
    # What is reached through the interface is there still.
    projection = asr.mods.encoder.wav2vec2.model.encoder.layers[0].attention.q_proj
    assert projection.in_features == 32 and projection.weight.shape == (32, 32)
    texts, _ = asr.transcribe_batch(torch.from_numpy(speech(1)[0])[None], torch.ones(1))
    assert len(texts) == 1
    assert report.to_dict()["backend"] == engine.partition(":")[2] and report.ratio > 0
    assert report.table().row_count


def test_batch_norms_are_folded_behind_linear_layers_and_said_where_not(folders: dict[str, Path]) -> None:
    asr = open_original(folders["sb-wav2vec2"])
    asr.mods.encoder.enc.act2 = nn.LeakyReLU()
    asr.mods.encoder.enc.bn2 = type(asr.mods.encoder.enc.bn1)(input_size=24).eval()
    recipe = Recipe("enc", (Rule("encoder.enc", {"mode": "dynamic"}),))
    report = quantasr.quantize_in_place(asr, recipe, engine="torch:onednn", all_layers=True, seconds=1)
    left = [row for row in report.layers if row["kind"] == "batch_norm"]
    assert [row["path"] for row in left] == ["encoder.enc.bn2.norm"]
    assert "no layer stands right before it" in left[0]["reason"]
    assert isinstance(asr.mods.encoder.enc.bn1.norm, nn.Identity)


def test_a_recurrent_model_in_dynamic_int8_needs_no_speech(folders: dict[str, Path]) -> None:
    asr = open_original(folders["sb-crdnn"])
    before = outputs(asr)
    recipe = Recipe("rnn", (Rule("encoder.model.RNN", {"mode": "dynamic"}),))
    report = quantasr.quantize_in_place(asr, recipe, engine="torch:fbgemm", all_layers=True, seconds=1)
    kernels = {row["path"]: row.get("kernel", "") for row in report.layers}
    assert kernels["encoder.model.RNN.rnn"] == "fbgemm lstm"
    assert asr.mods.encoder.model.RNN.rnn.hidden_size == 16
    difference = max(float((a - b).abs().max()) for a, b in zip(outputs(asr), before, strict=True))
    assert 0 < difference < 0.3


def test_layers_are_chosen_by_index(folders: dict[str, Path]) -> None:
    asr = open_original(folders["sb-wav2vec2"])
    recipe = Recipe("first", (Rule("encoder.wav2vec2.model.encoder.layers[0]", {"mode": "dynamic"}),))
    report = quantasr.quantize_in_place(asr, recipe, engine="torch:onednn", all_layers=True, seconds=1)
    chosen = {row["path"].split("layers.")[1][0] for row in report.layers if "kernel" in row}
    assert chosen == {"0"}


def test_what_is_in_int8_already_is_refused(folders: dict[str, Path]) -> None:
    asr = open_original(folders["sb-crdnn"])
    recipe = Recipe("rnn", (Rule("encoder.model.RNN", {"mode": "dynamic"}),))
    quantasr.quantize_in_place(asr, recipe, engine="torch:fbgemm", all_layers=True, seconds=1)
    before = outputs(asr)
    with pytest.raises(EngineError, match="in int8 already"):
        quantasr.quantize_in_place(asr, recipe, engine="torch:fbgemm", all_layers=True, seconds=1)
    assert all(torch.equal(a, b) for a, b in zip(outputs(asr), before, strict=True))


def identity(asr: Any) -> dict[str, tuple[int, int]]:
    return {name: (id(t), t.data_ptr()) for name, t in asr.mods.state_dict(keep_vars=True).items()}


@pytest.mark.parametrize(
    ("recipe", "calibration", "error", "message"),
    [
        (Recipe("r", (Rule("encoder.ctc_line"),)), speech, RecipeError, "did you mean encoder.ctc_lin"),
        (Recipe("r", (Rule("encoder.model.RNN"),)), speech, RecipeError, "lstm can only be dynamic"),
        (Recipe("r", (Rule("encoder.ctc_lin"),)), lambda: None, CalibrationError, "give some speech as calibration"),
        (Recipe("r", (Rule("encoder.ctc_lin"),)), lambda: [np.full(RATE, np.nan, np.float32)], AudioError, "NaN"),
        (Recipe("r", (), float_storage="bf16"), speech, EngineError, "float rest in fp32"),
        ("best", speech, RecipeError, "no built-in recipe 'best'"),
    ],
)
def test_bad_input_leaves_the_model_as_it_was(
    folders: dict[str, Path], recipe: Any, calibration: Any, error: type[Exception], message: str
) -> None:
    asr = open_original(folders["sb-crdnn"])
    before, expected = identity(asr), outputs(asr)
    with pytest.raises(error, match=message) as raised:
        quantasr.quantize_in_place(
            asr, recipe, calibration=calibration(), engine="torch:onednn", all_layers=True, seconds=1
        )
    assert "\n" not in str(raised.value)
    assert identity(asr) == before
    assert all(torch.equal(a, b) for a, b in zip(outputs(asr), expected, strict=True))


def test_an_error_in_the_middle_leaves_attention_as_it_was(folders: dict[str, Path]) -> None:
    asr = open_original(folders["sb-wav2vec2"])
    config = asr.mods.encoder.wav2vec2.model.config
    before, expected, attention = identity(asr), outputs(asr), config._attn_implementation
    broken = [*speech(1), np.full(RATE, np.nan, np.float32)]
    with pytest.raises(AudioError):
        quantasr.quantize_in_place(asr, "published", calibration=broken, engine="torch:onednn", seconds=1)
    assert config._attn_implementation == attention == "sdpa" and identity(asr) == before
    assert all(torch.equal(a, b) for a, b in zip(outputs(asr), expected, strict=True))


def test_what_is_no_recogniser() -> None:
    with pytest.raises(ModelLoadError, match="Linear is no recogniser that can be quantized where it is"):
        quantasr.quantize_in_place(nn.Linear(2, 2))
