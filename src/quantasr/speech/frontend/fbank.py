"""Kaldi's filter bank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import ArtifactError, AudioError
from quantasr.speech.frontend.protocol import as_wave, require_rate


@dataclass(frozen=True)
class FbankFrontend:
    """Kaldi's log-mel filter bank, normalised per bin, ``stride`` frames stacked in one: Wav2Vec2-BERT.

    25 ms Povey windows every 10 ms on samples in the range of 16-bit integers, pre-emphasis 0.97, no dither, power
    spectrum of 512 points, as transformers' ``SeamlessM4TFeatureExtractor``, which stands for torchaudio's
    ``compliance.kaldi.fbank``. It works in float64 like the original: kaldi-native-fbank's float32 FFT differs by up
    to 1e-2 in near-silent bins, measured on 120 recordings of speech. A last frame that no partner completes is left
    out; transformers pads and then masks it.
    """

    kind: ClassVar[str] = "fbank"

    sample_rate: int = 16000
    num_mel_bins: int = 80
    stride: int = 2
    padding_value: float = 0.0

    frame_length: ClassVar[int] = 400
    frame_shift: ClassVar[int] = 160
    fft_length: ClassVar[int] = 512
    low_frequency: ClassVar[float] = 20.0
    preemphasis: ClassVar[float] = 0.97
    mel_floor: ClassVar[float] = 1.192092955078125e-07
    chunk_frames: ClassVar[int] = 1024
    """Frames transformed at once, so that memory does not grow with the recording."""

    def __post_init__(self) -> None:
        require_rate(self.sample_rate)
        for name in ("num_mel_bins", "stride"):
            if getattr(self, name) < 1:
                raise ArtifactError(f"frontend 'fbank': {name} is {getattr(self, name)}; it must be at least 1")

    @property
    def min_samples(self) -> int:
        """The shortest wave that gives one row: two frames at least, or there is no variance per bin."""
        return self.frame_length + self.frame_shift * (max(self.stride, 2) - 1)

    def __call__(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        """``[samples]`` -> ``[frames // stride, num_mel_bins * stride]``; raises AudioError when too short."""
        wave = as_wave(wave)
        if wave.size < self.min_samples:
            raise AudioError(
                f"wave of {wave.size} samples: the filter bank needs {self.min_samples}; pad it with zeros to that"
            )
        mel = self.log_mel(wave)
        normal: NDArray[np.float32] = (mel - mel.mean(0)) / np.sqrt(mel.var(0, ddof=1) + 1e-7)
        rows = len(mel) // self.stride
        return normal[: rows * self.stride].reshape(rows, -1).astype(np.float32, copy=False)

    def log_mel(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        """``[samples]`` -> ``[frames, num_mel_bins]``, before normalisation and stacking."""
        frames = np.lib.stride_tricks.sliding_window_view(wave, self.frame_length)[:: self.frame_shift]
        mel = np.empty((len(frames), self.num_mel_bins), np.float32)
        for start in range(0, len(frames), self.chunk_frames):
            part = slice(start, start + self.chunk_frames)
            mel[part] = self._log_mel(frames[part].astype(np.float64))
        return mel

    def _log_mel(self, frames: NDArray[np.float64]) -> NDArray[np.float64]:
        frames = frames * 2.0**15
        frames -= frames.mean(axis=1, keepdims=True)
        frames[:, 1:] -= self.preemphasis * frames[:, :-1]  # the first sample is nothing after the window
        # The original stores the spectrum in single precision; so must we, to agree in near-silent bins.
        spectrum = np.fft.rfft(frames * self._window, n=self.fft_length).astype(np.complex64)
        power = np.square(np.abs(spectrum, dtype=np.float64))
        mel: NDArray[np.float64] = np.log(np.maximum(power @ self._mel_filters, self.mel_floor))
        return mel

    @cached_property
    def _window(self) -> NDArray[np.float64]:
        window: NDArray[np.float64] = np.hanning(self.frame_length) ** 0.85
        return window

    @cached_property
    def _mel_filters(self) -> NDArray[np.float64]:
        return mel_filters(self.sample_rate, self.fft_length, self.num_mel_bins, self.low_frequency)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {"kind": self.kind, **asdict(self)}


@lru_cache(maxsize=8)
def mel_filters(
    sample_rate: float,
    fft_length: int,
    bins: int,
    low_frequency: float,
    high_frequency: float | None = None,
    warp: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
) -> NDArray[np.float64]:
    """Kaldi's triangular filters, ``[fft_length // 2 + 1, bins]``: equally wide on the mel scale, peak 1.

    ``high_frequency`` is half the sample rate if None; ``warp`` moves the filters' corners, in Hz.
    """
    edges = np.linspace(_mel(low_frequency), _mel(high_frequency or sample_rate / 2), bins + 2)
    if warp is not None:
        edges = _mel(warp(700.0 * np.expm1(edges / 1127.0)))
    points = _mel(np.arange(fft_length // 2 + 1) * (sample_rate / fft_length))[:, None]
    rising = (points - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - points) / (edges[2:] - edges[1:-1])
    filters: NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    filters.setflags(write=False)  # shared by the cache
    return filters


def _mel(hertz: Any) -> Any:
    return 1127.0 * np.log(1.0 + np.asarray(hertz) / 700.0)
