"""The log-mel spectrogram that Whisper hears."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import ArtifactError
from quantasr.speech.frontend.log_mel import slaney_filters
from quantasr.speech.frontend.protocol import as_wave, require_rate

SILENCE = -10.0
"""log10 of the least power that is told from none."""

_RANGE = 8.0  # decades of power below the loudest value that are kept


@dataclass(frozen=True)
class WhisperMelFrontend:
    """Log-mel spectrogram, as transformers' ``WhisperFeatureExtractor`` gives it (Radford et al., 2022, section 2.2).

    Frames of ``fft_length`` samples (periodic Hann) every ``hop_length``, centred, with the wave reflected at both
    ends; power spectrum, ``num_mel_bins`` filters of Slaney's Auditory Toolbox up to half the rate, log10, no value
    more than 8 below the loudest, then (x + 4) / 4. A wave is filled up with zeros to ``chunk_seconds``.
    """

    kind: ClassVar[str] = "whisper_mel"

    sample_rate: int = 16000
    num_mel_bins: int = 80
    fft_length: int = 400
    hop_length: int = 160
    chunk_seconds: float = 30.0
    padding_value: float = 0.0

    chunk_frames: ClassVar[int] = 256
    """Frames transformed at once: few enough to stay in the cache."""

    def __post_init__(self) -> None:
        require_rate(self.sample_rate)
        for name in ("num_mel_bins", "fft_length", "hop_length"):
            if getattr(self, name) < 1:
                raise ArtifactError(f"frontend 'whisper_mel': {name} is {getattr(self, name)}; it must be at least 1")
        if self.fft_length % 2 or self.hop_length > self.fft_length:
            raise ArtifactError(
                f"frontend 'whisper_mel': fft_length {self.fft_length} must be even, and no shorter than "
                f"hop_length {self.hop_length}"
            )
        if self.chunk_samples < self.fft_length:
            raise ArtifactError(f"frontend 'whisper_mel': chunk_seconds {self.chunk_seconds:g} is shorter than a frame")

    @property
    def chunk_samples(self) -> int:
        """Samples of a whole window."""
        return round(self.chunk_seconds * self.sample_rate)

    @property
    def window_frames(self) -> int:
        """Rows of a whole window."""
        return self.chunk_samples // self.hop_length

    def __call__(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        """``[samples]`` -> ``[frames, num_mel_bins]`` of the wave with zeros behind it, at least a whole window."""
        levels = self.levels(wave)
        return self.normalized(levels, float(levels.max()))

    def levels(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        """As a call, but log10 of the power alone: what :meth:`normalized` starts from."""
        wave = as_wave(wave)
        samples = max(wave.size, self.chunk_samples)
        half, frames = self.fft_length // 2, samples // self.hop_length
        padded = np.zeros(samples + 2 * half, np.float32)
        padded[half : half + wave.size] = wave
        padded[:half] = padded[2 * half : half : -1]
        padded[half + samples :] = padded[half + samples - 2 : samples - 2 : -1]
        # Frames with nothing but the zeros behind the wave need no transform.
        reached = frames if wave.size == samples else min(frames, (wave.size + half) // self.hop_length + 1)
        levels = np.full((frames, self.num_mel_bins), SILENCE, np.float32)
        self.transform(padded, levels[:reached])
        return levels

    def transform(self, padded: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """log10 power of the frames that begin at every ``hop_length`` samples of ``padded``, into ``out``."""
        views = np.lib.stride_tricks.sliding_window_view(padded, self.fft_length)[:: self.hop_length]
        for start in range(0, len(out), self.chunk_frames):
            part = slice(start, min(len(out), start + self.chunk_frames))
            spectrum = np.fft.rfft(views[part] * self.window)
            power = np.square(spectrum.real) + np.square(spectrum.imag)
            np.matmul(power.astype(np.float32), self.mel_filters, out=out[part])
        np.maximum(out, np.float32(10.0**SILENCE), out=out)
        np.log10(out, out=out)

    def normalized(self, levels: NDArray[np.float32], loudest: float) -> NDArray[np.float32]:
        """What the model hears of ``levels`` in a recording whose ``loudest`` is known."""
        features: NDArray[np.float32] = np.maximum(levels, np.float32(loudest - _RANGE))
        features += np.float32(4.0)
        features *= np.float32(0.25)
        return features

    @cached_property
    def window(self) -> NDArray[np.float64]:
        """Periodic Hann, ``[fft_length]``."""
        return np.hanning(self.fft_length + 1)[:-1]

    @cached_property
    def mel_filters(self) -> NDArray[np.float32]:
        """``[fft_length // 2 + 1, num_mel_bins]``."""
        return slaney_filters(self.sample_rate, self.fft_length, self.num_mel_bins, 0.0, self.sample_rate / 2, True)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {"kind": self.kind, **{field.name: getattr(self, field.name) for field in fields(self)}}
