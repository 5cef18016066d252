"""The log-mel spectrogram that NeMo's models hear."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import ArtifactError, AudioError
from quantasr.speech.frontend.protocol import as_wave, require_rate

WINDOWS = ("hann", "hamming", "blackman", "bartlett", "none")
NORMALIZATIONS = ("none", "per_feature", "all_features", "fixed")
LOG_GUARDS = ("add", "clamp")
MEL_NORMS = ("slaney", "none")

_STD_GUARD = 1e-5  # added to every standard deviation


@dataclass(frozen=True)
class LogMelFrontend:
    """Log-mel spectrogram, as NeMo's ``AudioToMelSpectrogramPreprocessor`` gives it in evaluation mode (no dither).

    Frames of ``window_length`` samples every ``hop_length``, centred with zeros at both ends; ``exact_pad`` puts fewer
    zeros there. ``fft_length`` points, spectrum to the power ``mag_power``, ``num_mel_bins`` filters of Slaney's
    Auditory Toolbox between two frequencies in Hz (up to half the rate if None), as librosa makes them.
    ``preemphasis`` 0 is none. The log of a power gets ``log_guard_value``, added or as a floor; without ``log`` there
    is none.

    ``normalize``: each bin over time (``per_feature``) or all values together (``all_features``) to mean 0 and standard
    deviation 1, or with ``fixed_mean`` and ``fixed_std``, one value a bin. ``frame_splicing`` repeats the bins as
    often, which is all that NeMo's splicing does.

    NeMo pads its features to a multiple of ``pad_to`` frames and marks how many are valid; these are the valid ones.
    """

    kind: ClassVar[str] = "log_mel"

    sample_rate: int = 16000
    window_length: int = 320
    hop_length: int = 160
    window: str = "hann"
    fft_length: int = 512
    num_mel_bins: int = 64
    low_frequency: float = 0.0
    high_frequency: float | None = None
    mel_norm: str = "slaney"
    preemphasis: float = 0.97
    mag_power: float = 2.0
    log: bool = True
    log_guard: str = "add"
    log_guard_value: float = 2.0**-24
    normalize: str = "per_feature"
    fixed_mean: tuple[float, ...] = ()
    fixed_std: tuple[float, ...] = ()
    frame_splicing: int = 1
    exact_pad: bool = False
    padding_value: float = 0.0

    chunk_frames: ClassVar[int] = 256
    """Frames transformed at once: few enough to stay in the cache."""

    def __post_init__(self) -> None:
        require_rate(self.sample_rate)
        for name in ("window_length", "hop_length", "fft_length", "num_mel_bins", "frame_splicing"):
            if getattr(self, name) < 1:
                raise ArtifactError(f"frontend 'log_mel': {name} is {getattr(self, name)}; it must be at least 1")
        if self.window_length > self.fft_length:
            raise ArtifactError(
                f"frontend 'log_mel': window_length {self.window_length} is longer than fft_length {self.fft_length}"
            )
        if not 0 <= self.low_frequency < self._highest <= self.sample_rate / 2:
            raise ArtifactError(
                f"frontend 'log_mel': {self.low_frequency:g} to {self._highest:g} Hz is no range within "
                f"0 to {self.sample_rate / 2:g} Hz"
            )
        known = {"window": WINDOWS, "normalize": NORMALIZATIONS, "log_guard": LOG_GUARDS, "mel_norm": MEL_NORMS}
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise ArtifactError(
                    f"frontend 'log_mel': {name} {getattr(self, name)!r} is unknown: {', '.join(choices)}"
                )
        # JSON has lists, and a frozen dataclass must be hashable.
        for name in ("fixed_mean", "fixed_std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
            if self.normalize == "fixed" and len(getattr(self, name)) != self.bins:
                raise ArtifactError(
                    f"frontend 'log_mel': {name} has {len(getattr(self, name))} values for {self.bins} bins"
                )

    @property
    def bins(self) -> int:
        """Columns of the features."""
        return self.num_mel_bins * self.frame_splicing

    @property
    def min_samples(self) -> int:
        """The shortest wave that gives one row."""
        return self.samples_of(1)

    def frames_of(self, samples: int) -> int:
        """How many rows ``samples`` give."""
        return max(0, (samples + 2 * self._padding - self.fft_length) // self.hop_length)

    def samples_of(self, frames: int) -> int:
        """The shortest wave that gives ``frames`` rows."""
        return max(1, frames * self.hop_length + self.fft_length - 2 * self._padding)

    def __call__(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        """``[samples]`` -> ``[frames, num_mel_bins * frame_splicing]``; raises AudioError when too short."""
        wave = as_wave(wave)
        frames = self.frames_of(wave.size)
        if frames < 1:
            raise AudioError(
                f"wave of {wave.size} samples: the mel spectrogram needs {self.min_samples}; pad it with zeros to that"
            )
        mel = self._spectrogram(self._padded(wave), frames)
        if self.log:
            guard = np.float32(self.log_guard_value)
            np.log(mel + guard if self.log_guard == "add" else np.maximum(mel, guard), out=mel)
        return self._normalized(np.tile(mel, self.frame_splicing) if self.frame_splicing > 1 else mel)

    def _padded(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pre-emphasised, with zeros at both ends."""
        pad = self._padding
        padded = np.zeros(wave.size + 2 * pad, np.float32)
        padded[pad : pad + wave.size] = wave
        if not self.preemphasis:
            return padded
        if self.exact_pad:
            # NeMo pads before the pre-emphasis then, and takes what is behind the wave's length *in the padded wave*
            # for padding: the end of the recording is lost. Models have learnt it so.
            padded[1:] -= np.float32(self.preemphasis) * padded[:-1]
            padded[wave.size :] = 0
        else:
            padded[pad + 1 : pad + wave.size] -= np.float32(self.preemphasis) * wave[:-1]
        return padded

    def _spectrogram(self, padded: NDArray[np.float32], frames: int) -> NDArray[np.float32]:
        """``[frames, num_mel_bins]``."""
        # A short window lies in the middle of the FFT; where it lies changes the phase alone.
        offset = (self.fft_length - self.window_length) // 2
        views = np.lib.stride_tricks.sliding_window_view(padded[offset:], self.window_length)[:: self.hop_length]
        mel = np.empty((frames, self.num_mel_bins), np.float32)
        for start in range(0, frames, self.chunk_frames):
            part = slice(start, min(frames, start + self.chunk_frames))
            spectrum = np.fft.rfft(views[part] * self.window_values, n=self.fft_length)
            power = np.square(spectrum.real) + np.square(spectrum.imag)
            if self.mag_power != 2.0:
                power **= self.mag_power / 2
            np.matmul(power.astype(np.float32), self.mel_filters, out=mel[part])
        return mel

    def _normalized(self, mel: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.normalize == "none":
            return mel
        if self.normalize == "fixed":
            mean, std = (np.asarray(values, np.float32) for values in (self.fixed_mean, self.fixed_std))
            normal: NDArray[np.float32] = (mel - mean) / std
            return normal
        axis = 0 if self.normalize == "per_feature" else None
        mel -= mel.mean(axis, dtype=np.float64).astype(np.float32)
        degrees = (len(mel) if axis == 0 else mel.size) - 1
        # A single frame has no variance; NeMo takes 0 for it.
        variance = np.square(mel).sum(axis, dtype=np.float64) / degrees if degrees else np.zeros(mel.shape[1])
        mel /= (np.sqrt(variance) + _STD_GUARD).astype(np.float32)
        return mel

    @property
    def _highest(self) -> float:
        return self.sample_rate / 2 if self.high_frequency is None else self.high_frequency

    @property
    def _padding(self) -> int:
        """Zeros at each end."""
        return (self.fft_length - self.hop_length) // 2 if self.exact_pad else self.fft_length // 2

    @cached_property
    def window_values(self) -> NDArray[np.float32]:
        """``[window_length]``."""
        makers = {"hann": np.hanning, "hamming": np.hamming, "blackman": np.blackman, "bartlett": np.bartlett}
        shape = makers[self.window](self.window_length) if self.window in makers else np.ones(self.window_length)
        return np.asarray(shape, np.float32)

    @cached_property
    def mel_filters(self) -> NDArray[np.float32]:
        """``[fft_length // 2 + 1, num_mel_bins]``."""
        return slaney_filters(
            self.sample_rate,
            self.fft_length,
            self.num_mel_bins,
            self.low_frequency,
            self._highest,
            self.mel_norm == "slaney",
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        row = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"kind": self.kind, **row, "fixed_mean": list(self.fixed_mean), "fixed_std": list(self.fixed_std)}


@lru_cache(maxsize=8)
def slaney_filters(
    sample_rate: int, fft_length: int, bins: int, low_frequency: float, high_frequency: float, equal_area: bool
) -> NDArray[np.float32]:
    """Triangles of the Auditory Toolbox (Slaney, 1998), ``[fft_length // 2 + 1, bins]``, each of area or of peak 1."""
    lowest, highest = _mel(np.array([low_frequency, high_frequency])).tolist()
    edges = _hertz(np.linspace(lowest, highest, bins + 2))
    points = np.linspace(0, sample_rate / 2, fft_length // 2 + 1)[:, None]
    rising = (points - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - points) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0.0, np.minimum(rising, falling))
    if equal_area:
        filters *= 2.0 / (edges[2:] - edges[:-2])
    found = filters.astype(np.float32)
    found.setflags(write=False)  # shared by the cache
    return found


# Slaney's scale: linear up to 1 kHz at 200/3 Hz a mel, then 27 mels for a factor of 6.4.
_LINEAR = 200 / 3
_KNEE = 1000.0
_LOG_STEP = np.log(6.4) / 27


def _mel(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    logarithmic = _KNEE / _LINEAR + np.log(np.maximum(hertz, _KNEE) / _KNEE) / _LOG_STEP
    return np.where(hertz < _KNEE, hertz / _LINEAR, logarithmic)


def _hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel < _KNEE / _LINEAR, mel * _LINEAR, _KNEE * np.exp((mel - _KNEE / _LINEAR) * _LOG_STEP))
