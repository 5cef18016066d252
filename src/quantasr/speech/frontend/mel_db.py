"""The mel filter bank in decibels that SpeechBrain's models hear."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import ArtifactError
from quantasr.speech.frontend.protocol import as_wave, require_rate

FILTER_SHAPES = ("triangular", "rectangular", "gaussian")
NORMALIZATIONS = ("none", "fixed", "sentence", "batch")

_TUPLES = ("centres", "bandwidths", "fixed_mean", "fixed_std")


@dataclass(frozen=True)
class MelDecibelFrontend:
    """Mel filter bank in decibels, as SpeechBrain's ``Fbank``, ``MFCC`` and ``InputNormalization`` give it.

    Frames of ``window_length`` samples (Hamming) every ``hop_length``, centred, with zeros at both ends; power spectrum
    of ``fft_length`` points; a filter around each of ``centres``, as wide to both sides as ``bandwidths`` says, in Hz.
    (SpeechBrain spaces them on a mel scale, and training may move them.) ``log`` gives ``decibels`` log10(max(power,
    ``floor``)) less its value at ``reference``, and never less than the recording's loudest value minus ``top_db``.

    ``num_ceps`` above 0 takes as many cepstra (orthonormal DCT-II, or not). ``deltas`` appends slopes over
    ``delta_length`` frames and their slopes; then ``left`` and ``right`` frames of context are put beside each frame.

    ``normalize``: each column over time to mean 0 (``sentence`` and ``batch``, which only guard small deviations
    differently), or with the training's ``fixed_mean`` and ``fixed_std``; ``scale`` False leaves the deviation.
    """

    kind: ClassVar[str] = "mel_db"

    centres: tuple[float, ...]
    bandwidths: tuple[float, ...]
    sample_rate: int = 16000
    window_length: int = 400
    hop_length: int = 160
    fft_length: int = 400
    filter_shape: str = "triangular"
    log: bool = True
    decibels: float = 10.0
    floor: float = 1e-10
    reference: float = 1.0
    top_db: float = 80.0
    num_ceps: int = 0
    orthonormal: bool = True
    deltas: bool = False
    delta_length: int = 5
    left: int = 0
    right: int = 0
    normalize: str = "none"
    scale: bool = True
    fixed_mean: tuple[float, ...] = ()
    fixed_std: tuple[float, ...] = ()
    epsilon: float = 1e-10
    padding_value: float = 0.0

    chunk_frames: ClassVar[int] = 256
    """Frames transformed at once: few enough to stay in the cache."""

    def __post_init__(self) -> None:
        require_rate(self.sample_rate)
        least = {"window_length": 1, "hop_length": 1, "fft_length": 2, "num_ceps": 0, "delta_length": 3, "left": 0}
        for name, minimum in (least | {"right": 0}).items():
            if getattr(self, name) < minimum:
                raise ArtifactError(
                    f"frontend 'mel_db': {name} is {getattr(self, name)}; it must be at least {minimum}"
                )
        if self.window_length > self.fft_length:
            raise ArtifactError(
                f"frontend 'mel_db': window_length {self.window_length} is longer than fft_length {self.fft_length}"
            )
        for name, choices in {"filter_shape": FILTER_SHAPES, "normalize": NORMALIZATIONS}.items():
            if getattr(self, name) not in choices:
                raise ArtifactError(
                    f"frontend 'mel_db': {name} {getattr(self, name)!r} is unknown: {', '.join(choices)}"
                )
        # JSON has lists, and a frozen dataclass must be hashable.
        for name in _TUPLES:
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if not self.centres or len(self.bandwidths) != len(self.centres) or min(self.bandwidths) <= 0:
            raise ArtifactError(
                f"frontend 'mel_db': {len(self.centres)} centres need as many bandwidths above 0 Hz, and at least one"
            )
        if self.num_ceps > len(self.centres):
            raise ArtifactError(f"frontend 'mel_db': {self.num_ceps} cepstra of {len(self.centres)} filters")
        for name in ("fixed_mean", "fixed_std"):
            if self.normalize == "fixed" and len(getattr(self, name)) != self.columns:
                raise ArtifactError(
                    f"frontend 'mel_db': {name} has {len(getattr(self, name))} values for {self.columns} columns"
                )

    @property
    def columns(self) -> int:
        """Columns of the features."""
        return (self.num_ceps or len(self.centres)) * (3 if self.deltas else 1) * (self.left + self.right + 1)

    def samples_of(self, frames: int) -> int:
        """The shortest wave that gives ``frames`` rows."""
        return max(1, (frames - 1) * self.hop_length)

    def __call__(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        """``[samples]`` -> ``[frames, columns]``; raises AudioError when there are none."""
        features = self._filtered(as_wave(wave))
        if self.log:
            level = np.log10(np.maximum(features, self.floor)) - np.log10(max(self.floor, self.reference))
            level *= self.decibels
            features = np.maximum(level, level.max() - self.top_db)
        if self.num_ceps:
            features = features @ self._cosines
        if self.deltas:
            slopes = self._slopes(features)
            features = np.concatenate([features, slopes, self._slopes(slopes)], axis=1)
        if self.left or self.right:
            features = self._with_context(features)
        return self._normalized(features).astype(np.float32)

    def _filtered(self, wave: NDArray[np.float32]) -> NDArray[np.float64]:
        """``[frames, filters]``, in powers."""
        padded = np.pad(wave, self.fft_length // 2)
        frames = 1 + (len(padded) - self.fft_length) // self.hop_length
        # A short window lies in the middle of the FFT; where it lies changes the phase alone.
        offset = (self.fft_length - self.window_length) // 2
        views = np.lib.stride_tricks.sliding_window_view(padded[offset:], self.window_length)[:: self.hop_length]
        mel = np.empty((frames, len(self.centres)))
        for start in range(0, frames, self.chunk_frames):
            part = slice(start, min(frames, start + self.chunk_frames))
            spectrum = np.fft.rfft(views[part] * self._window, n=self.fft_length)
            np.matmul(np.square(spectrum.real) + np.square(spectrum.imag), self.filters, out=mel[part])
        return mel

    def _slopes(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Least-squares slope of each column around each frame; the first and the last frame go on beyond the ends."""
        reach = (self.delta_length - 1) // 2
        steps = np.arange(-reach, reach + 1)
        around = np.pad(features, ((reach, reach), (0, 0)), mode="edge")
        found: NDArray[np.float64] = sum(step * around[reach + step : len(around) - reach + step] for step in steps)
        found /= np.square(steps).sum()
        return found

    def _with_context(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Each column beside itself in the neighbouring frames, zeros beyond the ends."""
        # SpeechBrain puts fewer frames of context to the left than to the right by rolling its kernel.
        around = np.pad(features, ((self.left, self.right), (0, 0)))
        views = np.lib.stride_tricks.sliding_window_view(around, self.left + self.right + 1, axis=0)
        found: NDArray[np.float64] = views.reshape(len(features), -1)
        return found

    def _normalized(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.normalize == "none":
            return features
        if self.normalize == "fixed":
            mean, std = np.array(self.fixed_mean), np.array(self.fixed_std)
        else:
            mean = features.mean(axis=0)
            variance = np.square(features - mean).mean(axis=0)
            std = np.sqrt(np.maximum(variance, self.epsilon if self.normalize == "batch" else 0.0))
        deviation = np.maximum(std, self.epsilon) if self.scale else np.ones(1)
        normal: NDArray[np.float64] = (features - mean) / deviation
        return normal

    @cached_property
    def _window(self) -> NDArray[np.float64]:
        """Periodic Hamming, ``[window_length]``."""
        return np.hamming(self.window_length + 1)[:-1]

    @cached_property
    def filters(self) -> NDArray[np.float64]:
        """``[fft_length // 2 + 1, filters]``; peak 1."""
        centres, widths = np.array(self.centres, np.float32), np.array(self.bandwidths, np.float32)
        points = np.linspace(0, self.sample_rate // 2, self.fft_length // 2 + 1, dtype=np.float32)[:, None]
        if self.filter_shape == "rectangular":
            # In float32, as in SpeechBrain: an edge may lie just on a point.
            return np.asarray((points >= centres - widths) & (points <= centres + widths), np.float64)
        away = (points - centres) / widths.astype(np.float64)
        if self.filter_shape == "triangular":
            return np.asarray(np.maximum(0.0, 1.0 - np.abs(away)))
        return np.asarray(np.exp(-0.5 * np.square(2.0 * away)))

    @cached_property
    def _cosines(self) -> NDArray[np.float64]:
        """The DCT-II, ``[filters, num_ceps]``."""
        bins = len(self.centres)
        found: NDArray[np.float64] = np.cos(np.pi / bins * np.outer(np.arange(bins) + 0.5, np.arange(self.num_ceps)))
        if self.orthonormal:
            found[:, 0] /= np.sqrt(2.0)
        found *= float(np.sqrt(2.0 / bins)) if self.orthonormal else 2.0
        return found

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        row = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"kind": self.kind, **row, **{name: list(row[name]) for name in _TUPLES}}
