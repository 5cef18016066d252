"""The shipped sample: small, complete, its two sets apart, and its model as good as it should be."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import kaldialign
import numpy as np
import pytest
import soundfile as sf
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCTC, AutoProcessor

from quantasr import sample

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
MANIFESTS = {"evaluation": sample.evaluation(), "calibration": sample.calibration()}


def rows(manifest: Path) -> list[dict]:
    return [json.loads(line) for line in manifest.read_text().splitlines()]


@pytest.fixture(scope="module")
def recogniser():
    torch.set_num_threads(1)
    return AutoModelForCTC.from_pretrained(sample.model()).eval(), AutoProcessor.from_pretrained(sample.model())


def recognise(recogniser, waves: list[np.ndarray]) -> list[str]:
    """Greedy CTC, each recording's own frames only."""
    model, processor = recogniser
    inputs = processor(waves, sampling_rate=8000, return_tensors="pt", padding=True)
    with torch.inference_mode():
        ids = model(**inputs).logits.argmax(-1)
    frames = model._get_feat_extract_output_lengths(inputs.attention_mask.sum(-1))
    return [processor.decode(row[:n]) for row, n in zip(ids, frames, strict=True)]


def test_the_folder_is_at_most_5_megabytes():
    assert sum(f.stat().st_size for f in sample.folder().rglob("*") if f.is_file()) <= 5_000_000


def test_the_licence_of_the_recordings_is_honoured():
    text = (sample.folder() / "README.md").read_text() + (sample.folder() / "LICENSE").read_text()
    for needed in (
        "Free Spoken Digit Dataset",
        "Zohar Jackson",
        "creativecommons.org/licenses/by-sa/4.0",
        "Changes made",
    ):
        assert needed in text


@pytest.mark.parametrize(("name", "strings"), [("evaluation", 100), ("calibration", 40)])
def test_a_manifest_describes_its_audio(name, strings):
    manifest = MANIFESTS[name]
    listed = rows(manifest)
    assert len(listed) >= strings
    for row in listed:
        info = sf.info(manifest.parent / row["audio_filepath"])
        assert (info.samplerate, info.channels) == (8000, 1)
        assert row["duration"] == pytest.approx(info.duration, abs=1e-3)
        assert 1 <= len(row["text"].split()) <= 8
        assert set(row["text"].split()) <= set(WORDS)
    assert len({row["speaker"] for row in listed}) == 6
    assert {word for row in listed for word in row["text"].split()} == set(WORDS)
    on_disk = {f"{name}/{f.name}" for f in (manifest.parent / name).iterdir()}
    assert on_disk == {row["audio_filepath"] for row in listed}, "a file that no manifest names, or the other way round"


def test_no_audio_is_in_both_sets():
    seen = {}
    for name, manifest in MANIFESTS.items():
        waves = [sf.read(manifest.parent / row["audio_filepath"], dtype="float32")[0] for row in rows(manifest)]
        seen[name] = [hashlib.sha256(wave.tobytes()).hexdigest() for wave in waves]
    every = seen["evaluation"] + seen["calibration"]
    assert len(set(every)) == len(every)


def test_weights_are_float16_on_disk_and_float32_once_loaded(recogniser):
    stored = load_file(sample.model() / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert {tensor.dtype for tensor in recogniser[0].parameters()} == {torch.float32}


def test_word_error_rate_of_a_subset(recogniser):
    listed = rows(sample.evaluation())[::5]  # 44 strings: every speaker, every length
    waves = [sf.read(sample.folder() / row["audio_filepath"], dtype="float32")[0] for row in listed]
    texts = [recognise(recogniser, [wave])[0] for wave in waves]
    errors = sum(
        kaldialign.edit_distance(row["text"].split(), t.split())["total"] for row, t in zip(listed, texts, strict=True)
    )
    assert errors / sum(len(row["text"].split()) for row in listed) <= 0.05
    assert len(set(texts)) > 30, "the same text for everything"


def test_a_padded_batch_gives_the_text_of_each_alone(recogniser):
    listed = rows(sample.evaluation())[3::29]  # short beside long
    waves = [sf.read(sample.folder() / row["audio_filepath"], dtype="float32")[0] for row in listed]
    assert recognise(recogniser, waves) == [recognise(recogniser, [wave])[0] for wave in waves]


def test_finding_the_sample_needs_no_torch():
    code = "import sys; from quantasr import sample; sample.model(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
