"""Recordings in, mono float32 samples at the recogniser's own rate out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr  # type: ignore[import-untyped,unused-ignore]
from numpy.typing import NDArray

from quantasr.errors import AudioError
from quantasr.speech.audio_file import AudioSource, Recording, open_recording
from quantasr.speech.transcript import Waveform

_BLOCK_SECONDS = 30.0  # read in one go; bounds what a file of many channels takes
_OVERSHOOT_SECONDS = 0.5  # rounded segment times may pass the end by this much, as in Kaldi's extract-segments
_QUALITY = "HQ"
_FULL_SCALE = 0.999
_CLIPPED_SHARE = 1e-3  # a file normalised to its peak touches full scale in a sample or two, which is no clipping
_MAX_CHANNELS = 64


@dataclass(frozen=True)
class AudioInfo:
    """What a file says of itself: ``duration`` in seconds, ``sample_rate`` in hertz, ``format`` as 'FLAC/PCM_16'."""

    duration: float
    sample_rate: int
    channels: int
    format: str


def audio_info(path: AudioSource) -> AudioInfo:
    """Length, rate, channels and format of a recording, from its header wherever that tells them.

    Raises:
        AudioError: as :func:`load_audio`.
    """
    with open_recording(path) as recording:
        frames = recording.frames
        if frames is None:
            frames = sum(len(block) for block in _native_blocks(recording, 0.0, None))
        return AudioInfo(frames / recording.sample_rate, recording.sample_rate, recording.channels, recording.format)


def load_audio(path: AudioSource, sample_rate: int, *, start: float = 0.0, duration: float | None = None) -> Waveform:
    """Read a recording, or the segment of it at ``start`` seconds and ``duration`` seconds long.

    wav, flac, mp3, ogg (Vorbis, Opus) and what else libsndfile reads; channels are averaged; resampled by
    soxr (HQ), the segment by itself. Only the segment is read. Its end may pass the recording's by 0.5 s.

    Returns:
        Samples in [-1, 1], shape ``[time]``, at ``sample_rate``.

    Raises:
        AudioError: the file is missing, empty, not audio, cut short, damaged, without samples, holds NaN or
            infinite samples, or the segment lies outside of it.
    """
    _check_rate(sample_rate)
    with open_recording(path) as recording:
        wave = np.concatenate(list(_native_blocks(recording, start, duration)))
        if recording.sample_rate != sample_rate:
            wave = soxr.resample(wave, recording.sample_rate, sample_rate, quality=_QUALITY)
        if len(wave) == 0:
            raise AudioError(f"{recording.name}: is shorter than one sample at {sample_rate} Hz: leave it out")
    return np.ascontiguousarray(wave, dtype=np.float32)


def stream_audio(
    path: AudioSource, sample_rate: int, block_seconds: float, *, start: float = 0.0, duration: float | None = None
) -> Iterator[Waveform]:
    """The samples of :func:`load_audio`, in blocks of ``block_seconds`` (the last may be shorter).

    Memory is bounded by the block, not by the recording.

    Raises:
        AudioError: as :func:`load_audio`; what is wrong further on in the file shows when it is reached.
    """
    _check_rate(sample_rate)
    size = round(block_seconds * sample_rate)
    if size < 1:
        raise ValueError(f"block_seconds is {block_seconds}: give at least one sample, {1 / sample_rate:.2g} s")
    with open_recording(path) as recording:
        pending: list[NDArray[np.float32]] = []
        held = 0
        empty = True
        for chunk in _resampled_blocks(recording, sample_rate, start, duration, min(block_seconds, _BLOCK_SECONDS)):
            pending.append(chunk)
            held += len(chunk)
            if held < size:
                continue
            joined = np.concatenate(pending)
            whole = held - held % size
            for at in range(0, whole, size):
                yield joined[at : at + size].copy()
            pending, held, empty = [joined[whole:]], held - whole, False
        if held:
            yield np.concatenate(pending)
        elif empty:
            raise AudioError(f"{recording.name}: is shorter than one sample at {sample_rate} Hz: leave it out")


def check_wave(wave: NDArray[Any], sample_rate: int, name: str = "the array") -> Waveform:
    """Turn samples given as an array into mono float32 in [-1, 1].

    Args:
        wave: ``[time]`` or ``[time, channels]``; int16 and int32 are scaled by their full scale, float32 and
            float64 are taken as they are.
        sample_rate: samples per second of ``wave``; checked, nothing is resampled.
        name: what errors call the array.

    Raises:
        AudioError: no samples, NaN or infinite samples, another type, or channels before time.
    """
    _check_rate(sample_rate)
    wave = np.asarray(wave)
    if wave.dtype not in (np.int16, np.int32, np.float32, np.float64):
        raise AudioError(f"{name}: samples are {wave.dtype}: give int16, int32, float32 or float64")
    if wave.ndim not in (1, 2):
        raise AudioError(f"{name}: has shape {list(wave.shape)}: give [time] or [time, channels]")
    if wave.size == 0:
        raise AudioError(f"{name}: holds no samples: leave it out")
    if wave.ndim == 2 and wave.shape[1] > min(_MAX_CHANNELS, wave.shape[0]):
        raise AudioError(f"{name}: has {wave.shape[1]} channels of {wave.shape[0]} samples: transpose it")
    scaled = wave / np.float64(-np.iinfo(wave.dtype).min) if wave.dtype.kind == "i" else wave
    if not np.isfinite(scaled).all():
        raise AudioError(f"{name}: holds NaN or infinite samples: mend what made them")
    return np.ascontiguousarray(scaled.mean(axis=1) if scaled.ndim == 2 else scaled, dtype=np.float32)


def describe_faults(wave: Waveform) -> tuple[str, ...]:
    """What is suspicious about samples that are legitimate all the same; empty when nothing is.

    'silent' (nothing above the last of 16 bits), 'clipped (x % of samples at full scale)' from 0.1 % on,
    'louder than full scale (peak x)' above twice full scale, as when integers were taken for fractions.
    """
    peak = float(np.abs(wave).max(initial=0.0))
    if peak <= 1 / 32768:
        return ("silent",)
    if peak > 2.0:
        return (f"louder than full scale (peak {peak:.4g})",)
    share = float(np.mean(np.abs(wave) >= _FULL_SCALE))
    return (f"clipped ({100 * share:.1f} % of samples at full scale)",) if share >= _CLIPPED_SHARE else ()


def _check_rate(sample_rate: int) -> None:
    if sample_rate < 1:
        raise AudioError(f"sample rate is {sample_rate}: give samples per second, such as 16000")


def _native_blocks(
    recording: Recording, start: float, duration: float | None, block_seconds: float = _BLOCK_SECONDS
) -> Iterator[NDArray[np.float32]]:
    """Mono blocks at the recording's own rate, between two times."""
    rate, name = recording.sample_rate, recording.name
    if start < 0 or (duration is not None and duration <= 0):
        raise AudioError(f"{name}: a segment cannot start at {start} s and last {duration} s: mend its times")
    first = round(start * rate)
    end = None if duration is None else first + round(duration * rate)
    if recording.frames is not None:
        _check_segment(name, start, end, recording.frames, rate)
        end = recording.frames if end is None else min(end, recording.frames)
    if first:
        recording.seek(first)
    block = max(1, round(block_seconds * rate))
    while end is None or recording.position < end:
        samples = recording.read(block if end is None else min(block, end - recording.position))
        if len(samples) == 0:
            break
        yield samples
    if recording.frames is None:
        _check_segment(name, start, end, recording.position, rate)


def _check_segment(name: str, start: float, end: int | None, frames: int, rate: int) -> None:
    """Refuse a segment that starts or ends beyond the recording; ``end`` and ``frames`` in samples."""
    if round(start * rate) >= frames or (end is not None and end > frames + _OVERSHOOT_SECONDS * rate):
        until = "its end" if end is None else f"{end / rate:.2f} s"
        raise AudioError(
            f"{name}: the segment from {start:.2f} s to {until} lies outside of its {frames / rate:.2f} s: "
            "mend the segment's times"
        )


def _resampled_blocks(
    recording: Recording, sample_rate: int, start: float, duration: float | None, block_seconds: float
) -> Iterator[NDArray[np.float32]]:
    """:func:`_native_blocks`, resampled as they come."""
    blocks = _native_blocks(recording, start, duration, block_seconds)
    if recording.sample_rate == sample_rate:
        yield from blocks
        return
    resampler = soxr.ResampleStream(recording.sample_rate, sample_rate, 1, dtype="float32", quality=_QUALITY)
    for block in blocks:
        yield resampler.resample_chunk(block)
    yield resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
