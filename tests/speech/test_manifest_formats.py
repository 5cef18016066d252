"""Each form of manifest read into the same utterances, and each mistake in one named by file and line."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from quantasr.errors import AudioError, ManifestError
from quantasr.speech.manifest import FORMATS, Utterance, read_manifest, require_texts, write_manifest

RATE = 8000


def tone(path: Path, seconds: float = 1.0, frequency: float = 300.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * RATE)) / RATE), RATE)
    return path


def nemo(path: Path, *rows: dict | str) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def said(utterances: list[Utterance]) -> list[tuple]:
    return [(u.id, u.text, u.start, u.duration, u.speaker) for u in utterances]


@pytest.fixture
def two(tmp_path):
    tone(tmp_path / "audio" / "a.wav")
    tone(tmp_path / "audio" / "b.wav", 2.0)
    return tmp_path


def test_nemo(two, tmp_path_factory):
    far = tone(tmp_path_factory.mktemp("far") / "c.wav")
    path = nemo(
        two / "m.jsonl",
        {"audio_filepath": "audio/a.wav", "duration": 1.0, "text": "one two", "speaker": 7, "lang": "en"},
        "",
        {"audio_filepath": "audio/b.wav", "offset": 0.5, "duration": 1.25, "text": ""},
        {"audio_filepath": "audio/b.wav", "offset": 1.75},
        {"audio_filepath": str(far), "text": "drei größer", "id": "third", "duration": None},
    )
    utterances = read_manifest(path)
    assert said(utterances) == [
        ("audio/a", "one two", 0.0, 1.0, "7"),
        ("audio/b@0.5", "", 0.5, 1.25, None),
        ("audio/b@1.75", None, 1.75, None, None),
        ("third", "drei größer", 0.0, None, None),
    ]
    assert [u.source for u in utterances] == [f"{path}:{line}" for line in (1, 3, 4, 5)]
    assert utterances[0].language == "en"
    assert [len(u.load(RATE)) for u in utterances] == [8000, 10000, 2000, 8000]
    whole = soundfile.read(two / "audio" / "b.wav", dtype="float32")[0]
    assert np.array_equal(utterances[1].load(RATE), whole[4000:14000])
    assert np.array_equal(np.concatenate(list(utterances[1].stream(RATE, 0.3))), whole[4000:14000])
    assert read_manifest(path, limit=2) == utterances[:2]
    assert read_manifest(str(path.rename(two / "noname")), format="auto")[0].id == "audio/a"  # '{' tells the form


def test_librispeech(tmp_path):
    for speaker, chapter in ((84, 121123), (174, 50561)):
        folder = tmp_path / "dev-clean" / str(speaker) / str(chapter)
        for number in (0, 1):
            tone(folder / f"{speaker}-{chapter}-000{number}.flac")
        lines = f"{speaker}-{chapter}-0000 GO DO YOU HEAR\n{speaker}-{chapter}-0001 BUT IN LESS\n"
        (folder / f"{speaker}-{chapter}.trans.txt").write_text(lines)
    utterances = read_manifest(tmp_path)
    assert said(utterances)[:2] == [
        ("174-50561-0000", "GO DO YOU HEAR", 0.0, None, "174"),
        ("174-50561-0001", "BUT IN LESS", 0.0, None, "174"),
    ]
    assert len(utterances) == 4
    assert all(len(u.load(RATE)) == RATE for u in utterances)
    (tmp_path / "dev-clean/84/121123/84-121123-0001.flac").unlink()
    with pytest.raises(ManifestError, match=r"84-121123\.trans\.txt:2: there is no recording '84-121123-0001\.flac'"):
        read_manifest(tmp_path)


def kaldi(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("wav_scp", "wav.scp")).write_text(text)
    return folder


def test_kaldi_whole_recordings(two):
    folder = kaldi(
        two / "data",
        wav_scp=f"utt1 {two}/audio/a.wav\nutt2\t../audio/b.wav\n",
        text="utt2 hello  world\nutt1\n",
        utt2spk="utt1 ann\nutt2 bob\n",
    )
    utterances = read_manifest(folder)
    assert said(utterances) == [("utt1", "", 0.0, None, "ann"), ("utt2", "hello  world", 0.0, None, "bob")]
    assert utterances[1].source == f"{folder / 'wav.scp'}:2"
    assert [len(u.load(RATE)) for u in utterances] == [8000, 16000]
    assert read_manifest(folder / "wav.scp") == utterances


def test_kaldi_paths_from_the_working_directory(two, monkeypatch):
    monkeypatch.chdir(two)
    folder = kaldi(two / "data", wav_scp="utt1 audio/a.wav\n")
    assert said(read_manifest(folder)) == [("utt1", None, 0.0, None, None)]


def test_kaldi_segments(two):
    folder = kaldi(
        two / "data",
        wav_scp="rec ../audio/b.wav\n",
        segments="u1 rec 0.25 1.0\nu2 rec 1.5 -1\n",
        text="u1 one\nu2 two\n",
    )
    utterances = read_manifest(folder)
    assert said(utterances) == [("u1", "one", 0.25, 0.75, None), ("u2", "two", 1.5, None, None)]
    assert [len(u.load(RATE)) for u in utterances] == [6000, 4000]


def test_kaldi_commands_run_only_when_trusted(two):
    marker = two / "ran"
    folder = kaldi(two / "data", wav_scp=f"u1 touch {marker}; cat {two}/audio/b.wav | cat |\n", segments="s u1 0.5 1\n")
    with pytest.raises(ManifestError, match=r"wav\.scp:1: 'touch .* is a command: if you trust"):
        read_manifest(folder)
    assert not marker.exists()
    (utterance,) = read_manifest(folder, trust=True)
    assert not marker.exists()  # only when the samples are wanted
    assert np.array_equal(utterance.load(RATE), soundfile.read(two / "audio/b.wav", dtype="float32")[0][4000:8000])
    assert np.array_equal(np.concatenate(list(utterance.stream(RATE, 0.1))), utterance.load(RATE))
    assert marker.exists()
    with pytest.raises(ManifestError, match="comes from a command"):
        write_manifest([utterance], two / "out.jsonl")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("echo oh no >&2; exit 3 |", r"failed with exit code 3 \(oh no\)"),
        ("exit 1 |", r"failed with exit code 1 \(it said nothing\)"),
        ("true |", "wrote nothing"),
        ("echo text |", "the output of 'echo text': is not audio"),
    ],
)
def test_kaldi_commands_that_fail(tmp_path, command, message):
    (utterance,) = read_manifest(kaldi(tmp_path / "data", wav_scp=f"u1 {command}\n"), trust=True)
    with pytest.raises(AudioError, match=rf"{message}.*\(listed in .*wav\.scp:1\)"):
        utterance.load(RATE)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"wav_scp": "u1 ../audio/a.wav\nu1 ../audio/b.wav\n"}, r"wav\.scp:2: 'u1' is in .*wav\.scp:1 already"),
        ({"wav_scp": "u1\n"}, r"wav\.scp:1: names no recording"),
        ({"wav_scp": "u1 x.ark:17\n"}, r"wav\.scp:1: 'x\.ark:17' points into an archive"),
        ({"wav_scp": "u1 gone.wav\n"}, r"wav\.scp:1: there is no recording 'gone\.wav' in .*data or \."),
        ({"wav_scp": "u1 ../audio/a.wav\n", "text": "u2 hello\n"}, r"wav\.scp:1: 'u1' has no line in .*text"),
        ({"wav_scp": "u1 ../audio/a.wav\n", "text": "u1 a\nu2 b\n"}, r"text:2: 'u2' has no recording"),
        (
            {"wav_scp": "r ../audio/a.wav\n", "segments": "u q 0 1\n"},
            r"segments:1: the recording 'q' is not in wav\.scp",
        ),
        ({"wav_scp": "r ../audio/a.wav\n", "segments": "u r 1 x\n"}, r"segments:1: is not 'utterance recording start"),
        ({"wav_scp": "r ../audio/a.wav\n", "segments": "u r 1\n"}, r"segments:1: is not 'utterance recording start"),
        ({"wav_scp": "r ../audio/a.wav\n", "segments": "u r 1 0.5\n"}, r"segments:1: the segment goes from 1\.0 s to"),
        (
            {"wav_scp": "r ../audio/a.wav\n", "segments": "u r -2 0.5\n"},
            r"segments:1: the segment goes from -2\.0 s to",
        ),
        ({"wav_scp": "r ../audio/a.wav\n", "segments": "u r 0 nan\n"}, r"segments:1: the segment goes from 0\.0 s to"),
        ({"wav_scp": ""}, r"holds no utterance \(read as 'kaldi'\)"),
    ],
)
def test_kaldi_mistakes(two, files, message):
    with pytest.raises(ManifestError, match=message):
        read_manifest(kaldi(two / "data", **files))


def test_common_voice(tmp_path):
    for name in ("cv_1.mp3", "cv_2.mp3"):
        tone(tmp_path / "clips" / name)
    header = "client_id\tpath\tsentence\tup_votes\tlocale\n"
    rows = 'ab12\tcv_1.mp3\t"Hello," he said, "twice".\t2\ten\ncd34\tcv_2\tIt\'s 3, not 4.\t2\ten\n'
    (tmp_path / "test.tsv").write_text(header + rows)
    utterances = read_manifest(tmp_path / "test.tsv")
    assert said(utterances) == [
        ("cv_1", '"Hello," he said, "twice".', 0.0, None, "ab12"),
        ("cv_2", "It's 3, not 4.", 0.0, None, "cd34"),
    ]
    assert [u.language for u in utterances] == ["en", "en"]
    assert utterances[1].source == f"{tmp_path / 'test.tsv'}:3"
    assert len(utterances[0].load(RATE)) == RATE
    with pytest.raises(ManifestError, match=r"is a Common Voice folder: name one of its tables \(test\.tsv\)"):
        read_manifest(tmp_path)
    (tmp_path / "test.csv").write_text('path,sentence\ncv_1.mp3,"Hello, ""you"""\r\n')
    assert said(read_manifest(tmp_path / "test.csv")) == [("cv_1", 'Hello, "you"', 0.0, None, None)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\tsentence\nx\ty\n", r"test\.tsv:1: lacks the column 'path'"),
        ("path\ttext\nx\ty\n", r"test\.tsv:1: lacks the column 'sentence'"),
        ("path\tsentence\ncv_1.mp3\n", r"test\.tsv:2: has 1 fields where the first line names 2"),
        ("path\tsentence\nno.mp3\thi\n", r"test\.tsv:2: there is no recording 'no\.mp3' in .*clips or "),
        ("path\tsentence\n", r"holds no utterance \(read as 'commonvoice'\)"),
    ],
)
def test_common_voice_mistakes(tmp_path, text, message):
    tone(tmp_path / "clips" / "cv_1.mp3")
    (tmp_path / "test.tsv").write_text(text)
    with pytest.raises(ManifestError, match=message):
        read_manifest(tmp_path / "test.tsv")


def test_recordings_without_texts(two):
    (two / "audio" / "notes.pdf").touch()
    tone(two / "audio" / "deep" / "c.flac")
    utterances = read_manifest(two / "audio")
    assert [u.id for u in utterances] == ["a", "b", "deep/c"]
    (two / "calibration.txt").write_text("audio/b.wav\n\naudio/a.wav\n")
    listed = read_manifest(two / "calibration.txt")
    assert [(u.id, u.text, u.source) for u in listed] == [
        ("audio/b", None, f"{two / 'calibration.txt'}:1"),
        ("audio/a", None, f"{two / 'calibration.txt'}:3"),
    ]
    assert [u.audio.name for u in read_manifest(two / "audio" / "b.wav")] == ["b.wav"]
    with pytest.raises(ManifestError, match=r"calibration\.txt:1: no text, so there is nothing to score .*2 of 2"):
        require_texts(listed)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"audio_filepath": "audio/a.wav"', r"m\.jsonl:2: is not JSON \("),
        ('["audio/a.wav"]', r"m\.jsonl:2: is not a JSON object"),
        ('{"text": "hi", "duration": 1}', r"m\.jsonl:2: lacks the key 'audio_filepath'"),
        ('{"audio_filepath": ""}', r"m\.jsonl:2: lacks the key 'audio_filepath'"),
        ('{"audio_filepath": 5}', r"m\.jsonl:2: 'audio_filepath' is 5: give a string"),
        ('{"audio_filepath": "audio/z.wav"}', r"m\.jsonl:2: there is no recording 'audio/z\.wav' in "),
        ('{"audio_filepath": "/z.wav"}', r"m\.jsonl:2: there is no recording '/z\.wav': mend"),
        ('{"audio_filepath": "audio/b.wav", "text": 5}', r"m\.jsonl:2: 'text' is 5: give a string"),
        ('{"audio_filepath": "audio/b.wav", "duration": "1"}', r"""m\.jsonl:2: 'duration' is "1": give seconds"""),
        ('{"audio_filepath": "audio/b.wav", "duration": true}', r"m\.jsonl:2: 'duration' is true: give seconds"),
        ('{"audio_filepath": "audio/b.wav", "duration": 0}', r"m\.jsonl:2: lasts 0\.0 s"),
        ('{"audio_filepath": "audio/b.wav", "duration": NaN}', r"m\.jsonl:2: lasts nan s"),
        ('{"audio_filepath": "audio/b.wav", "offset": -1}', r"m\.jsonl:2: starts at -1\.0 s"),
        ('{"audio_filepath": "audio/a.wav"}', r"m\.jsonl:2: the id 'audio/a' is in .*m\.jsonl:1 already"),
    ],
)
def test_nemo_mistakes(two, line, message):
    with pytest.raises(ManifestError, match=message) as caught:
        read_manifest(nemo(two / "m.jsonl", {"audio_filepath": "audio/a.wav", "text": "a"}, line))
    assert "\n" not in str(caught.value)


def test_manifests_that_are_none(two):
    with pytest.raises(ManifestError, match="no such file or folder"):
        read_manifest(two / "no.jsonl")
    with pytest.raises(ManifestError, match=r"holds no utterance \(read as 'nemo'\)"):
        read_manifest(nemo(two / "empty.jsonl", ""))
    (two / "nothing").mkdir()
    with pytest.raises(ManifestError, match="holds no utterance"):
        read_manifest(two / "nothing")
    (two / "latin.jsonl").write_bytes('{"audio_filepath": "audio/a.wav"}\n{"text": "größer"}\n'.encode("latin-1"))
    with pytest.raises(ManifestError, match=r"latin\.jsonl:\d: is not UTF-8"):
        read_manifest(two / "latin.jsonl")
    good = nemo(two / "m.jsonl", {"audio_filepath": "audio/a.wav"})
    with pytest.raises(ManifestError, match=f"format 'nemmo' is unknown: choose from auto, {', '.join(FORMATS)}"):
        read_manifest(good, format="nemmo")
    with pytest.raises(ManifestError, match="limit is 0"):
        read_manifest(good, limit=0)
    with pytest.raises(ManifestError, match="format 'librispeech' is a folder"):
        read_manifest(good, format="librispeech")
    with pytest.raises(ManifestError, match="format 'nemo' is a file"):
        read_manifest(two, format="nemo")
    for suffix in ("", ".wav"):  # an empty file of any name
        (two / f"zero{suffix}").touch()
    with pytest.raises(ManifestError, match="holds no utterance"):
        read_manifest(two / "zero")


def test_bad_audio_names_the_line_too(two):
    (two / "audio" / "a.wav").write_bytes(b"")
    (utterance,) = read_manifest(nemo(two / "m.jsonl", "", {"audio_filepath": "audio/a.wav"}))
    for read in (lambda: utterance.load(RATE), lambda: list(utterance.stream(RATE, 1.0))):
        with pytest.raises(AudioError, match=r"a\.wav: is empty \(0 bytes\).*\(listed in .*m\.jsonl:2\)"):
            read()


def test_written_manifests_read_back_the_same(two, tmp_path_factory):
    far = tone(tmp_path_factory.mktemp("far") / "c.wav", 1.5)
    rows = [
        Utterance("x", two / "audio" / "a.wav", "größer", 0.0, 0.75, speaker="s1", language="de"),
        Utterance("y", two / "audio" / "b.wav", None, 0.5, 1.0),
        Utterance("z", far, ""),
    ]
    path = two / "out.jsonl"
    write_manifest(rows, path)
    first = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert first["audio_filepath"] == "audio/a.wav"
    back = read_manifest(path)
    assert [(u.id, u.text, u.start, u.duration, u.speaker, u.language) for u in back] == [
        ("x", "größer", 0.0, 0.75, "s1", "de"),
        ("y", None, 0.5, 1.0, None, None),
        ("z", "", 0.0, 1.5, None, None),
    ]
    assert [u.audio.resolve() for u in back] == [u.audio.resolve() for u in rows]
    assert path.stat().st_mode == (two / "audio" / "a.wav").stat().st_mode


def test_a_manifest_that_cannot_be_written_leaves_nothing(two, monkeypatch):
    path = nemo(two / "out.jsonl", "old")
    row = Utterance("x", two / "audio" / "a.wav", "hi", duration=1.0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ManifestError, match=r"out\.jsonl: cannot be written \(No space left on device\)"):
        write_manifest([row], path)
    assert path.read_text() == "old\n"
    assert sorted(p.name for p in two.iterdir()) == ["audio", "out.jsonl"]
    with pytest.raises(ManifestError, match="cannot be written"):
        write_manifest([row], two / "no" / "out.jsonl")
    with pytest.raises(ManifestError, match="no utterance to write"):
        write_manifest([], path)
