"""What cannot be trained on: skipped, counted and named, without reading any sound."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from quantasr.errors import AudioError, ManifestError, TrainingError
from quantasr.kaldi.archive import archive_writer
from quantasr.sources import load_model
from quantasr.sources.asr_model import CtcModel
from quantasr.speech.manifest import utterance
from quantasr.training.augment import AugmentOptions
from quantasr.training.data import TrainingData
from quantasr.training.data_options import DataOptions

DIGITS = Path(__file__).parents[2] / "src/quantasr/sample/digits"
VALIDATION = DIGITS / "evaluation.jsonl"


@pytest.fixture(scope="module")
def model() -> CtcModel:
    loaded = load_model(str(DIGITS))
    assert isinstance(loaded, CtcModel)
    return loaded


@pytest.fixture
def manifest(tmp_path: Path):
    """Writes a manifest of (seconds, text); every utterance reads the same long file."""
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).normal(0, 0.1, 8000 * 60), 8000)

    def write(rows: Sequence[tuple[float | None, str | None]]) -> Path:
        listed = [
            {"id": f"u{i}", "audio_filepath": "long.wav", "duration": seconds, "text": text}
            for i, (seconds, text) in enumerate(rows)
        ]
        kept = [{key: value for key, value in row.items() if value is not None} for row in listed]
        (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, kept)), "utf-8")
        return tmp_path / "m.jsonl"

    return write


def lines(model: CtcModel, manifest: Path, **options: object) -> list[str]:
    said: list[str] = []
    needs_text = bool(options.pop("needs_text", True))
    data = TrainingData.open(
        manifest,
        model,
        DataOptions(**options),  # type: ignore[arg-type]
        batch=4,
        validation=VALIDATION,
        needs_text=needs_text,
        say=said.append,
    )
    assert said == data.report.lines()
    assert all("\n" not in line for line in said)
    return [line.replace(str(manifest), "M") for line in said]


def test_everything_that_is_left_out_is_said(model: CtcModel, manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utterance, "load_audio", lambda *_, **__: pytest.fail("a recording was read"))
    rows = [
        (1.0, "one two"),
        (1.0, ""),
        (1.0, "  "),
        (1.0, None),
        (1.0, "six é-mile"),
        (1.0, "one-é"),
        (0.05, "one"),
        (31.0, "nine"),
        (0.2, "seven seven seven"),
        (None, "two"),
    ]
    assert lines(model, manifest(rows)) == [
        "training on 1 of 10 utterances of M (0.0 min)",
        "skipped: 2 utterances with an empty text (first: u1)",
        "skipped: 2 utterances with characters that the vocabulary lacks (first: u4)",
        "skipped: 2 utterances longer than 30 s, which may not fit into memory (first: u7)",
        "skipped: 1 utterance without a text (first: u3)",
        "skipped: 1 utterance shorter than 0.1 s (first: u6)",
        "skipped: 1 utterance with less sound than the text needs (first: u8)",
        "the vocabulary lacks 'é' 2 times, '-' 2 times, 'm' once, 'l' once: normalize the texts, or give a vocabulary",
    ]


def test_distillation_needs_no_texts(model: CtcModel, manifest) -> None:
    rows = [(1.0, None), (1.0, ""), (0.2, "seven seven seven"), (1.0, "é"), (0.01, None)]
    assert lines(model, manifest(rows), needs_text=False) == [
        "training on 4 of 5 utterances of M (0.1 min)",
        "skipped: 1 utterance shorter than 0.1 s (first: u4)",
    ]


def test_nothing_left_is_an_error_that_says_why(model: CtcModel, manifest) -> None:
    with pytest.raises(TrainingError) as caught:
        lines(model, manifest([(1.0, "Ω"), (1.0, "")]))
    message = str(caught.value)
    assert "m.jsonl: no utterance can be trained on: skipped: 1 utterance with characters" in message
    assert "the vocabulary lacks 'Ω' once" in message
    assert "\n" not in message


@pytest.mark.parametrize("speed", [1.0, 1.1])
def test_frames_are_counted_at_the_fastest_speed(model: CtcModel, manifest, speed: float) -> None:
    """'three' is t h r e e: 6 frames. The sample's model gives (samples - 625) // 160 + 2 of them."""
    samples = 625 + 4 * 160
    assert int(model.frame_counts(torch.tensor([samples]))[0]) == 6
    path = manifest([(samples / 8000, "three"), (1.0, "one")])
    said = lines(model, path, augment=AugmentOptions(speeds=(1.0, speed)))
    assert said[0].startswith(f"training on {2 if speed == 1 else 1} of 2")
    path = manifest([((samples - 160) / 8000, "three"), (1.0, "one")])
    assert "skipped: 1 utterance with less sound than the text needs (first: u0)" in lines(model, path)


def test_long_recordings_are_left_out_by_the_memory_of_a_batch(model: CtcModel, manifest) -> None:
    path = manifest([(1.0, "one"), (6.0, "two")])
    assert lines(model, path, max_batch_seconds=5)[1] == (
        "skipped: 1 utterance longer than 5 s, which may not fit into memory (first: u1)"
    )


def test_a_broken_header_is_named_with_its_line(model: CtcModel, tmp_path: Path) -> None:
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    (tmp_path / "m.jsonl").write_text(json.dumps({"audio_filepath": "b.wav", "text": "one"}))
    with pytest.raises(AudioError, match=r"b\.wav.*\(listed in .*m\.jsonl:1\)"):
        lines(model, tmp_path / "m.jsonl")


def test_a_recording_that_goes_bad_later_is_named_with_its_line(model: CtcModel, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "b.wav", np.zeros(8000), 8000)
    (tmp_path / "m.jsonl").write_text(json.dumps({"audio_filepath": "b.wav", "text": "one", "duration": 1.0}))
    data = TrainingData.open(tmp_path / "m.jsonl", model, batch=1, validation=VALIDATION)
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    (recording,) = next(data.batches(0, 1))
    with pytest.raises(AudioError, match=r"m\.jsonl:1"):
        recording.load()


def test_ids_that_come_twice_are_refused(model: CtcModel, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "b.wav", np.zeros(8000), 8000)
    row = json.dumps({"audio_filepath": "b.wav", "text": "one", "duration": 1.0})
    (tmp_path / "m.jsonl").write_text(f"{row}\n{row}")
    with pytest.raises(ManifestError, match=r"m\.jsonl:2: the id 'b' is in .*m\.jsonl:1 already"):
        lines(model, tmp_path / "m.jsonl")


def kaldi_folder(folder: Path, **tables: str) -> Path:
    for name, content in tables.items():
        (folder / name.replace("_", ".", 1)).write_text(content, "utf-8")
    return folder


def test_commands_run_only_when_trusted_and_lengths_come_from_utt2dur(model: CtcModel, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 8000), 8000)
    command = f"a cat {tmp_path}/a.wav |\n"
    folder = kaldi_folder(tmp_path, wav_scp=command, text="a one\n", utt2dur="a 1.5\n")
    with pytest.raises(ManifestError, match="trust"):
        TrainingData.open(folder, model, batch=1, validation=VALIDATION)
    data = TrainingData.open(folder, model, batch=1, validation=VALIDATION, trust=True)
    (recording,) = next(data.batches(0, 1))
    assert recording.seconds == 1.5
    assert len(recording.load().wave) == 8000


def test_features_cannot_be_sped_up(model: CtcModel, tmp_path: Path) -> None:
    with archive_writer(tmp_path / "f.ark", tmp_path / "feats.scp") as put:
        put("a", np.ones((120, 3), np.float32))
    folder = kaldi_folder(tmp_path, text="a one\n")
    data = TrainingData.open(folder, model, batch=1, validation=VALIDATION)
    (recording,) = next(data.batches(0, 1))
    assert recording.seconds == pytest.approx(1.2)
    assert np.array_equal(recording.load().wave.features, np.ones((120, 3)))  # type: ignore[union-attr,attr-defined]
    faster = DataOptions(augment=AugmentOptions(speeds=(0.9, 1.1)))
    with pytest.raises(TrainingError, match=r"comes with features or i-vectors, .* switch speed, gain and noise off"):
        TrainingData.open(folder, model, faster, batch=1, validation=VALIDATION)


def test_noise_must_be_sound(model: CtcModel, tmp_path: Path) -> None:
    with archive_writer(tmp_path / "f.ark", tmp_path / "feats.scp") as put:
        put("a", np.ones((120, 3), np.float32))
    noisy = DataOptions(augment=AugmentOptions(noise=str(tmp_path)))
    with pytest.raises(ManifestError, match="holds features and no sound: give recordings of noise"):
        TrainingData.open(VALIDATION, model, noisy, batch=1, validation=VALIDATION)


def test_a_form_that_was_asked_for_is_what_is_read(model: CtcModel, manifest) -> None:
    path = manifest([(1.0, "one")])
    assert len(TrainingData.open(path, model, batch=1, validation=VALIDATION, format="nemo")) == 1
    with pytest.raises(ManifestError, match=r"m\.jsonl:1: is not a cut: write all lines with Lhotse"):
        TrainingData.open(path, model, batch=1, validation=VALIDATION, format="lhotse")
    with pytest.raises(ManifestError, match="manifest format 'kaldi2' is unknown"):
        TrainingData.open(path, model, batch=1, validation=VALIDATION, format="kaldi2")
