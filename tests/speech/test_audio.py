"""Recordings of every format against the signal that was written into them."""

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from quantasr.errors import AudioError
from quantasr.speech.audio import audio_info, check_wave, describe_faults, load_audio, stream_audio

FREQUENCY = 437.0
SECONDS = 1.5
RATE = 16000

# (suffix, libsndfile's subtype, largest difference that the coding may make)
LOSSLESS = [
    ("wav", "PCM_16", 2e-4),
    ("wav", "PCM_24", 1e-4),
    ("wav", "PCM_32", 1e-4),
    ("wav", "FLOAT", 1e-4),
    ("wav", "DOUBLE", 1e-4),
    ("wav", "PCM_U8", 0.015),
    ("wav", "ULAW", 0.02),
    ("flac", "PCM_16", 2e-4),
    ("flac", "PCM_24", 1e-4),
]
LOSSY = [("ogg", "VORBIS", 0.03), ("mp3", "MPEG_LAYER_III", 0.03)]


def sine(rate: int, seconds: float = SECONDS, amplitude: float = 0.4) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * FREQUENCY * np.arange(round(seconds * rate)) / rate)


def write(path: Path, wave: np.ndarray, rate: int, subtype: str) -> Path:
    with soundfile.SoundFile(path, "w", rate, 1 if wave.ndim == 1 else wave.shape[1], subtype=subtype) as file:
        for begin in range(0, len(wave), rate):  # libsndfile crashes on a long Vorbis buffer
            file.write(wave[begin : begin + rate])
    return path


def restless(rate: int, seconds: int) -> np.ndarray:
    """Tones and noise in turn, so that a variable bit rate varies."""
    rng = np.random.default_rng(0)
    tones = (0.3 * np.sin(np.arange(rate) * rng.uniform(0.01, 0.5)) for _ in range(seconds))
    return np.concatenate([tone if k % 2 else 0.1 * rng.standard_normal(rate) for k, tone in enumerate(tones)])


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize(("suffix", "subtype", "tolerance"), LOSSLESS + LOSSY)
def test_a_sine_stays_that_sine(tmp_path, suffix, subtype, tolerance, rate, channels):
    wave = sine(rate)
    if channels == 2:  # averages to the sine again
        wave = np.stack([1.5 * wave, 0.5 * wave], axis=1)
    path = write(tmp_path / f"a.{suffix}", wave, rate, subtype)

    loaded = load_audio(path, RATE)

    assert loaded.dtype == np.float32
    assert loaded.ndim == 1
    assert len(loaded) == round(SECONDS * RATE)
    inner = slice(RATE // 10, -RATE // 10)  # the edges of a cut tone ring
    assert np.abs(loaded[inner] - sine(RATE)[inner]).max() < tolerance
    info = audio_info(path)
    assert (info.sample_rate, info.channels) == (rate, channels)
    assert info.duration == pytest.approx(SECONDS, abs=1 / rate)
    assert info.format == f"{suffix.upper()}/{subtype}"


def test_opus_and_more_channels(tmp_path):
    path = write(tmp_path / "a.ogg", sine(48000), 48000, "OPUS")
    assert np.abs(load_audio(path, RATE)[1600:-1600] - sine(RATE)[1600:-1600]).max() < 0.03
    six = np.stack([sine(RATE) * weight for weight in (3, 0, 0, 0, 2, 1)], axis=1)
    path = write(tmp_path / "six.flac", six / 3, RATE, "PCM_24")
    assert np.abs(load_audio(path, RATE) - sine(RATE) / 3).max() < 1e-6


def test_without_resampling_the_samples_are_the_files(tmp_path):
    samples = np.random.default_rng(0).integers(-32768, 32768, 5000, dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", samples, RATE)
    assert np.array_equal(load_audio(tmp_path / "a.wav", RATE), samples.astype(np.float32) / 32768)
    assert np.array_equal(load_audio(str(tmp_path / "a.wav"), RATE), samples.astype(np.float32) / 32768)


def test_resampling_is_soxr_and_takes_out_what_the_new_rate_cannot_hold(tmp_path):
    wave = restless(44100, 3).astype(np.float32)
    path = write(tmp_path / "a.wav", wave, 44100, "FLOAT")
    assert np.array_equal(load_audio(path, RATE), soxr.resample(wave, 44100, RATE, quality="HQ"))
    high = np.sin(2 * np.pi * 11000 * np.arange(44100) / 44100)  # above 8 kHz it would alias
    assert np.abs(load_audio(write(tmp_path / "h.wav", high, 44100, "FLOAT"), RATE)[1600:-1600]).max() < 1e-3


@pytest.mark.parametrize(("suffix", "subtype"), [(s, t) for s, t, _ in LOSSLESS[:1] + LOSSLESS[-1:] + LOSSY])
def test_a_segment_is_that_part_of_the_whole(tmp_path, suffix, subtype):
    path = write(tmp_path / f"a.{suffix}", restless(22050, 12), 22050, subtype)
    whole = load_audio(path, 22050)
    for start, duration in ((0.0, 1.0), (3.217, 2.5), (11.0, None), (11.25, 1.0)):
        first = round(start * 22050)
        last = None if duration is None else first + round(duration * 22050)
        part = load_audio(path, 22050, start=start, duration=duration)
        assert np.abs(part - whole[first:last]).max() < 1e-6


def test_a_segment_is_read_without_the_rest(tmp_path):
    path = write(tmp_path / "a.wav", np.zeros(8000 * 600), 8000, "PCM_16")
    tracemalloc.start()
    load_audio(path, 8000, start=500, duration=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6  # all of it would take 19 MB


@pytest.mark.parametrize(("suffix", "subtype"), [(s, t) for s, t, _ in LOSSLESS[:1] + LOSSLESS[-1:] + LOSSY])
@pytest.mark.parametrize("block_seconds", [0.1, 1.0, 7.3, 100.0])
def test_blocks_join_to_the_whole(tmp_path, suffix, subtype, block_seconds):
    path = write(tmp_path / f"a.{suffix}", restless(44100, 16), 44100, subtype)
    blocks = list(stream_audio(path, RATE, block_seconds))
    assert {len(block) for block in blocks[:-1]} <= {round(block_seconds * RATE)}
    assert 0 < len(blocks[-1]) <= round(block_seconds * RATE)
    whole = load_audio(path, RATE)
    joined = np.concatenate(blocks)
    assert joined.shape == whole.shape
    assert np.abs(joined - whole).max() < 1e-4
    part = np.concatenate(list(stream_audio(path, RATE, block_seconds, start=2.5, duration=3.0)))
    assert np.abs(part - load_audio(path, RATE, start=2.5, duration=3.0)).max() < 1e-4


def test_streaming_takes_memory_for_a_block_only(tmp_path):
    path = write(tmp_path / "a.wav", np.zeros(8000 * 600), 8000, "PCM_16")
    tracemalloc.start()
    total = sum(len(block) for block in stream_audio(path, RATE, 2.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 600 * RATE
    assert peak < 2e6  # the recording takes 38 MB


def test_mpeg_of_variable_bit_rate_is_whole_without_its_header(tmp_path):
    wave = restless(44100, 8)
    data = write(tmp_path / "a.mp3", wave, 44100, "MPEG_LAYER_III").read_bytes()
    assert b"Xing" in data[:200]
    bare = data[data.index(data[:2], 4) :]  # from the second frame on
    (tmp_path / "bare.mp3").write_bytes(bare)
    # An ID3 tag of 300 bytes, as players put in front.
    (tmp_path / "tagged.mp3").write_bytes(b"ID3\x04\0\0\0\0\x02\x2c" + bytes(300) + bare)
    for name in ("bare.mp3", "tagged.mp3"):
        loaded = load_audio(tmp_path / name, 44100)
        # What the encoder added in front and behind stays, as nothing says how much it is.
        assert len(wave) <= len(loaded) <= len(wave) + 4000
        assert audio_info(tmp_path / name).duration == pytest.approx(len(loaded) / 44100)
        assert np.array_equal(load_audio(tmp_path / name, 44100, start=5.0, duration=1.0), loaded[220500:264600])
        assert next(iter(stream_audio(tmp_path / name, RATE, 1.0))).shape == (RATE,)  # and the rest is left unread
        with pytest.raises(AudioError, match=r"segment from 20.00 s .* lies outside of its 8"):
            load_audio(tmp_path / name, 44100, start=20)


def test_lengths_that_are_placeholders_are_no_truncation(tmp_path):
    data = bytearray(write(tmp_path / "a.wav", sine(RATE), RATE, "PCM_16").read_bytes())
    at = data.index(b"data") + 4
    for placeholder in (b"\xff\xff\xff\xff", b"\x00\xf0\xff\x7f", b"\0\0\0\x80"):  # ffmpeg, sox, arecord
        data[at : at + 4] = placeholder
        (tmp_path / "pipe.wav").write_bytes(data)
        assert len(load_audio(tmp_path / "pipe.wav", RATE)) == round(SECONDS * RATE)


def test_flac_that_does_not_say_how_long_it_is(tmp_path):
    data = bytearray(write(tmp_path / "a.flac", sine(RATE), RATE, "PCM_16").read_bytes())
    assert data[4] & 0x7F == 0  # STREAMINFO comes first; its last 36 bits before the checksum are the length
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    (tmp_path / "pipe.flac").write_bytes(data)
    assert np.abs(load_audio(tmp_path / "pipe.flac", RATE) - sine(RATE)).max() < 1e-4
    assert audio_info(tmp_path / "pipe.flac").duration == SECONDS


def test_open_files_can_be_read(tmp_path):
    for suffix, subtype in (("wav", "PCM_16"), ("mp3", "MPEG_LAYER_III"), ("ogg", "VORBIS")):
        path = write(tmp_path / f"a.{suffix}", sine(RATE), RATE, subtype)
        assert np.array_equal(load_audio(io.BytesIO(path.read_bytes()), RATE), load_audio(path, RATE))


def test_check_wave_scales_and_mixes():
    ramp = np.array([-32768, -16384, 0, 16384], dtype=np.int16)
    expected = np.array([-1, -0.5, 0, 0.5], dtype=np.float32)
    assert np.array_equal(check_wave(ramp, RATE), expected)
    assert np.array_equal(check_wave(ramp.astype(np.int32) * 65536, RATE), expected)
    assert np.array_equal(check_wave(expected.astype(np.float64), RATE), expected)
    assert check_wave(expected.astype(np.float64), RATE).dtype == np.float32
    stereo = np.stack([expected, np.zeros(4)], axis=1)
    assert np.array_equal(check_wave(stereo, RATE), expected / 2)


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (np.zeros(0, np.float32), "holds no samples"),
        (np.array([0.0, np.nan]), "NaN or infinite"),
        (np.array([0.0, -np.inf], np.float32), "NaN or infinite"),
        (np.zeros(9, np.uint8), "samples are uint8: give int16"),
        (np.zeros((2, 100), np.float32), "has 100 channels of 2 samples: transpose"),
        (np.zeros((2, 2, 2), np.float32), r"has shape \[2, 2, 2\]"),
    ],
)
def test_check_wave_refuses(wave, message):
    with pytest.raises(AudioError, match=rf"^clip 7: .*{message}"):
        check_wave(wave, RATE, "clip 7")


def test_suspicious_samples_are_described_not_refused(tmp_path):
    assert describe_faults(sine(RATE).astype(np.float32)) == ()
    assert describe_faults(np.zeros(RATE, np.float32)) == ("silent",)
    loud = np.clip(sine(RATE, 1.0, amplitude=1.25), -1, 1).astype(np.float32)
    assert describe_faults(loud)[0].startswith("clipped (41.")  # the sine is above 0.8 for 2 / pi * acos(0.8)
    assert describe_faults((sine(RATE) * 20000).astype(np.float32)) == ("louder than full scale (peak 8000)",)
    touching = sine(RATE).astype(np.float32)
    touching[100] = 1.0
    assert describe_faults(touching) == ()
    for wave in (np.zeros(RATE), loud):  # both are legitimate recordings
        write(tmp_path / "a.wav", wave, RATE, "PCM_16")
        assert np.isfinite(load_audio(tmp_path / "a.wav", 8000)).all()
        assert describe_faults(load_audio(tmp_path / "a.wav", RATE))[0][:6] in ("silent", "clippe")
