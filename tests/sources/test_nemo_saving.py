"""Fine-tuned NeMo models are written so that NeMo's own ``restore_from`` loads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_nemo
import torch

from quantasr import load_model
from quantasr.errors import ArtifactError, ModelLoadError

SPEECH = tiny_nemo.speech(1.1, 0.6)


def _train(model: Any) -> None:
    """A step that changes every weight, and the statistics of norms."""
    model.module.train()
    optimizer = torch.optim.SGD(model.module.parameters(), lr=1e-2)
    logprobs, *_ = model.train_outputs(*model.inputs(SPEECH))
    logprobs[..., 3].sum().backward()
    torch.nn.utils.clip_grad_norm_(model.module.parameters(), 10.0)
    optimizer.step()
    model.module.eval()


@pytest.mark.parametrize("name", ["quartznet", "citrinet", "fastconformer", "hybrid-bpe"])
def test_a_trained_model_is_restored_by_nemo(name: str, tiny_nemo_file: Callable[[str], Path], tmp_path: Path) -> None:
    model: Any = load_model(tiny_nemo.ctc(tiny_nemo_file(name)))
    before = model.logprobs(SPEECH)
    _train(model)
    trained = model.logprobs(SPEECH)
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(before, trained, strict=True))
    model.save(tmp_path / "tuned.nemo")
    model.save(tmp_path / "folder")

    head = "#ctc" if name.startswith("hybrid") else ""
    for place in ("tuned.nemo", "folder"):
        again: Any = load_model(f"{tmp_path / place}{head}")
        for a, b in zip(trained, again.logprobs(SPEECH), strict=True):
            np.testing.assert_array_equal(a, b)
        assert again.tokenizer == model.tokenizer and again.frontend == model.frontend

    original = tiny_nemo.original(tmp_path / "tuned.nemo")
    features, lengths = model.inputs(SPEECH[:1])
    with torch.no_grad():
        encoded, _ = original.encoder(audio_signal=features.transpose(1, 2), length=lengths)
        head = original.ctc_decoder if hasattr(original, "ctc_decoder") else original.decoder
        theirs = head(encoder_output=encoded)[0].numpy()
    np.testing.assert_allclose(trained[0], theirs[: len(trained[0])], atol=1e-5)
    for key, tensor in original.state_dict().items():
        if key in model.module.state_dict():
            torch.testing.assert_close(tensor, model.module.state_dict()[key], rtol=0, atol=0)


def test_all_else_in_the_file_is_as_it_was(tiny_nemo_file: Callable[[str], Path], tmp_path: Path) -> None:
    file = tiny_nemo_file("hybrid-bpe")
    load_model(tiny_nemo.ctc(file)).save(tmp_path / "again.nemo")
    before, after = tiny_nemo.contents(file), tiny_nemo.contents(tmp_path / "again.nemo")
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} <= {"model_weights.ckpt"}
    states = [torch.load(place, weights_only=True) for place in (_unpacked(tmp_path, f) for f in (before, after))]
    assert list(states[0]) == list(states[1])
    for key, tensor in states[0].items():
        torch.testing.assert_close(states[1][key], tensor, rtol=0, atol=0)


def _unpacked(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "weights"
    path.write_bytes(files["model_weights.ckpt"])
    return path


def test_what_cannot_be_saved(tiny_nemo_file: Callable[[str], Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.nemo"
    copy.write_bytes(tiny_nemo_file("quartznet").read_bytes())
    model: Any = load_model(copy)
    with pytest.raises(ArtifactError, match=r"copy\.nemo: exists"):
        model.save(copy)
    tiny_nemo.save("conformer-abs-pos", tmp_path / "other").rename(copy)
    with pytest.raises(ModelLoadError, match="has other weights than the model that was loaded from there"):
        model.save(tmp_path / "new.nemo")
    copy.unlink()
    with pytest.raises(ModelLoadError, match=r"copy\.nemo: no such file"):
        model.save(tmp_path / "new.nemo")
    model.make_exportable()
    with pytest.raises(ModelLoadError, match="made ready for export"):
        model.save(tmp_path / "new.nemo")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
