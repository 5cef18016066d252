"""Fine-tuned Hugging Face models are written so that transformers itself loads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_hf
import torch

from quantasr import load_model
from quantasr.errors import ArtifactError, ModelLoadError
from quantasr.quantize.prepare import prepare
from quantasr.recipes.builtin import builtin_recipe

SPEECH = tiny_hf.speech(0.7, 0.4)


def _train(model: Any) -> None:
    """A step that changes every weight."""
    model.module.train()
    optimizer = torch.optim.SGD(model.module.parameters(), lr=1e-3)
    inputs = model.inputs(SPEECH)
    lengths = inputs[1] if len(inputs) > 1 else torch.tensor([inputs[0].shape[1]] * 2)
    logprobs, *_ = model.train_outputs(inputs[0], lengths)
    logprobs[..., 3].sum().backward()
    torch.nn.utils.clip_grad_norm_(model.module.parameters(), 10.0)
    optimizer.step()
    model.module.eval()


@pytest.mark.parametrize(
    "name", ["wav2vec2-base", "wav2vec2-mms", "hubert-batch-norm", "wavlm-large", "data2vec", "bert-relative-key"]
)
def test_a_trained_model_loads_in_transformers(
    name: str, tiny_hf_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tiny_hf_folder(name)
    model: Any = load_model(folder)
    before = model.logprobs(SPEECH)
    _train(model)
    trained = model.logprobs(SPEECH)
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(before, trained, strict=True))
    model.save(tmp_path / "saved")

    again: Any = load_model(tmp_path / "saved")
    for a, b in zip(trained, again.logprobs(SPEECH), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.tokenizer == model.tokenizer and again.frontend == model.frontend
    assert again.padded_batches == model.padded_batches
    original, processor = tiny_hf.original(tmp_path / "saved"), tiny_hf.processor(tmp_path / "saved")
    batch = processor([SPEECH[0]], sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        theirs = torch.log_softmax(original(**batch).logits, -1)[0].numpy()
    np.testing.assert_allclose(trained[0], theirs[: len(trained[0])], atol=1e-3)
    assert processor.tokenizer.get_vocab() == tiny_hf.processor(folder).tokenizer.get_vocab()
    kinds = {path.suffix for path in (tmp_path / "saved").iterdir()}
    assert kinds == {".json", ".safetensors"}, "nothing is pickled"


def test_keys_of_the_weights_stay_what_they_were(tiny_hf_folder: Callable[[str], Path], tmp_path: Path) -> None:
    from safetensors import safe_open

    def keys(folder: Path) -> set[str]:
        with safe_open(folder / "model.safetensors", "pt") as file:
            return set(file.keys())

    load_model(tiny_hf_folder("wav2vec2-large")).save(tmp_path / "saved")
    assert keys(tmp_path / "saved") == keys(tiny_hf_folder("wav2vec2-large"))


def test_what_cannot_be_saved(tiny_hf_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model: Any = load_model(tiny_hf_folder("wav2vec2-base"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(ArtifactError, match=r"full: exists"):
        model.save(tmp_path / "full")
    prepare(model, builtin_recipe("wav2vec2"))
    with pytest.raises(ModelLoadError, match="made ready for export, which is not undone: load it again"):
        model.save(tmp_path / "prepared")
    gone = tiny_hf.save("wav2vec2-base", tmp_path / "gone")
    model = load_model(gone)
    for file in gone.iterdir():
        file.unlink()
    with pytest.raises(ModelLoadError, match=r"gone: the model was loaded from there, and its files are there no more"):
        model.save(tmp_path / "lost")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "gone"]


def test_a_models_files_come_from_the_hubs_cache(
    tiny_hf_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    model: Any = load_model(tiny_hf_folder("wav2vec2-base"))
    folder = Path(model.provenance["model"])
    model.provenance |= {"model": "somebody/something", "revision": "v2"}
    asked = []

    def cached(repository: str, name: str, revision: str | None = None) -> str | None:
        asked.append((repository, revision))
        path = folder / name
        return str(path) if path.is_file() else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    model.save(tmp_path / "saved")
    assert set(asked) == {("somebody/something", "v2")}
    assert load_model(tmp_path / "saved").tokenizer == model.tokenizer  # type: ignore[attr-defined]
