"""Folders that cannot be loaded: one line each, which says what, where and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_hf
import torch
import transformers
from safetensors.torch import load_file, save_file

from quantasr import load_model
from quantasr.errors import ModelLoadError


@pytest.fixture
def folder(tmp_path: Path, tiny_hf_folder: Callable[[str], Path]) -> Path:
    """A good model that the test may break."""
    return Path(shutil.copytree(tiny_hf_folder("wav2vec2-base"), tmp_path / "model"))


def _refusal(folder: Path | str, **options: bool) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model(folder, **options)
    said = str(caught.value)
    assert str(folder) in said and "\n" not in said and len(said) < 500
    return said


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def _weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_a_good_folder_loads(folder: Path) -> None:
    assert load_model(folder).name == "model"
    assert load_model(str(folder)).name == "model"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert "no such folder" in _refusal(tmp_path / "none")


def test_a_hub_id_without_network() -> None:
    said = _refusal("nobody/no-such-model")
    assert "cannot load it" in said and "no such folder" in said


def test_a_folder_without_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "no source recognises it; quantasr reads NVIDIA NeMo" in _refusal(folder)
    with pytest.raises(ModelLoadError, match=r"it has no config\.json"):
        load_model(folder, source="huggingface")


def test_a_file_instead_of_a_folder(folder: Path) -> None:
    _refusal(folder / "config.json")


def test_an_unknown_source(folder: Path) -> None:
    with pytest.raises(ModelLoadError, match="source 'kaldy' is unknown: choose one of auto, nemo, speechbrain, kaldi"):
        load_model(folder, source="kaldy")


@pytest.mark.parametrize(
    "text", ["[]", '"wav2vec2"', "{}", '{"model_type": 5}', '{"model_type": "wav2vec2", "hidden_size": "wide"}', "\x00"]
)
def test_a_config_that_says_nothing_useful(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, "utf-8")
    _refusal(folder)


def test_a_config_that_is_not_json(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "wav2vec2"', "utf-8")
    assert "JSON" in _refusal(folder)


@pytest.mark.parametrize("name", ["vocab.json", "preprocessor_config.json", "tokenizer_config.json"])
def test_a_processor_file_that_is_not_json(folder: Path, name: str) -> None:
    (folder / name).write_text("{", "utf-8")
    assert "JSON" in _refusal(folder)


@pytest.mark.parametrize("name", ["vocab.json", "preprocessor_config.json"])
def test_a_processor_file_that_is_missing(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / "processor_config.json").unlink(missing_ok=True)
    _refusal(folder)


def test_another_kind_of_model(folder: Path) -> None:
    _edit(folder / "config.json", model_type="bert", architectures=["BertForMaskedLM"])
    assert "model_type 'bert' is not supported; supported are wav2vec2" in _refusal(folder)


def test_an_encoder_without_head(tmp_path: Path) -> None:
    config, _, settings, _ = tiny_hf.VARIANTS["wav2vec2-base"]
    transformers.Wav2Vec2Model(config(**settings)).save_pretrained(tmp_path)
    tiny_hf.save_processor(tmp_path, bert=False, mask=False)
    assert "Wav2Vec2Model has no CTC head: fine-tune it" in _refusal(tmp_path)


def test_a_head_that_the_weights_lack(folder: Path) -> None:
    _weights(folder, lambda tensors: [tensors.pop("lm_head.weight"), tensors.pop("lm_head.bias")])
    assert "2 weights are missing, the first is lm_head.bias: is it fine-tuned" in _refusal(folder)


def test_weights_of_another_shape(folder: Path) -> None:
    _edit(folder / "config.json", hidden_size=48)
    _refusal(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(folder: Path, value: float) -> None:
    _weights(folder, lambda tensors: tensors["lm_head.bias"].fill_(value))
    assert "weight lm_head.bias has NaN or infinite values" in _refusal(folder)


def test_statistics_that_are_not_finite(tmp_path: Path, tiny_hf_folder: Callable[[str], Path]) -> None:
    folder = Path(shutil.copytree(tiny_hf_folder("hubert-batch-norm"), tmp_path / "model"))
    key = "hubert.encoder.pos_conv_embed.batch_norm.running_var"
    _weights(folder, lambda tensors: tensors[key].fill_(float("nan")))
    assert f"weight {key} has NaN" in _refusal(folder)


def test_truncated_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    _refusal(folder)


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    _refusal(folder)


def test_pickled_weights_need_trust(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "only pickled weights, which can run code when read" in _refusal(folder)
    assert load_model(folder, trust=True).name == "model"


def test_a_tokenizer_that_is_not_for_ctc(folder: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>")).save(str(folder / "tokenizer.json"))
    (folder / "vocab.json").unlink()
    _edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    assert "is not a CTC tokenizer" in _refusal(folder)


def test_a_tokenizer_without_blank(folder: Path) -> None:
    _edit(folder / "tokenizer_config.json", pad_token=None, added_tokens_decoder={})
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    _refusal(folder)
