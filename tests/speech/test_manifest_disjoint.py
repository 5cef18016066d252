"""Calibration and evaluation must not share speech; what shares and what does not."""

import shutil

import numpy as np
import pytest
import soundfile

from quantasr.errors import ManifestError
from quantasr.speech.manifest import Utterance, check_disjoint

RATE = 8000


def record(path, seed, seconds=1.0, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate)), rate)
    return path


def utterance(path, start=0.0, duration=None, text="same words", name=None, line=1):
    return Utterance(name or f"{path.stem}@{start}", path, text, start, duration, source=f"m.jsonl:{line}")


@pytest.fixture
def recordings(tmp_path):
    return [record(tmp_path / f"{seed}.wav", seed) for seed in range(6)]


def test_apart(recordings):
    # All have the same size, length and text: none of that makes them the same speech.
    check_disjoint([utterance(p) for p in recordings[:3]], [utterance(p) for p in recordings[3:]])


def test_same_file(recordings):
    with pytest.raises(ManifestError) as caught:
        check_disjoint([utterance(p) for p in recordings], [utterance(p, line=9) for p in recordings[1:]])
    message = str(caught.value)
    assert message.startswith("5 of 6 calibration utterances are in the evaluation manifest too: ")
    assert "'1@0.0' (m.jsonl:1) and '1@0.0' (m.jsonl:9), the same recording; '2@0.0'" in message
    assert message.endswith("and 2 more: take them out of one of the two")
    assert "\n" not in message


def test_same_file_by_another_path(recordings, tmp_path, monkeypatch):
    link = tmp_path / "link.wav"
    link.symlink_to(recordings[0])
    monkeypatch.chdir(tmp_path)
    for path in (link, tmp_path / "x" / ".." / "0.wav"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(ManifestError, match="the same recording"):
            check_disjoint([utterance(recordings[0])], [utterance(path, name="other")])


def test_copied_file(recordings, tmp_path):
    copy = tmp_path / "elsewhere" / "zzz.wav"
    copy.parent.mkdir()
    shutil.copy(recordings[2], copy)
    with pytest.raises(ManifestError, match=r"^1 of 3 .* '2@0.0' .* and 'zzz@0.0' .* the same recording"):
        check_disjoint([utterance(p) for p in recordings[:3]], [utterance(copy, text=None)])


@pytest.mark.parametrize(
    ("left", "right", "shared"),
    [
        ((0.0, 0.5), (0.5, None), False),
        ((0.0, 0.505), (0.5, 0.5), False),  # rounded times
        ((0.0, 0.6), (0.5, 0.5), True),
        ((0.5, None), (0.0, 0.5), False),
        ((0.5, None), (0.9, None), True),
        ((0.0, None), (0.3, 0.1), True),
        ((0.4, 0.1), (0.0, None), True),
    ],
)
def test_segments_of_one_recording(recordings, left, right, shared):
    calibration = [utterance(recordings[0], *left)]
    # Others around it, so that the search has something to pass over.
    evaluation = [utterance(recordings[1]), utterance(recordings[0], *right), utterance(recordings[2], 0.9)]
    if shared:
        with pytest.raises(ManifestError, match="the same recording"):
            check_disjoint(calibration, evaluation)
    else:
        check_disjoint(calibration, evaluation)


def test_a_long_segment_before_many_short_ones_is_found(tmp_path):
    path = record(tmp_path / "long.wav", 0, seconds=20)
    evaluation = [utterance(path, 0.0, 15.0)] + [utterance(path, 1 + 0.1 * k, 0.05) for k in range(80)]
    with pytest.raises(ManifestError, match=r"^1 of 2"):
        check_disjoint([utterance(path, 14.5, 0.2), utterance(path, 18.0, 1.0)], evaluation)


def test_encoded_again(recordings, tmp_path):
    wave = soundfile.read(recordings[0])[0]
    again = tmp_path / "flac" / "0.flac"
    again.parent.mkdir()
    soundfile.write(again, wave, RATE)
    left = utterance(recordings[0], name="utt-0")
    with pytest.raises(ManifestError, match="the same name, text and length"):
        check_disjoint([left], [utterance(again, name="utt-0")])
    with pytest.raises(ManifestError, match="the same name, text and length"):
        check_disjoint([left], [utterance(again, name="utt-0", text=None)])
    check_disjoint([left], [utterance(again, name="utt-0", text="other words")])
    check_disjoint([left], [utterance(again, name="utt-1")])


def test_numbered_files_of_two_folders_are_not_the_same(tmp_path):
    left = record(tmp_path / "calibration" / "0001.wav", 1, 1.0)
    right = record(tmp_path / "evaluation" / "0001.wav", 2, 1.4)
    check_disjoint([utterance(left, name="0001")], [utterance(right, name="0001")])


def test_commands(tmp_path):
    def piped(name, command, start=0.0):
        return Utterance(name, tmp_path / "wav.scp", "x", start, 1.0, command=command)

    check_disjoint([piped("a", "cat 1.wav")], [piped("a", "cat 2.wav"), piped("b", "cat 1.wav", 1.0)])
    with pytest.raises(ManifestError, match="the same recording"):
        check_disjoint([piped("a", "cat 1.wav")], [piped("b", "cat 1.wav", 0.5)])
