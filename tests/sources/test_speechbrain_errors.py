"""SpeechBrain models that cannot be loaded: one line each, which says what, where and what to do."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quantasr import load_model
from quantasr.errors import ModelLoadError
from quantasr.sources import speechbrain as source


@pytest.fixture
def folder(tmp_path: Path, tiny_speechbrain_folder: Callable[[str], Path]) -> Path:
    """A good model that the test may break."""
    return Path(shutil.copytree(tiny_speechbrain_folder("sb-crdnn"), tmp_path / "model"))


def _refusal(folder: Path | str, **options: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model(folder, **{"trust": True, **options})
    said = str(caught.value)
    assert said.startswith(f"{folder}: ") and "\n" not in said and len(said) < 450
    return said


def _edit(folder: Path, old: str, new: str) -> None:
    file = folder / "hyperparams.yaml"
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new), "utf-8")


def test_no_trust(folder: Path) -> None:
    (folder / "hyperparams.yaml").write_text("x: !apply:os._exit [3]\n", "utf-8")  # nothing is read before it is asked
    said = _refusal(folder, trust=False)
    assert "runs whatever code it names" in said and "--trust" in said


def test_a_folder_without_hyperparams(folder: Path) -> None:
    (folder / "hyperparams.yaml").unlink()
    assert "has no hyperparams.yaml" in _refusal(folder, source="speechbrain")
    assert not source.recognises(str(folder))


def test_who_recognises_what(folder: Path) -> None:
    assert source.recognises(str(folder)) and source.recognises("speechbrain/asr-crdnn")
    assert not source.recognises("facebook/wav2vec2-base") and not source.recognises("speechbrain/a/b")


@pytest.mark.parametrize("text", ["", "[1, 2", "a: !new:no.such.Thing", "a: !ref <nothing>", "- 1", "\x00", "a: 1"])
def test_a_yaml_that_says_nothing_useful(folder: Path, text: str) -> None:
    (folder / "hyperparams.yaml").write_text(text, "utf-8")
    _refusal(folder)


@pytest.mark.parametrize("name", ["asr", "normalize"])
def test_a_checkpoint_that_is_missing(folder: Path, name: str) -> None:
    (folder / f"{name}.ckpt").unlink()
    assert f"{name}.ckpt is missing" in _refusal(folder)


def test_a_tokenizer_that_is_missing(folder: Path) -> None:
    (folder / "tokenizer.ckpt").unlink()  # SpeechBrain says nothing
    assert "its tokenizer has no labels: is its file missing" in _refusal(folder)


@pytest.mark.parametrize("name", ["asr", "normalize", "tokenizer"])
def test_a_checkpoint_that_is_damaged(folder: Path, name: str) -> None:
    (folder / f"{name}.ckpt").write_bytes(b"\x80\x02nonsense")
    _refusal(folder)


def test_weights_of_another_shape(folder: Path) -> None:
    _edit(folder, "rnn_neurons: 16", "rnn_neurons: 18")
    assert "size mismatch" in _refusal(folder)


def test_weights_that_are_not_finite(folder: Path) -> None:
    state = torch.load(folder / "asr.ckpt")
    name = next(key for key in state if key.endswith("w.weight"))
    state[name][0, 0] = float("nan")
    torch.save(state, folder / "asr.ckpt")
    assert "NaN or infinite" in _refusal(folder)


def test_statistics_that_nobody_loads(folder: Path) -> None:
    _edit(folder, "        normalize: !ref <normalize>\n        asr", "        asr")
    assert "InputNormalization" in _refusal(folder)


def test_a_tokenizer_that_nobody_loads(folder: Path) -> None:
    _edit(folder, "        tokenizer: !ref <tokenizer>\n", "")
    assert "no labels" in _refusal(folder)


def test_no_recogniser(folder: Path) -> None:
    _edit(folder, "    encoder: !ref <encoder>", "    vocoder: !ref <encoder>")
    assert "have no encoder" in _refusal(folder)


def test_neither_ctc_nor_attention(folder: Path) -> None:
    _edit(folder, "decoding_function:", "another_function:")
    assert "neither a decoding_function" in _refusal(folder)


def test_an_unknown_way_to_decode(folder: Path) -> None:
    _edit(folder, "speechbrain.decoders.ctc_greedy_decode\n    blank_id: !ref <blank_index>", "operator.add\n    b: 1")
    assert "decoding_function add is unknown" in _refusal(folder)


def test_a_blank_that_is_no_output(folder: Path) -> None:
    _edit(folder, "blank_index: 0", "blank_index: 99")
    assert "blank 99 is not among" in _refusal(folder)


def test_an_encoder_without_frames(folder: Path) -> None:
    pooling = "    pool: !new:speechbrain.nnet.pooling.StatisticsPooling"
    _edit(folder, "    log_softmax: !ref <log_softmax>", pooling)
    assert "does not give a row of outputs" in _refusal(folder)


def test_speechbrain_is_not_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "speechbrain"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "speechbrain", None)
    assert "pip install 'quantasr[speechbrain]'" in _refusal(folder)


def test_torchaudio_for_another_pytorch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.__import__", _failing(__import__))
    said = _refusal(folder)
    assert "torchaudio/lib/*.so" in said and "another PyTorch" in said


def _failing(real: Callable[..., Any]) -> Callable[..., Any]:
    def load(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".")[0] == "speechbrain":
            raise OSError("Could not load this library: libtorchaudio.so")
        return real(name, *arguments, **options)

    return load


def test_a_hub_id_goes_through_its_cache_with_its_revision(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[dict[str, Any]] = []

    def hf_hub_download(**options: Any) -> str:
        asked.append(options)
        return str(folder / options["filename"])

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    model = load_model("speechbrain/asr-crdnn-tiny", revision="v3", trust=True)
    assert model.name == "asr-crdnn-tiny" and model.provenance["revision"] == "v3"
    assert {options["filename"] for options in asked} >= {"hyperparams.yaml", "asr.ckpt", "normalize.ckpt"}
    assert {(options["repo_id"], options["revision"]) for options in asked} == {("speechbrain/asr-crdnn-tiny", "v3")}
    assert not list((tmp_path / "here").iterdir())


def test_a_hub_id_that_cannot_be_fetched() -> None:
    _refusal("speechbrain/no-such-model")
