"""Fine-tuned SpeechBrain models are written so that SpeechBrain's own interface loads them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_hf
import tiny_speechbrain
import torch

from quantasr import load_model
from quantasr.errors import ModelLoadError

SPEECH = tiny_hf.speech(0.7, 0.4)


def _train(model: Any) -> None:
    """A step that changes every weight, and the statistics of norms."""
    model.module.train()
    optimizer = torch.optim.SGD(model.module.parameters(), lr=1e-2)
    (features,) = model.inputs(SPEECH)
    logprobs, *_ = model.train_outputs(features, torch.tensor([features.shape[1]] * 2))
    logprobs[..., 3].sum().backward()
    torch.nn.utils.clip_grad_norm_(model.module.parameters(), 10.0)
    optimizer.step()
    model.module.eval()


def _digits(tmp_path: Path) -> Path:
    """Whose Wav2Vec2 is read from a folder of its own, and by no pretrainer."""
    source = Path(__file__).parents[1] / "data" / "speechbrain" / "wav2vec2_ctc"
    return Path(shutil.copytree(source, tmp_path / "digits"))


@pytest.mark.parametrize("name", ["sb-wav2vec2", "sb-crdnn", "digits"])
def test_a_trained_model_is_opened_by_speechbrain(
    name: str, tiny_speechbrain_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = _digits(tmp_path) if name == "digits" else tiny_speechbrain_folder(name)
    model: Any = load_model(folder, trust=True)
    before = model.logprobs(SPEECH)
    _train(model)
    trained = model.logprobs(SPEECH)
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(before, trained, strict=True))
    model.save(tmp_path / "saved")
    moved = (tmp_path / "saved").rename(tmp_path / "moved")

    again: Any = load_model(moved, trust=True)
    for a, b in zip(trained, again.logprobs(SPEECH), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.tokenizer == model.tokenizer and again.frontend == model.frontend

    interface = tiny_speechbrain.original(moved)
    with torch.no_grad():
        theirs = interface.encode_batch(torch.from_numpy(SPEECH[0])[None], torch.ones(1))[0].numpy()
    np.testing.assert_allclose(trained[0], theirs, atol=1e-3)
    files = [{path.relative_to(place) for path in place.rglob("*")} for place in (folder, moved)]
    assert files[0] == files[1]


def test_a_hub_id_in_it_becomes_the_folder(tiny_speechbrain_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tiny_speechbrain_folder("sb-wav2vec2")
    assert "pretrained_path: nobody/nothing" in (folder / "hyperparams.yaml").read_text("utf-8")
    load_model(folder, trust=True).save(tmp_path / "saved")
    assert "pretrained_path: .\n" in (tmp_path / "saved" / "hyperparams.yaml").read_text("utf-8")


def test_an_attention_model_is_saved_too(tmp_path: Path) -> None:
    import tiny_speechbrain_attention

    folder = tiny_speechbrain_attention.write_attention(tmp_path / "model", "gru_beam")
    model: Any = load_model(folder, trust=True)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.mul_(1.01)
    model.save(tmp_path / "saved")
    again: Any = load_model(tmp_path / "saved", trust=True)
    paths = model.paths(SPEECH[:1])
    np.testing.assert_array_equal(model.logprobs(SPEECH[:1], paths)[0], again.logprobs(SPEECH[:1], paths)[0])


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    folder = tiny_speechbrain.save("sb-crdnn", _made(tmp_path / "model"))
    text = (folder / "hyperparams.yaml").read_text("utf-8")
    elsewhere = tiny_speechbrain.save("sb-crdnn", _made(tmp_path / "elsewhere"))
    paths = f"    paths:\n        asr: {elsewhere}/asr.ckpt\n"
    (folder / "hyperparams.yaml").write_text(text.replace("    loadables:\n", f"{paths}    loadables:\n"), "utf-8")
    model: Any = load_model(folder, trust=True)
    _train(model)
    with pytest.raises(ModelLoadError, match=r"does not read encoder\..* from a file in its folder"):
        model.save(tmp_path / "saved")
    shutil.rmtree(folder)
    with pytest.raises(ModelLoadError, match=r"model: .*is there no more"):
        model.save(tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
