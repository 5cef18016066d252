"""Files that cannot be used: each gives one line that names it and says what to do."""

import os
import threading

import numpy as np
import pytest
import soundfile

from quantasr.errors import AudioError
from quantasr.speech.audio import audio_info, load_audio, stream_audio

RATE = 16000
WAVE = 0.3 * np.random.default_rng(0).standard_normal(2 * RATE).clip(-2, 2)

FORMATS = [
    ("wav", "PCM_16"),
    ("wav", "FLOAT"),
    ("aiff", "PCM_16"),
    ("flac", "PCM_16"),
    ("ogg", "VORBIS"),
    ("ogg", "OPUS"),
    ("mp3", "MPEG_LAYER_III"),
]


def refused(path, message, **segment):
    """Every way to read it ends in the same one-line error, which names the file."""
    for read in (
        lambda: load_audio(path, 8000, **segment),
        lambda: list(stream_audio(path, 8000, 0.5, **segment)),
    ):
        with pytest.raises(AudioError, match=message) as caught:
            read()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert str(caught.value).count(":") >= 2  # file: what: what to do


def test_missing(tmp_path):
    refused(tmp_path / "no.wav", "no such file: check the path")
    with pytest.raises(AudioError, match="no such file"):
        audio_info(tmp_path / "no.wav")


def test_a_folder(tmp_path):
    refused(tmp_path, "is a folder")


def test_empty(tmp_path):
    (tmp_path / "a.wav").touch()
    refused(tmp_path / "a.wav", r"is empty \(0 bytes\)")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_forbidden(tmp_path):
    soundfile.write(tmp_path / "a.wav", WAVE, RATE)
    (tmp_path / "a.wav").chmod(0)
    refused(tmp_path / "a.wav", "Permission denied")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.wav", b"this is a text"),
        ("a.flac", b"fLaC"),
        ("a.wav", b"RIFF"),
        ("a.mp3", b"ID3" + bytes(200)),
        ("a.m4a", b"\0\0\0\x1cftypM4A " + bytes(500)),
        ("a.raw", bytes(500)),
        ("a.wav", bytes(5000)),
        ("a.html", b"<html>404 Not Found</html>" * 40),
    ],
)
def test_not_audio(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    refused(tmp_path / name, "is not audio that can be read here .*: convert it first")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize(("suffix", "subtype"), FORMATS)
def test_cut_short(tmp_path, suffix, subtype, share):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, WAVE, RATE, subtype=subtype)
    assert len(load_audio(path, RATE)) > 0.9 * len(WAVE)  # whole, it is fine
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refused(path, "cut short")


def test_cut_in_the_last_page_of_ogg(tmp_path):
    path = tmp_path / "a.ogg"
    soundfile.write(path, WAVE, RATE)
    path.write_bytes(path.read_bytes()[:-1])
    refused(path, "cut short")


def test_cut_within_mpeg_without_header(tmp_path):
    soundfile.write(tmp_path / "a.mp3", WAVE, RATE)
    data = (tmp_path / "a.mp3").read_bytes()
    bare = data[data.index(data[:2], 4) :]
    (tmp_path / "a.mp3").write_bytes(bare[: len(bare) // 2 + 7])
    threads = threading.active_count()
    refused(tmp_path / "a.mp3", "damaged or cut short")
    assert threading.active_count() == threads


def test_a_byte_changed_in_flac(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, WAVE, RATE)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    path.write_bytes(data)
    refused(path, "damaged or cut short")


@pytest.mark.parametrize("suffix", ["wav", "aiff", "ogg"])
def test_no_samples(tmp_path, suffix):
    soundfile.write(tmp_path / f"a.{suffix}", np.zeros(0), RATE)
    refused(tmp_path / f"a.{suffix}", "holds no samples")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path, value):
    wave = WAVE.copy()
    wave[20000] = value
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    refused(tmp_path / "a.wav", "holds NaN or infinite samples")
    assert len(load_audio(tmp_path / "a.wav", RATE, duration=1.0)) == RATE  # the part before it can be used


def test_shorter_than_a_sample(tmp_path):
    soundfile.write(tmp_path / "a.wav", WAVE[:1], 96000)
    refused(tmp_path / "a.wav", "shorter than one sample at 8000 Hz")


@pytest.mark.parametrize("suffix", ["wav", "mp3"])
def test_segments_outside(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, WAVE, RATE)
    refused(path, "segment from 2.00 s to its end lies outside of its 2.00 s", start=2.0)
    refused(path, "segment from 5.00 s to 6.00 s lies outside", start=5.0, duration=1.0)
    refused(path, "segment from 1.00 s to 2.60 s lies outside", start=1.0, duration=1.6)
    refused(path, "cannot start at -1.0 s", start=-1.0)
    refused(path, "last 0.0 s", duration=0.0)
    assert len(load_audio(path, RATE, start=1.0, duration=1.2)) == RATE  # rounded times may pass the end a little


@pytest.mark.parametrize("rate", [0, -1])
def test_sample_rates_that_are_none(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", WAVE, RATE)
    with pytest.raises(AudioError, match=f"sample rate is {rate}"):
        load_audio(tmp_path / "a.wav", rate)


def test_blocks_that_are_none(tmp_path):
    soundfile.write(tmp_path / "a.wav", WAVE, RATE)
    with pytest.raises(ValueError, match="block_seconds is 0"):
        next(stream_audio(tmp_path / "a.wav", RATE, 0))
