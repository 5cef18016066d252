"""The trained NeMo models of digit strings: int8 makes no more errors than NeMo itself, on speech never heard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_nemo
import torch
from numpy.typing import NDArray

from quantasr import load_model, sample
from quantasr.artifact import Artifact
from quantasr.engines import ENGINES
from quantasr.engines.torch_native.backends import usable_backends
from quantasr.measure.agreement import agreement
from quantasr.measure.evaluate import evaluate
from quantasr.numerics.quantizers import Phase
from quantasr.pipeline import quantize
from quantasr.quantize import calibrate, convert, prepare
from quantasr.recipes import builtin_recipe
from quantasr.runtime import load
from quantasr.speech.manifest import read_manifest
from quantasr.speech.scoring import Score, score
from quantasr.speech.transcript import Waveform

MODELS = Path(__file__).parents[1] / "data" / "nemo"
BAR = 0.3  # points of WER that int8 may lose; with inputs in 4 bits QuartzNet loses 4.8, the Conformer 1.4
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


@pytest.fixture(scope="module")
def artifact(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """By the recipe that takes every layer to int8."""
    folder = tmp_path_factory.mktemp(model.stem) / "fast"
    return quantize(model, folder, calibration=sample.calibration(), recipe="fast")


def points_lost(artifact: Artifact, original: Score, **options: Any) -> float:
    found = evaluate(load(artifact, **options), UTTERANCES, batch_size=8).wer
    return 100 * (found.rate - original.rate)


def test_the_model_has_learnt(original: Score) -> None:
    assert original.counts.reference_length == 944
    assert original.rate < 0.03


@pytest.mark.parametrize("engine", ENGINES)
def test_artifact(artifact: Artifact, original: Score, engine: str) -> None:
    assert points_lost(artifact, original, engine=engine, threads=1) <= BAR


def test_native(model: Path, original: Score, tmp_path: Path) -> None:
    # One backend each, to save time, with kernels that have nothing in common; benchmarks/nemo_digits.py measures all.
    backend = {"quartznet": "onednn", "conformer": "qnnpack"}[model.stem]
    if backend not in usable_backends():
        pytest.skip(f"this build of PyTorch has no {backend}")
    native = quantize(
        model, tmp_path / "native", calibration=sample.calibration(), engine=f"torch:{backend}", all_layers=True
    )
    assert native.measured["int8_layers"] >= 20
    assert points_lost(native, original) <= BAR

    speech = [utterance.load(8000) for utterance in UTTERANCES[:20]]
    found = agreement(simulation(model, speech), load(native, chunk_seconds=0).logprobs(speech))
    assert found.frames > 300 and found.same_argmax >= 0.99


def simulation(model: Path, speech: list[Waveform]) -> list[NDArray[np.float32]]:
    """Log-probs of the recipe's own simulation, which knows nothing of native int8."""
    recogniser = load_model(model)
    prepared = prepare(recogniser, builtin_recipe(recogniser.family))
    calibrate(prepared, [utterance.load(8000) for utterance in read_manifest(sample.calibration())])
    convert(prepared)
    with prepared.active(Phase.SIMULATE):
        return recogniser.transcriber(chunk_seconds=0).logprobs(speech)
