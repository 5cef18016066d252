"""Lhotse's manifests: the samples are those that Lhotse gives."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut, Recording, RecordingSet, SupervisionSegment, SupervisionSet

from quantasr.errors import AudioError, ManifestError
from quantasr.sources import load_model
from quantasr.sources.asr_model import CtcModel
from quantasr.speech.manifest import Utterance, check_disjoint, write_manifest
from quantasr.training.cuts import CutUtterance, is_lhotse
from quantasr.training.data import TrainingData
from quantasr.training.reading import seconds_of, stream_utterances
from quantasr.training.store import UtteranceStore

DIGITS = Path(__file__).parents[2] / "src/quantasr/sample/digits"
VALIDATION = DIGITS / "evaluation.jsonl"
RATE = 8000


@pytest.fixture(scope="module")
def model() -> CtcModel:
    loaded = load_model(str(DIGITS))
    assert isinstance(loaded, CtcModel)
    return loaded


def recording(folder: Path, name: str = "a", seconds: float = 4.0, channels: int = 1) -> Recording:
    noise = np.random.default_rng(len(name)).normal(0, 0.1, (round(seconds * RATE), channels))
    soundfile.write(folder / f"{name}.wav", noise, RATE, subtype="FLOAT")
    return Recording.from_file(folder / f"{name}.wav", recording_id=name)


def said(recording: Recording, id: str, start: float, seconds: float, text: str = "one") -> SupervisionSegment:
    return SupervisionSegment(id, recording.id, start, seconds, text=text, speaker="s1", language="en")


def cut(recording: Recording, id: str, start: float, seconds: float, text: str = "one") -> MonoCut:
    return MonoCut(id, start, seconds, 0, [said(recording, f"{id}-s", 0.0, seconds, text)], recording=recording)


def load(utterance: Utterance, rate: int = RATE) -> np.ndarray:
    return np.asarray(utterance.load(rate))


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_cuts_are_utterances(tmp_path: Path, name: str) -> None:
    whole = recording(tmp_path)
    cuts = [cut(whole, "c1", 0.0, 1.5, "one two"), cut(whole, "c2", 2.0, 1.0)]
    CutSet.from_cuts(cuts).to_file(tmp_path / name)
    first, second = stream_utterances(tmp_path / name)
    assert type(first) is type(second) is Utterance
    assert (first.id, first.text, first.speaker, first.language) == ("c1", "one two", "s1", "en")
    assert (second.start, second.duration, second.source) == (2.0, 1.0, f"{tmp_path / name}:2")
    for utterance, original in zip((first, second), cuts, strict=True):
        assert np.allclose(load(utterance), original.load_audio()[0], atol=1e-6)


def test_what_only_lhotse_can_make_is_made_by_lhotse(tmp_path: Path) -> None:
    a, b = recording(tmp_path, "a"), recording(tmp_path, "bb", 3.0)
    stereo = recording(tmp_path, "ccc", 2.0, channels=2)
    originals = [
        cut(a, "mixed", 0.0, 2.0).mix(cut(b, "noise", 0.0, 1.0).drop_supervisions(), snr=10),
        cut(a, "fast", 0.0, 2.0).perturb_speed(1.1),
        cut(stereo, "left", 0.5, 1.0),
        cut(a, "padded", 0.0, 1.0).pad(2.0),
    ]
    CutSet.from_cuts(originals).to_file(tmp_path / "cuts.jsonl")
    found = list(stream_utterances(tmp_path / "cuts.jsonl"))
    store = UtteranceStore()
    for utterance, original in zip(found, originals, strict=True):
        assert isinstance(utterance, CutUtterance)
        store.append(utterance, seconds_of(utterance))
        assert seconds_of(utterance) == pytest.approx(original.duration)
        assert np.allclose(load(utterance), original.load_audio()[0], atol=1e-6)
        assert np.array_equal(np.concatenate(list(utterance.stream(RATE, 0.3))), load(utterance))
    assert [utterance.id for utterance in store] == [original.id for original in originals]
    assert np.array_equal(load(store[0]), load(found[0]))
    assert len(load(found[2], 16000)) == 16000


def test_channels_of_a_multi_channel_cut_are_averaged(tmp_path: Path) -> None:
    stereo = recording(tmp_path, "a", 1.0, channels=2)
    both = stereo.to_cut()
    CutSet.from_cuts([both]).to_file(tmp_path / "cuts.jsonl")
    (found,) = stream_utterances(tmp_path / "cuts.jsonl")
    assert found.text is None
    assert np.allclose(load(found), both.load_audio().mean(0), atol=1e-6)


def test_cuts_with_several_supervisions_are_parted(tmp_path: Path) -> None:
    whole = recording(tmp_path)
    parts = [said(whole, "s1", 0.5, 1.0, "one"), said(whole, "s2", 2.0, 1.5, "two")]
    CutSet.from_cuts([MonoCut("c", 0, 4.0, 0, parts, recording=whole)]).to_file(tmp_path / "cuts.jsonl")
    found = list(stream_utterances(tmp_path / "cuts.jsonl"))
    assert [(u.start, u.duration, u.text) for u in found] == [(0.5, 1.0, "one"), (2.0, 1.5, "two")]


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_recordings_with_supervisions_beside_them(tmp_path: Path, ending: str) -> None:
    a, b = recording(tmp_path, "a"), recording(tmp_path, "bb")
    RecordingSet.from_recordings([a, b]).to_file(tmp_path / f"x_recordings_train.{ending}")
    # In another order, and two of one recording.
    parts = [said(b, "s3", 0.0, 1.0, "six"), said(a, "s1", 0.5, 1.0, "one"), said(a, "s2", 2.0, 1.0, "two")]
    SupervisionSet.from_segments(parts).to_file(tmp_path / f"x_supervisions_train.{ending}")
    found = list(stream_utterances(tmp_path / f"x_recordings_train.{ending}"))
    assert [(u.id, u.audio.stem, u.start, u.text) for u in found] == [
        ("s3", "bb", 0.0, "six"),
        ("s1", "a", 0.5, "one"),
        ("s2", "a", 2.0, "two"),
    ]
    assert np.allclose(load(found[1]), a.load_audio(offset=0.5, duration=1.0)[0], atol=1e-6)


def test_recordings_alone_are_refused(tmp_path: Path) -> None:
    RecordingSet.from_recordings([recording(tmp_path)]).to_file(tmp_path / "recordings.jsonl")
    with pytest.raises(ManifestError, match=r"there is no supervisions\.jsonl beside it"):
        list(stream_utterances(tmp_path / "recordings.jsonl"))


def test_paths_are_relative_to_the_manifest_too(tmp_path: Path) -> None:
    row = cut(recording(tmp_path), "c", 0.0, 1.0).to_dict()
    row["recording"]["sources"][0]["source"] = "a.wav"
    (tmp_path / "cuts.jsonl").write_text(json.dumps(row))
    (found,) = stream_utterances(tmp_path / "cuts.jsonl")
    assert found.audio == tmp_path / "a.wav"


def test_commands_and_addresses_need_trust(tmp_path: Path) -> None:
    mark = tmp_path / "was-run"
    row = cut(recording(tmp_path), "c", 0.0, 1.0).to_dict()
    row["recording"]["sources"][0] |= {"type": "command", "source": f"touch {mark}; cat {tmp_path}/a.wav"}
    (tmp_path / "cuts.jsonl").write_text(json.dumps(row))
    with pytest.raises(ManifestError, match=r"cuts\.jsonl:1: the recording of cut 'c' comes from a command: allow"):
        list(stream_utterances(tmp_path / "cuts.jsonl"))
    (found,) = stream_utterances(tmp_path / "cuts.jsonl", trust=True)
    assert not mark.exists()
    assert len(load(found)) == RATE
    assert mark.exists()
    row["recording"]["sources"][0] |= {"type": "url", "source": "http://localhost/a.wav"}
    (tmp_path / "cuts.jsonl").write_text(json.dumps(row))
    with pytest.raises(ManifestError, match="comes from a url: allow"):
        list(stream_utterances(tmp_path / "cuts.jsonl"))


def test_the_same_speech_is_found_in_both_kinds_of_manifest(model: CtcModel, tmp_path: Path) -> None:
    whole = recording(tmp_path)
    CutSet.from_cuts([cut(whole, "c1", 0.0, 1.5), cut(whole, "c2", 2.0, 1.0)]).to_file(tmp_path / "cuts.jsonl")
    write_manifest([Utterance("u", tmp_path / "a.wav", "one", 2.5, 1.0)], tmp_path / "v.jsonl")
    with pytest.raises(ManifestError, match=r"1 of 2 training utterances are in the validation manifest too: 'c2'"):
        TrainingData.open(tmp_path / "cuts.jsonl", model, batch=1, validation=tmp_path / "v.jsonl")
    write_manifest([Utterance("u", tmp_path / "a.wav", "one", 3.2, 0.5)], tmp_path / "v.jsonl")
    data = TrainingData.open(tmp_path / "cuts.jsonl", model, batch=1, validation=tmp_path / "v.jsonl")
    assert sorted(u.id for u in data.utterances) == ["c1", "c2"]
    mixed = cut(whole, "m", 2.0, 1.0).mix(cut(whole, "n", 0.0, 1.0).drop_supervisions(), snr=10)
    CutSet.from_cuts([mixed]).to_file(tmp_path / "mixed.jsonl")
    left, right = (list(stream_utterances(tmp_path / name)) for name in ("mixed.jsonl", "cuts.jsonl"))
    with pytest.raises(ManifestError, match="in the evaluation manifest too"):
        check_disjoint(left, right)


def test_training_reads_them(model: CtcModel, tmp_path: Path) -> None:
    whole = recording(tmp_path)
    cuts = [cut(whole, "c1", 0.0, 1.5, "one two"), cut(whole, "m", 2.0, 1.0).perturb_speed(0.9)]
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    data = TrainingData.open(tmp_path / "cuts.jsonl.gz", model, batch=2, validation=VALIDATION)
    (batch,) = data.batches(0, 1)
    lengths = {recording.id: len(recording.load().wave) for recording in batch}
    assert lengths == {"c1": 12000, cuts[1].id: cuts[1].num_samples}


def test_other_json_lines_are_not_lhotse(tmp_path: Path) -> None:
    assert not is_lhotse(VALIDATION)
    assert not is_lhotse(tmp_path)
    (tmp_path / "empty.jsonl").write_text("")
    assert not is_lhotse(tmp_path / "empty.jsonl")


def test_broken_manifests_are_named_with_their_line(tmp_path: Path) -> None:
    good = json.dumps(cut(recording(tmp_path), "c", 0.0, 1.0).to_dict())
    path = tmp_path / "cuts.jsonl"
    row = json.loads(good)
    missing = {
        **row,
        "recording": {**row["recording"], "sources": [{"type": "file", "channels": [0], "source": "no.wav"}]},
    }
    for bad, message in (
        ("{", r"cuts\.jsonl:2: is not JSON"),
        ("[]", r"cuts\.jsonl:2: is not a JSON object"),
        ("{}", r"cuts\.jsonl:2: is not a cut"),
        (json.dumps({"id": "x", "type": "MonoCut"}), r"cuts\.jsonl:2: is not a cut that Lhotse reads"),
        (json.dumps({"id": "x", "type": "StrangeCut"}), r"cuts\.jsonl:2: is not a cut that Lhotse reads"),
        (json.dumps({**row, "id": "y", "recording": None}), r"cuts\.jsonl:2: "),
        (json.dumps({**missing, "id": "z"}), r"cuts\.jsonl:2: there is no recording 'no\.wav'"),
        (good, r"cuts\.jsonl:2: the id 'c' is in .*cuts\.jsonl:1 already"),
    ):
        path.write_text(f"{good}\n{bad}\n")
        with pytest.raises(ManifestError, match=message) as caught:
            list(stream_utterances(path))
        assert "\n" not in str(caught.value)
    packed = gzip.compress(good.encode() * 50)
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ManifestError, match=r"cut\.jsonl\.gz:1: cannot be read"):
        list(stream_utterances(tmp_path / "cut.jsonl.gz"))


def test_sound_that_lhotse_cannot_read_is_named(tmp_path: Path) -> None:
    mixed = cut(recording(tmp_path), "m", 0.0, 1.0).perturb_speed(0.9)
    CutSet.from_cuts([mixed]).to_file(tmp_path / "cuts.jsonl")
    (found,) = stream_utterances(tmp_path / "cuts.jsonl")
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(AudioError, match=r"cuts\.jsonl:1: cut '.*' cannot be read: ") as caught:
        found.load(RATE)
    assert "\n" not in str(caught.value)
