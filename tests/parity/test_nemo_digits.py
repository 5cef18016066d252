"""The trained NeMo models of digit strings: int8 makes no more errors than NeMo itself, on speech never heard."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_nemo
import torch

from quantasr import sample
from quantasr.artifact import Artifact
from quantasr.engines import ENGINES
from quantasr.measure.evaluate import evaluate
from quantasr.pipeline import quantize
from quantasr.runtime import load
from quantasr.speech.manifest import read_manifest
from quantasr.speech.scoring import Score, score

MODELS = Path(__file__).parents[1] / "data" / "nemo"
BAR = 0.3  # points of WER that int8 may lose
UTTERANCES = read_manifest(sample.evaluation())


@pytest.fixture(scope="module", params=["quartznet", "conformer"])
def model(request: pytest.FixtureRequest) -> Path:
    return MODELS / f"{request.param}.nemo"


@pytest.fixture(scope="module")
def original(model: Path) -> Score:
    """Restored, run and decoded by NeMo alone."""
    restored = tiny_nemo.original(model)
    texts = []
    with torch.no_grad():
        for utterance in UTTERANCES:
            wave = torch.from_numpy(utterance.load(8000))[None]
            logprobs, frames, _ = restored(input_signal=wave, input_signal_length=torch.tensor([wave.shape[1]]))
            texts.append(restored.decoding.ctc_decoder_predictions_tensor(logprobs, frames)[0].text)
    return score([str(utterance.text) for utterance in UTTERANCES], texts, "word")


@pytest.fixture(scope="module", params=["default", "fast"])
def artifact(model: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp(model.stem) / request.param
    return quantize(model, folder, calibration=sample.calibration(), recipe=request.param)


def test_the_model_has_learnt(original: Score) -> None:
    assert original.counts.reference_length == 944
    assert original.rate < 0.03


@pytest.mark.parametrize("engine", ENGINES)
def test_artifact(artifact: Artifact, original: Score, engine: str) -> None:
    found = evaluate(load(artifact, engine=engine, threads=1), UTTERANCES, batch_size=8).wer
    assert 100 * (found.rate - original.rate) <= BAR
