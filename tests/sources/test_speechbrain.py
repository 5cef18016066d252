"""SpeechBrain's EncoderASR: features, log-probs and text are SpeechBrain's own, alone and in batches."""

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
from numpy.typing import NDArray

from quantasr import load_model
from quantasr.errors import ArtifactError
from quantasr.export import export_float
from quantasr.sources import CtcModel, adopt_model
from quantasr.speech.frontend import MelDecibelFrontend, WaveFrontend

SPEECH = tiny_hf.speech(1.3, 0.8, 0.31, 0.31)


@pytest.fixture(params=tiny_speechbrain.VARIANTS)
def folder(request: pytest.FixtureRequest, tiny_speechbrain_folder: Callable[[str], Path]) -> Path:
    return tiny_speechbrain_folder(request.param)


def _theirs(interface: Any, wave: NDArray[np.float32]) -> tuple[NDArray[np.float32], str]:
    batch, whole = torch.from_numpy(wave)[None], torch.ones(1)
    with torch.no_grad():
        logprobs = interface.encode_batch(batch, whole)[0].numpy()
    return logprobs, interface.transcribe_batch(batch, whole)[0][0]


def test_log_probs_and_text_are_speechbrains(folder: Path) -> None:
    model = load_model(folder, trust=True)
    assert isinstance(model, CtcModel)
    interface = tiny_speechbrain.original(folder)
    alone = model.transcriber(chunk_seconds=0)
    together = model.transcriber(chunk_seconds=0, batch_size=4).transcribe(SPEECH)
    for i, wave in enumerate(SPEECH):
        logprobs, text = _theirs(interface, wave)
        np.testing.assert_allclose(alone.logprobs([wave])[0], logprobs, atol=1e-4)
        assert alone.transcribe([wave])[0].text == text.strip()
        assert together[i].text == text.strip()


def test_what_it_is(folder: Path) -> None:
    model = load_model(folder, trust=True)
    lobe = "crdnn" not in folder.name
    assert model.family == f"speechbrain_{'wav2vec2' if lobe else 'crdnn'}"
    assert isinstance(model.frontend, WaveFrontend if lobe else MelDecibelFrontend)
    assert model.module is model.interface.mods  # type: ignore[attr-defined]
    assert not model.padded_batches
    seconds = 40 / 16000 if lobe else 0.02 if "gru" in folder.name and "ligru" not in folder.name else 0.01
    assert isinstance(model, CtcModel) and model.frame_seconds == pytest.approx(seconds)
    shortest = np.zeros(model.min_samples, np.float32)
    assert len(model.logprobs([shortest])[0]) == 2
    assert model.provenance["source"] == "speechbrain"


def test_nothing_is_written_or_printed(
    tiny_speechbrain_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    place = Path(shutil.copytree(tiny_speechbrain_folder("sb-wav2vec2"), tmp_path / "model"))
    before = sorted(path.relative_to(place) for path in place.rglob("*"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    capfd.readouterr()
    load_model(place, trust=True).transcriber().transcribe(SPEECH[:1])  # type: ignore[attr-defined]
    assert capfd.readouterr() == ("", "")
    assert sorted(path.relative_to(place) for path in place.rglob("*")) == before
    assert not list((tmp_path / "here").iterdir())


def test_a_live_interface_is_adopted(tiny_speechbrain_folder: Callable[[str], Path]) -> None:
    folder = tiny_speechbrain_folder("sb-crdnn")
    interface = tiny_speechbrain.original(folder)
    logprobs, text = _theirs(interface, SPEECH[0])
    model = adopt_model(interface)
    assert isinstance(model, CtcModel) and model.module is interface.mods
    np.testing.assert_allclose(model.logprobs(SPEECH[:1])[0], logprobs, atol=1e-4)
    assert _theirs(interface, SPEECH[0])[1] == text
    assert adopt_model(torch.nn.Linear(2, 2)) is None


def test_a_loop_in_python_is_no_graph(tiny_speechbrain_folder: Callable[[str], Path]) -> None:
    model = load_model(tiny_speechbrain_folder("sb-crdnn-ligru"), trust=True)
    with pytest.raises(ArtifactError, match=r"encoder\.model\.RNN: LiGRU is a loop over frames in Python"):
        export_float(model)
    assert model.logprobs(SPEECH[:1])  # and still runs


@pytest.mark.parametrize("name", ["probabilities", "logits"])
def test_an_encoder_that_ends_otherwise(name: str, tmp_path: Path) -> None:
    tiny_speechbrain.save("sb-crdnn", tmp_path)
    file = tmp_path / "hyperparams.yaml"
    text = file.read_text("utf-8")
    changed = {
        "probabilities": text.replace("apply_log: True", "apply_log: False"),
        "logits": text.replace("        log_softmax: !ref <log_softmax>\n", "").replace(
            "    log_softmax: !ref <log_softmax>\n", ""
        ),
    }[name]
    assert changed != text
    expected = load_model(tmp_path, trust=True).logprobs(SPEECH[:1])[0]
    file.write_text(changed, "utf-8")
    np.testing.assert_allclose(load_model(tmp_path, trust=True).logprobs(SPEECH[:1])[0], expected, atol=1e-5)


def test_what_the_exporter_cannot_do_is_one_line(tiny_speechbrain_folder: Callable[[str], Path]) -> None:
    model = load_model(tiny_speechbrain_folder("sb-crdnn"), trust=True)
    model.graph.register_forward_hook(lambda *a: torch.linalg.inv(a[2] @ a[2].mT))
    with pytest.raises(ArtifactError, match="cannot be exported as a graph; PyTorch may still") as caught:
        export_float(model)
    assert "\n" not in str(caught.value)
