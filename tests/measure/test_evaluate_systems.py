"""Evaluating: counts by hand, turns in order, and nothing left out in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fake_systems import Clock, Parrot

import quantasr
from quantasr import sample
from quantasr.errors import AudioError, ManifestError
from quantasr.measure import evaluate as module
from quantasr.measure.evaluate import evaluate, evaluate_systems
from quantasr.speech.manifest import Utterance, read_manifest
from quantasr.speech.text import ScoringError

TEXTS = ["one two three", "Four, five!", "six seven eight nine"]


@pytest.fixture
def utterances(tmp_path: Path) -> list[Utterance]:
    """Three recordings of 1, 2 and 3 seconds; the first sample is the number of the recording, in hundredths."""
    found = []
    for i, text in enumerate(TEXTS):
        wave = np.full(1000 * (i + 1), 0.3, np.float32)
        wave[0] = i / 100
        soundfile.write(tmp_path / f"{i}.wav", wave, 1000, subtype="FLOAT")
        found.append(Utterance(f"u{i}", tmp_path / f"{i}.wav", text, speaker="s", source=f"list:{i + 1}"))
    return found


def test_counts_by_hand(utterances: list[Utterance]) -> None:
    said = ["one too three", "four five six", "six eight nine"]
    result = evaluate(Parrot("p", said.__getitem__), utterances)
    counts = result.wer.counts
    # 'too' for 'two'; 'six' on top; 'seven' missing; 3 + 2 + 4 words.
    assert (counts.substitutions, counts.insertions, counts.deletions, counts.reference_length) == (1, 1, 1, 9)
    assert result.wer.rate == pytest.approx(3 / 9)
    assert result.references == ["one two three", "four five", "six seven eight nine"]
    assert result.audio_seconds == pytest.approx(6.0)
    row = result.to_dict()
    assert row["utterances"] == 3
    assert row["wer"]["substitutions"] == 1
    assert row["cer"]["reference_length"] == sum(len(text) for text in result.references)


def test_normalisers_work_on_both_sides(utterances: list[Utterance]) -> None:
    said = ["ONE two, three", "four five", "six seven eight nine"]
    parrot = Parrot("p", said.__getitem__)
    assert evaluate(parrot, utterances).wer.rate == 0
    assert evaluate(parrot, utterances, normalizer="upper").wer.counts.errors == 3  # two,  Four,  five!
    assert evaluate(parrot, utterances, normalizer="none").wer.counts.errors == 4
    with pytest.raises(ScoringError, match="'klingon' is unknown"):
        evaluate(parrot, utterances, normalizer="klingon")


def test_time_is_what_the_recogniser_takes(utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    fast = Parrot("fast", TEXTS.__getitem__, clock, lambda: 0.1)
    slow = Parrot("slow", TEXTS.__getitem__, clock, lambda: 0.4)
    left, right = evaluate_systems([fast, slow], utterances).results
    # Three waves each; the warm-up before them does not count. 6 s of audio.
    assert (left.seconds, right.seconds) == (pytest.approx(0.3), pytest.approx(1.2))
    assert (left.rtf, right.rtf) == (pytest.approx(0.05), pytest.approx(0.2))


def test_systems_take_turns(utterances: list[Utterance]) -> None:
    log: list[str] = []
    systems = [Parrot(name, TEXTS.__getitem__, log=log) for name in "ABC"]
    evaluate_systems(systems, utterances)
    warm_up, turns = log[:6], log[6:]
    assert warm_up == ["A1", "A1", "B1", "B1", "C1", "C1"]
    assert turns == ["B1", "C1", "A1", "C1", "A1", "B1"]
    log.clear()
    evaluate_systems(systems, utterances, batch_size=2)
    assert log[6:] == ["B1", "C1", "A1"]  # two and one
    assert log[:6] == ["A1", "A2", "B1", "B2", "C1", "C2"]


def test_each_system_hears_its_own_sample_rate(utterances: list[Utterance]) -> None:
    systems = [Parrot("a", lambda i: "x"), Parrot("b", lambda i: "x", sample_rate=2000)]
    left, right = evaluate_systems(systems, utterances).results
    assert left.audio_seconds == pytest.approx(right.audio_seconds) == pytest.approx(6.0)


def test_one_bad_recording_is_reported_and_the_rest_is_done(utterances: list[Utterance]) -> None:
    utterances[1].audio.write_bytes(b"RIFF but no wave")
    found = evaluate_systems([Parrot("p", TEXTS.__getitem__)], utterances)
    (result,) = found.results
    assert [u.id for u in result.utterances] == ["u0", "u2"]
    assert list(found.failures) == list(result.failures) == ["u1"]
    assert "1.wav: is not audio" in found.failures["u1"]
    assert "(listed in list:2)" in found.failures["u1"]
    assert found.to_dict()["failures"] == found.failures
    assert result.wer.counts.reference_length == 7


def test_suspicious_recordings_are_used_and_reported(utterances: list[Utterance]) -> None:
    soundfile.write(utterances[0].audio, np.zeros(1000), 1000)
    soundfile.write(utterances[2].audio, np.sign(np.sin(np.arange(3000))), 1000)
    result = evaluate(Parrot("p", lambda i: "x"), utterances)
    assert len(result.utterances) == 3
    assert list(result.warnings) == ["u0", "u2"]
    assert "0.wav: silent: check the microphone" in result.warnings["u0"]
    assert "2.wav: clipped (" in result.warnings["u2"]
    assert "record it again at a lower level" in result.warnings["u2"]
    assert result.warnings["u2"].endswith("(listed in list:3)")


def test_what_cannot_be_evaluated_is_refused(utterances: list[Utterance]) -> None:
    parrot = Parrot("p", TEXTS.__getitem__)
    with pytest.raises(ManifestError, match="there are no utterances to evaluate on"):
        evaluate(parrot, [])
    with pytest.raises(ManifestError, match="no text, so there is nothing to score against"):
        evaluate(parrot, [Utterance("a", utterances[0].audio, None, source="list:9")])
    for options in ({"limit": 0}, {"limit": -1}, {"batch_size": 0}):
        with pytest.raises(ManifestError, match="give 1 or more"):
            evaluate(parrot, utterances, **options)
    for utterance in utterances:
        utterance.audio.write_bytes(b"")
    with pytest.raises(AudioError, match=r"none of 3 recordings can be read; the first: .*0\.wav: is empty"):
        evaluate(parrot, utterances)


def test_pairs_are_compared_with_the_first(utterances: list[Utterance], tmp_path: Path) -> None:
    good = Parrot("good", lambda i: TEXTS[i])
    bad = Parrot("bad", lambda i: "one" if i == 0 else TEXTS[i])  # two of nine words missing
    found = evaluate_systems([good, bad], utterances)
    (pair,) = found.against_first()
    assert pair.difference == pytest.approx(2 / 9)
    assert found.to_dict()["comparisons"][0]["baseline"] == "good"
    found.save_utterances(tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["system"], row["id"]) for row in rows] == [(s, f"u{i}") for s in ("good", "bad") for i in range(3)]
    assert rows[3] | {"score": None} == {
        "system": "bad",
        "id": "u0",
        "audio": str(utterances[0].audio),
        "speaker": "s",
        "reference": "one two three",
        "hypothesis": "one",
        "text": "one",
        "duration": 1.0,
        "words": [],
        "substitutions": 0,
        "deletions": 2,
        "insertions": 0,
        "reference_length": 3,
        "score": None,
    }


def test_an_artifact_is_not_scored_on_what_it_was_calibrated_on(sample_artifact: Callable[[str], Path]) -> None:
    recogniser = quantasr.load(sample_artifact("default"), engine="onnxruntime")
    calibration = read_manifest(sample.calibration())
    mixed = [*read_manifest(sample.evaluation())[:2], calibration[7]]
    with pytest.raises(ManifestError, match=r"1 of 3 utterances .* calibration speech of digits-wav2vec2-default"):
        evaluate(recogniser, mixed)
    # By what is in the file and not by what it is called.
    copied = Utterance("other", calibration[7].audio, "x", start=0.1, duration=0.2)
    with pytest.raises(ManifestError, match="figures on them would flatter"):
        evaluate(recogniser, [copied])


def test_the_sample_keeps_its_word_error_rate(sample_artifact: Callable[[str], Path]) -> None:
    from quantasr.measure.original import load_original

    systems = [
        load_original(str(sample.model())).transcriber,
        quantasr.load(sample_artifact("default"), engine="onnxruntime", threads=1),
        quantasr.load(sample_artifact("fast"), engine="openvino", threads=1),
    ]
    found = evaluate_systems(systems, sample.evaluation(), limit=60, batch_size=4)
    original, *others = (result.wer.rate for result in found.results)
    assert original <= 0.03
    for rate in others:
        assert rate - original <= 0.01  # 60 of 220 strings: half an error is 0.3 points
