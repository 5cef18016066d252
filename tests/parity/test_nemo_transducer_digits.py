"""The trained transducers of digit strings: as NeMo transcribes, whole and in windows, in float and in int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_nemo

from quantasr import load_model, sample
from quantasr.measure.evaluate import evaluate
from quantasr.pipeline import quantize
from quantasr.runtime import load
from quantasr.sources.nemo.transducer import TransducerModel
from quantasr.speech.manifest import read_manifest
from quantasr.speech.scoring import score
from quantasr.speech.transcript import Transcript

MODELS = Path(__file__).parents[1] / "data" / "nemo"
UTTERANCES = read_manifest(sample.evaluation())[:40]
WAVES = [utterance.load(8000) for utterance in UTTERANCES]
TEXTS = [str(utterance.text) for utterance in UTTERANCES]
BAR = 0.3  # points of WER that int8 may lose


@pytest.fixture(scope="module", params=["hybrid", "tdt"])
def file(request: pytest.FixtureRequest) -> Path:
    return MODELS / f"{request.param}.nemo"


@pytest.fixture(scope="module")
def model(file: Path) -> TransducerModel:
    loaded = load_model(file)
    assert isinstance(loaded, TransducerModel)
    return loaded


@pytest.fixture(scope="module")
def greedy(model: TransducerModel) -> list[Transcript]:
    return model.transcriber(batch_size=8).transcribe(WAVES)


def test_texts_and_times_are_nemos(file: Path, model: TransducerModel, greedy: list[Transcript]) -> None:
    original = tiny_nemo.original(file)
    options: dict[str, Any] = {"compute_timestamps": True}
    for wave, mine, theirs in zip(
        WAVES, greedy, tiny_nemo.transduced(original, WAVES, "greedy_batch", **options), strict=True
    ):
        assert mine.text == theirs.text
        rows, end = theirs.timestamp["word"], wave.size / 8000
        seconds = model.frame_seconds
        assert [(word.text, word.start, word.end) for word in mine.words] == [
            (row["word"], min(row["start_offset"] * seconds, end), min(row["end_offset"] * seconds, end))
            for row in rows
        ]
    beams = model.transcriber(batch_size=8, beam_width=4).transcribe(WAVES[:12])
    theirs = tiny_nemo.transduced(original, WAVES[:12], "malsd_batch", beam_size=4)
    assert [mine.text for mine in beams] == [found.text for found in theirs]
    assert sum(mine.text == text for mine, text in zip(greedy, TEXTS, strict=True)) >= 39


def test_words_are_sure_and_where_they_are_said(greedy: list[Transcript]) -> None:
    words = [word for transcript in greedy for word in transcript.words]
    assert np.mean([word.confidence for word in words if word.confidence is not None]) > 0.9
    for transcript in greedy:
        starts = [word.start for word in transcript.words]
        assert starts == sorted(starts) and transcript.words[-1].end <= transcript.duration
        assert len(starts) < 3 or starts[-1] > transcript.duration / 2


def test_windows_of_a_long_recording_have_the_text_of_its_parts(model: TransducerModel) -> None:
    wave = np.concatenate(WAVES)
    expected = " ".join(TEXTS)
    for width in (1, 3):
        search = model.transcriber(chunk_seconds=8, overlap_seconds=2, beam_width=width)
        blocks = (wave[start : start + 7777] for start in range(0, wave.size, 7777))
        found = search.transcribe_stream(blocks)
        errors = score([expected], [found.text], "word").counts
        assert errors.deletions + errors.insertions <= 1, "something is lost or doubled at a seam"
        assert errors.substitutions <= 5
        assert found.duration == wave.size / 8000
        assert found.words[-1].end == pytest.approx(found.duration, abs=1.0)


def test_int8_with_either_head(tmp_path: Path) -> None:
    artifact = quantize(MODELS / "hybrid.nemo", tmp_path / "int8", calibration=sample.calibration())
    assert {file.stem for file in (tmp_path / "int8").glob("*.onnx")} == {"encoder", "decoder", "joiner", "ctc"}
    some = read_manifest(sample.evaluation())[:120]
    for head, rate in (("transducer", 0.11), ("ctc", 0.53)):
        found = evaluate(load(artifact, threads=1, batch_size=8, head=head), some, batch_size=8).wer
        assert 100 * found.rate <= rate + BAR
