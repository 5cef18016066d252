"""Batches of a manifest: which recordings, in which order, the same whenever one begins."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from quantasr.errors import ManifestError, TrainingError
from quantasr.sources import load_model
from quantasr.sources.asr_model import CtcModel
from quantasr.speech.manifest import Utterance, read_manifest, utterance
from quantasr.training.augment import AugmentOptions
from quantasr.training.buckets import Buckets
from quantasr.training.data import TrainingData
from quantasr.training.data_options import DataOptions
from quantasr.training.store import UtteranceStore

DIGITS = Path(__file__).parents[2] / "src/quantasr/sample/digits"
TRAIN, VALIDATION = DIGITS / "calibration.jsonl", DIGITS / "evaluation.jsonl"
LOUD = AugmentOptions(speeds=(0.9, 1.0, 1.1), gain_db=6, noise="coloured")


@pytest.fixture(scope="module")
def model() -> CtcModel:
    loaded = load_model(str(DIGITS))
    assert isinstance(loaded, CtcModel)
    return loaded


def write(folder: Path, rows: Sequence[tuple[str, float, str]], name: str = "train.jsonl", **extra: object) -> Path:
    """A manifest of noise: (id, seconds, text)."""
    lines = []
    for id, seconds, text in rows:
        path = folder / f"{id}.wav"
        noise = np.random.default_rng(len(lines)).normal(0, 0.1, round(seconds * 8000))
        if not path.exists():
            soundfile.write(path, noise, 8000)
        row = {"id": id, "audio_filepath": path.name, "duration": seconds, "text": text, **extra}
        lines.append(json.dumps({key: value for key, value in row.items() if value is not None}))
    (folder / name).write_text("\n".join(lines), "utf-8")
    return folder / name


def opened(
    model: CtcModel, manifest: Path = TRAIN, options: DataOptions | None = None, **settings: object
) -> TrainingData:
    settings = {"batch": 8, "validation": None if options and options.holdout else VALIDATION, **settings}
    return TrainingData.open(manifest, model, options, **settings)  # type: ignore[arg-type]


def ids(data: TrainingData, first: int, last: int) -> list[list[str]]:
    return [[recording.id for recording in batch] for batch in data.batches(first, last)]


def test_every_epoch_has_every_utterance_once_in_another_order(model: CtcModel) -> None:
    data = opened(model)
    per_epoch = data.steps_per_epoch
    assert (len(data), per_epoch) == (48, 6)
    epochs = [ids(data, e * per_epoch, (e + 1) * per_epoch) for e in range(3)]
    everything = sorted(u.id for u in read_manifest(TRAIN))
    for epoch in epochs:
        assert [len(batch) for batch in epoch] == [8] * 6
        assert sorted(id for batch in epoch for id in batch) == everything
    assert epochs[0] != epochs[1] != epochs[2]
    assert {frozenset(b) for b in epochs[0]}.isdisjoint({frozenset(b) for b in epochs[1]})
    assert ids(opened(model, seed=1), 0, 6) != epochs[0]


def test_a_step_is_the_same_wherever_one_begins(model: CtcModel, monkeypatch: pytest.MonkeyPatch) -> None:
    options = DataOptions(augment=LOUD)
    whole = opened(model, options=options, batch=5)
    through = list(whole.batches(0, 40))
    # What is skipped is not read.
    with monkeypatch.context() as patch:
        patch.setattr(utterance, "load_audio", lambda *_, **__: pytest.fail("a recording was read"))
        resumed = list(opened(model, options=options, batch=5).batches(37, 40))
    assert [[r.id for r in batch] for batch in through[37:]] == [[r.id for r in batch] for batch in resumed]
    for before, after in zip(through[38], resumed[1], strict=True):
        assert before.seconds == after.seconds
        assert np.array_equal(before.load().wave, after.load().wave)


def test_reading_in_another_order_changes_nothing(model: CtcModel) -> None:
    batch = next(opened(model, options=DataOptions(augment=LOUD)).batches(3, 4))
    there = {recording.id: recording.load().wave for recording in batch}
    back = {recording.id: recording.load().wave for recording in reversed(batch)}
    assert all(np.array_equal(there[id], back[id]) for id in there)


def test_lengths_are_those_after_augmentation(model: CtcModel) -> None:
    data = opened(model, options=DataOptions(augment=LOUD))
    for recording in next(data.batches(0, 1)):
        example = recording.load()
        assert len(example.wave) / model.sample_rate == pytest.approx(recording.seconds, abs=2e-3)
        assert example.wave.dtype == np.float32
        assert example.text == recording.utterance.text
    seconds = {r.seconds / r.utterance.duration for batch in data.batches(0, 6) for r in batch if r.utterance.duration}
    assert sorted({round(1 / ratio, 3) for ratio in seconds}) == [0.9, 1.0, 1.1]


def test_recordings_of_a_batch_are_about_equally_long() -> None:
    seconds = np.random.default_rng(0).uniform(1, 20, 4000)
    buckets = Buckets(seconds, 8, buckets=20)
    spreads = [np.ptp(seconds[buckets.batch(step)[1]]) for step in range(buckets.per_epoch)]
    assert buckets.per_epoch == 500
    assert max(spreads) < 1.1
    # Who meets whom changes.
    pairs = [{frozenset(buckets.batch(e * 500 + s)[1].tolist()) for s in range(500)} for e in range(2)]
    assert not pairs[0] & pairs[1]


@pytest.mark.parametrize(("count", "batch"), [(1, 1), (1, 8), (7, 8), (129, 8), (1000, 7), (33, 4)])
@pytest.mark.parametrize("limit", [None, 30.0])
def test_no_utterance_is_lost_whatever_the_numbers(count: int, batch: int, limit: float | None) -> None:
    seconds = np.random.default_rng(count).uniform(0.5, 20, count)
    buckets = Buckets(seconds, batch, max_batch_seconds=limit)
    found = [buckets.batch(step)[1] for step in range(buckets.per_epoch)]
    assert sorted(np.concatenate(found).tolist()) == list(range(count))
    assert all(0 < len(members) <= batch for members in found)
    if limit is None:
        assert buckets.per_epoch == -(-count // batch)
    else:
        assert all(seconds[members].sum() <= limit for members in found)


def test_hours_are_the_same_utterances_whatever_the_order(model: CtcModel, tmp_path: Path) -> None:
    lines = TRAIN.read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row["audio_filepath"] = str(DIGITS / row["audio_filepath"])
    for name, listed in (("a", rows), ("b", rows[::-1])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, listed)), "utf-8")
    options = DataOptions(hours=60 / 3600)
    a, b = (opened(model, tmp_path / f"{name}.jsonl", options) for name in "ab")
    chosen = sorted(u.id for u in a.utterances)
    assert chosen == sorted(u.id for u in b.utterances)
    longest = max(row["duration"] for row in rows)
    assert 60 <= a.report.seconds < 60 + longest
    assert sorted(u.id for u in opened(model, tmp_path / "a.jsonl", options, seed=1).utterances) != chosen
    # More hours take what fewer hours took, and others.
    more = opened(model, tmp_path / "a.jsonl", DataOptions(hours=100 / 3600))
    assert set(chosen) < {u.id for u in more.utterances}


def test_more_hours_than_there_are_is_said(model: CtcModel) -> None:
    data = opened(model, options=DataOptions(hours=10))
    assert len(data) == 48
    assert data.report.lines()[-1] == "10 h were asked for, and there are 0.04"


def test_whole_speakers_are_held_out(model: CtcModel, tmp_path: Path) -> None:
    rows = [(f"u{i:03}", 0.5, "one") for i in range(60)]
    manifest = write(tmp_path, rows)
    listed = [json.loads(line) | {"speaker": f"s{i // 3}"} for i, line in enumerate(manifest.read_text().splitlines())]
    manifest.write_text("\n".join(map(json.dumps, listed)), "utf-8")
    data = opened(model, manifest, DataOptions(holdout="10%"))
    held, kept = data.validation, list(data.utterances)
    assert len(held) == 6
    assert len(kept) == 54
    assert not {u.speaker for u in held} & {u.speaker for u in kept}
    assert data.report.lines()[-1] == "6 utterances (0.1 min) are kept back for validation"
    again = opened(model, manifest, DataOptions(holdout="3s"))
    assert [u.id for u in again.validation] == [u.id for u in held]


def test_of_too_few_speakers_recordings_are_held_out(model: CtcModel) -> None:
    data = opened(model, options=DataOptions(holdout="4%"))
    held = {u.id for u in data.validation}
    assert 1 <= len(held) <= 6
    assert held.isdisjoint(u.id for u in data.utterances)
    assert len(held) + len(data) == 48
    assert data.report.lines()[-1].endswith("are kept back for validation; their speakers are trained on too")


def test_without_validation_nothing_is_trained(model: CtcModel) -> None:
    with pytest.raises(TrainingError, match=r"there is no validation manifest: name one, or hold some .* back"):
        TrainingData.open(TRAIN, model, batch=8)
    with pytest.raises(TrainingError, match="exclude each other"):
        TrainingData.open(TRAIN, model, DataOptions(holdout="5%"), batch=8, validation=VALIDATION)
    with pytest.raises(TrainingError, match="nothing is left to train on when 100% are held out"):
        TrainingData.open(TRAIN, model, DataOptions(holdout="100%"), batch=8)


def test_speech_that_is_validated_on_is_not_trained_on(model: CtcModel, tmp_path: Path) -> None:
    train = write(tmp_path, [("a", 0.5, "one"), ("b", 0.6, "two")])
    (tmp_path / "copy.wav").write_bytes((tmp_path / "b.wav").read_bytes())
    shared = write(tmp_path, [("copy", 0.6, "two"), ("c", 0.7, "six")], "shared.jsonl")
    with pytest.raises(ManifestError, match=r"1 of 1 training utterances are in the validation manifest too: 'b'"):
        opened(model, train, validation=shared)
    apart = write(tmp_path, [("c", 0.7, "six")], "apart.jsonl")
    assert len(opened(model, train, validation=apart)) == 2
    others = {"test": read_manifest(shared)}
    with pytest.raises(ManifestError, match=r"training utterances are in the test manifest too"):
        opened(model, train, validation=apart, apart_from={"calibration": [], **others})
    with pytest.raises(ManifestError, match=r"test utterances are in the validation manifest too: 'c'"):
        opened(model, write(tmp_path, [("a", 0.5, "one")], "t.jsonl"), validation=apart, apart_from=others)


def test_other_parts_of_one_recording_may_be_on_both_sides(model: CtcModel, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).normal(0, 0.1, 80000), 8000)
    base = {"audio_filepath": "long.wav", "text": "one", "duration": 2.0}
    (tmp_path / "t.jsonl").write_text(json.dumps(base | {"offset": 0}) + "\n" + json.dumps(base | {"offset": 2}))
    (tmp_path / "v.jsonl").write_text(json.dumps(base | {"offset": 4}))
    (tmp_path / "w.jsonl").write_text(json.dumps(base | {"offset": 3}))
    assert len(opened(model, tmp_path / "t.jsonl", validation=tmp_path / "v.jsonl")) == 2
    with pytest.raises(ManifestError, match="in the validation manifest too"):
        opened(model, tmp_path / "t.jsonl", validation=tmp_path / "w.jsonl")
    # Held out, parts of one recording stay together.
    with pytest.raises(TrainingError, match="nothing is left"):
        opened(model, tmp_path / "t.jsonl", DataOptions(holdout="10%"))


def test_what_a_loss_cannot_learn_from_is_left_out(model: CtcModel) -> None:
    data, said = opened(model, options=DataOptions(augment=LOUD)), []
    everything = {u.id: u for u in data.utterances}

    def problem(id: str, text: str | None, seconds: float) -> str | None:
        assert text == everything[id].text
        assert seconds == pytest.approx((everything[id].duration or 0) / 1.1)
        words = [word for word in ("six", "nine") if word in (text or "").split()]
        return f"words without a pronunciation: {', '.join(words)}" if words else None

    data.leave_out(problem, said.append)
    texts = [u.text.split() for u in everything.values() if u.text]
    six, nine = (sum(word in text for text in texts) for word in ("six", "nine"))
    lost = [text for text in texts if {"six", "nine"} & set(text)]
    assert len(data) == 48 - len(lost)
    assert not any({"six", "nine"} & set((u.text or "").split()) for u in data.utterances)
    assert sum(map(len, ids(data, 0, data.steps_per_epoch))) == len(data)
    first = next(u.id for u in everything.values() if {"six", "nine"} & set((u.text or "").split()))
    counts = sorted((("six", six), ("nine", nine)), key=lambda pair: -pair[1])
    named = ", ".join(f"'{word}' {count} times" for word, count in counts)
    assert said == [
        f"skipped: {len(lost)} utterances whose loss cannot be computed (words without a pronunciation): {named} "
        f"(first: {first})"
    ]
    assert data.report.lines()[0].startswith(f"training on {len(data)} of 48")
    with pytest.raises(TrainingError, match=r"no utterance can be trained on: skipped: .* \(has no alignment\)"):
        data.leave_out(lambda *_: "has no alignment")


def test_options_round_trip() -> None:
    options = DataOptions(hours=2, holdout="5 %", max_batch_seconds=100, augment=LOUD)
    assert DataOptions.from_dict(options.to_dict()) == options
    assert DataOptions.from_dict({}) == DataOptions()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"hours": 0}, "hours is 0"),
        ({"hours": "ten"}, "data options: "),
        ({"max_seconds": float("inf")}, "max_seconds is inf"),
        ({"min_seconds": 40}, "min_seconds is 40"),
        ({"buckets": 0}, "buckets is 0"),
        ({"buckets": 1.5}, "buckets = 1.5: write a whole number"),
        ({"holdout": "some"}, "'some' is no amount of speech: write 5%, 90s, 10min or 1h"),
        ({"holdout": 5}, "holdout = 5: write a string"),
        ({"hour": 1}, "unknown option 'hour'"),
        ({"augment": {"speeds": [9]}}, "speeds are [9"),
        ({"augment": 3}, "augment = 3: write a table"),
    ],
)
def test_options_out_of_range_are_refused(table: dict, message: str) -> None:
    with pytest.raises(TrainingError) as caught:
        DataOptions.from_dict(table)
    assert message in str(caught.value)


def test_utterances_can_be_read_by_many_threads(model: CtcModel) -> None:
    from concurrent.futures import ThreadPoolExecutor

    data = opened(model, options=DataOptions(augment=LOUD))
    batch: list = [recording for members in data.batches(0, 6) for recording in members]
    alone = [recording.load().wave for recording in batch]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda recording: recording.load().wave, batch))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_validation_is_a_list_of_utterances(model: CtcModel) -> None:
    validation = opened(model).validation
    assert len(validation) == 220
    assert all(isinstance(u, Utterance) for u in validation)


def test_utterances_are_kept_on_disk(tmp_path: Path) -> None:
    store = UtteranceStore()
    tracemalloc.start()
    try:
        for i in range(10_000):
            store.append(Utterance(f"u{i}", tmp_path / f"{i}.wav", "one two three " * 20, speaker=f"s{i}"), i / 10)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 40 * 10_000
    assert store[4567] == Utterance("u4567", tmp_path / "4567.wav", "one two three " * 20, speaker="s4567")
    assert store[-1].id == "u9999"
    assert [u.id for u in store[3:5]] == ["u3", "u4"]
    assert store.seconds[123] == 12.3
    # Appending goes on after reading.
    store.append(Utterance("last", tmp_path / "a.wav", None, 1.5, 2.0, source="m:1"), 2.0)
    assert store[10_000] == Utterance("last", tmp_path / "a.wav", None, 1.5, 2.0, source="m:1")
    with pytest.raises(IndexError):
        store[10_001]
