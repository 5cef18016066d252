"""Kaldi's MFCC and filter-bank features."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import ArtifactError, AudioError, ModelLoadError
from quantasr.kaldi.options import fill, read_options
from quantasr.speech.frontend.fbank import mel_filters
from quantasr.speech.frontend.protocol import as_wave

WINDOWS = ("povey", "hamming", "hanning", "sine", "blackman", "rectangular")
MFCC, FBANK, GIVEN = "mfcc", "fbank", "given"

# Kaldi's names for fields that are called otherwise here, what only one kind has, and what has no effect on a wave that
# is one channel at the model's own rate already.
_RENAMED = {"type": "", "sample_rate": "sample-frequency", "preemphasis": "preemphasis-coefficient"}
_ONLY = {MFCC: ("num-ceps", "cepstral-lifter"), FBANK: ("use-log-fbank", "use-power")}
_IGNORED = (
    *("allow-downsample", "allow-upsample", "max-feature-vectors", "debug-mel"),
    *("channel", "min-duration", "output-format", "print-args", "verbose"),
)

_EPSILON = float(np.finfo(np.float32).eps)  # Kaldi's floor of every energy before its logarithm


@dataclass(frozen=True)
class KaldiFeatures:
    """MFCC or log-mel filter bank as Kaldi's ``compute-mfcc-feats`` and ``compute-fbank-feats`` give them.

    The fields are the options of ``mfcc.conf`` and ``fbank.conf`` with Kaldi's defaults for MFCC
    (:meth:`from_conf` knows those of the filter bank, too), ``frame_length`` and ``frame_shift`` in milliseconds.
    ``high_freq`` of 0 or less counts from half the sample rate.

    ``dither`` is noise that Kaldi adds to the samples, 1 (of 32768) unless the file says otherwise. Models that were
    trained with it have never met digital silence, so it is added here too, but from a generator with a fixed seed: one
    wave gives one result. 0 switches it off.

    Of type ``given``, of a model without such a file, ``num_ceps`` features a frame come from elsewhere.

    It computes in float64, so it agrees with Kaldi's float32 to within 1e-3, and less in bins without any energy.
    """

    type: str = MFCC
    sample_rate: float = 16000.0
    frame_length: float = 25.0
    frame_shift: float = 10.0
    dither: float = 1.0
    preemphasis: float = 0.97
    remove_dc_offset: bool = True
    window_type: str = "povey"
    blackman_coeff: float = 0.42
    round_to_power_of_two: bool = True
    snip_edges: bool = True
    num_mel_bins: int = 23
    low_freq: float = 20.0
    high_freq: float = 0.0
    vtln_low: float = 100.0
    vtln_high: float = -500.0
    vtln_warp: float = 1.0
    use_energy: bool = True
    raw_energy: bool = True
    energy_floor: float = 0.0
    htk_compat: bool = False
    num_ceps: int = 13
    cepstral_lifter: float = 22.0
    use_log_fbank: bool = True
    use_power: bool = True

    chunk_frames: ClassVar[int] = 128
    """Frames transformed at once: few enough to stay in the cache."""
    seed: ClassVar[int] = 777

    def __post_init__(self) -> None:
        self._require(self.type in (MFCC, FBANK, GIVEN), f"type {self.type!r} is unknown: {MFCC}, {FBANK}, {GIVEN}")
        self._require(self.sample_rate >= 1, f"sample-frequency is {self.sample_rate:g}; it must be positive")
        self._require(self.window_type in WINDOWS, f"window-type {self.window_type!r} is unknown: {', '.join(WINDOWS)}")
        self._require(self.window_size > 1 and self.shift > 0, "frame-length and frame-shift must be positive")
        self._require(self.window_size <= 1 << 20, f"frame-length of {self.window_size} samples is too long")
        self._require(
            self.fft_length % 2 == 0, f"an FFT of {self.fft_length} points is odd; round it to a power of two"
        )
        self._require(0 <= self.preemphasis <= 1, f"preemphasis-coefficient is {self.preemphasis:g}, not in 0 to 1")
        self._require(3 <= self.num_mel_bins <= self.fft_length, f"num-mel-bins is {self.num_mel_bins}; at least 3")
        self._require(self.dither >= 0, f"dither is {self.dither:g}; it cannot be negative")
        if self.type == MFCC:
            fits = 1 <= self.num_ceps <= self.num_mel_bins
            self._require(fits, f"num-ceps is {self.num_ceps}; it must be 1 to num-mel-bins, {self.num_mel_bins}")
        nyquist = self.sample_rate / 2
        fits = 0 <= self.low_freq < self._highest <= nyquist
        self._require(fits, f"{self.low_freq:g} to {self._highest:g} Hz is no range within 0 to {nyquist:g} Hz")
        if self.vtln_warp != 1.0:
            low, high = self._vtln
            fits = self.vtln_warp > 0 and self.low_freq < low < high < self._highest
            self._require(fits, f"vtln-low and vtln-high, {low:g} to {high:g} Hz, are not within the mel filters'")
        self._require(bool(self._filters.any(axis=0).all()), f"num-mel-bins {self.num_mel_bins} leaves filters empty")

    def _require(self, fits: bool, message: str) -> None:
        if not fits:
            raise ArtifactError(f"Kaldi features: {message}")

    @classmethod
    def from_conf(cls, path: str | Path, type: str = MFCC) -> KaldiFeatures:
        """What ``mfcc.conf`` or ``fbank.conf`` says; raises ModelLoadError with file and line on anything unknown."""
        defaults = cls(type=type, use_energy=type == MFCC)
        names = {field.name.replace("_", "-"): field.name for field in fields(cls) if field.name not in _RENAMED}
        names |= {option: name for name, option in _RENAMED.items() if option}
        for name in _ONLY[FBANK if type == MFCC else MFCC]:
            del names[name]
        try:
            found: KaldiFeatures = fill(defaults, read_options(path), names, _IGNORED)
        except ArtifactError as error:
            raise ModelLoadError(f"{path}: {error}") from error
        return found

    @property
    def dim(self) -> int:
        """Columns of the features."""
        return self.num_mel_bins + self.use_energy if self.type == FBANK else self.num_ceps

    @property
    def window_size(self) -> int:
        """Samples of a frame."""
        return int(self.sample_rate * 0.001 * self.frame_length)

    @property
    def shift(self) -> int:
        """Samples from one frame to the next."""
        return int(self.sample_rate * 0.001 * self.frame_shift)

    @property
    def fft_length(self) -> int:
        """Points of the Fourier transform."""
        return 1 << (self.window_size - 1).bit_length() if self.round_to_power_of_two else self.window_size

    @property
    def min_samples(self) -> int:
        """The shortest wave that gives one frame."""
        return self.window_size if self.snip_edges else self.shift - self.shift // 2

    def frames_of(self, samples: int, *, finished: bool = True) -> int:
        """How many frames ``samples`` give; fewer before the end is known (``finished``) without snip-edges."""
        if self.snip_edges:
            return 0 if samples < self.window_size else 1 + (samples - self.window_size) // self.shift
        frames = (samples + self.shift // 2) // self.shift
        while not finished and frames and (frames - 1) * self.shift + self._before + self.window_size > samples:
            frames -= 1
        return frames

    @property
    def _before(self) -> int:
        """Where the first frame begins: not after 0, and 0 with snip-edges."""
        return 0 if self.snip_edges else self.shift // 2 - self.window_size // 2

    def __call__(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        """``[samples]`` in -1 to 1 -> ``[frames, dim]``; raises AudioError when too short for one frame."""
        if self.type == GIVEN:
            raise AudioError(
                "the model has no mfcc.conf or fbank.conf, so it reads no sound: copy that of the training into its "
                "folder and load it again, or give it features (feats.scp)"
            )
        wave = as_wave(wave)
        frames = self.frames_of(wave.size)
        if frames < 1:
            raise AudioError(
                f"wave of {wave.size} samples: a frame needs {self.min_samples}; pad it with zeros to that"
            )
        if not self.snip_edges:
            ends = (frames - 1) * self.shift + self._before + self.window_size
            wave = np.pad(wave, (max(0, -self._before), max(0, ends - wave.size)), mode="symmetric")
            wave = wave[max(0, self._before) :]
        views = np.lib.stride_tricks.sliding_window_view(wave, self.window_size)[:: self.shift]
        noise = np.random.Generator(np.random.PCG64(self.seed)) if self.dither else None
        features = np.empty((frames, self.dim), np.float32)
        for start in range(0, frames, self.chunk_frames):
            part = slice(start, min(frames, start + self.chunk_frames))
            windows = views[part] * np.float64(32768.0)  # Kaldi's samples are 16-bit integers
            if noise is not None:
                windows += self.dither * noise.standard_normal(windows.shape, np.float32)
            features[part] = self._features(windows)
        return features

    def _features(self, windows: NDArray[np.float64]) -> NDArray[np.float64]:
        """``[frames, window_size]`` -> ``[frames, dim]``; overwrites its input."""
        if self.remove_dc_offset:
            windows -= windows.mean(axis=1, keepdims=True)
        energy = _log_energy(windows) if self.use_energy and self.raw_energy else None
        if self.preemphasis:
            first = windows[:, 0] * (1.0 - self.preemphasis)
            windows[:, 1:] -= self.preemphasis * windows[:, :-1]  # the right side is whole before any is subtracted
            windows[:, 0] = first
        windows *= self._window
        if self.use_energy and not self.raw_energy:
            energy = _log_energy(windows)
        spectrum = np.fft.rfft(windows, n=self.fft_length)
        power = np.square(spectrum.real)
        power += np.square(spectrum.imag)
        if not self.use_power and self.type == FBANK:
            np.sqrt(power, out=power)
        mel = power @ self._filters
        if self.type == MFCC or self.use_log_fbank:
            np.log(np.maximum(mel, _EPSILON), out=mel)
        if energy is not None and self.energy_floor > 0:
            np.maximum(energy, np.log(self.energy_floor), out=energy)
        return self._cepstra(mel, energy) if self.type == MFCC else self._banks(mel, energy)

    def _cepstra(self, mel: NDArray[np.float64], energy: NDArray[np.float64] | None) -> NDArray[np.float64]:
        found: NDArray[np.float64] = mel @ self._cosines
        if energy is not None:
            found[:, 0] = energy
        if self.htk_compat:
            found = np.roll(found, -1, axis=1)
            if energy is None:
                found[:, -1] *= np.sqrt(2.0)
        return found

    def _banks(self, mel: NDArray[np.float64], energy: NDArray[np.float64] | None) -> NDArray[np.float64]:
        if energy is None:
            return mel
        parts = [mel, energy[:, None]] if self.htk_compat else [energy[:, None], mel]
        return np.concatenate(parts, axis=1)

    @property
    def _highest(self) -> float:
        return self.high_freq if self.high_freq > 0 else self.sample_rate / 2 + self.high_freq

    @property
    def _vtln(self) -> tuple[float, float]:
        return self.vtln_low, self.vtln_high + (self.sample_rate / 2 if self.vtln_high < 0 else 0.0)

    @cached_property
    def _filters(self) -> NDArray[np.float64]:
        warp = None if self.vtln_warp == 1.0 else self._warp
        return mel_filters(self.sample_rate, self.fft_length, self.num_mel_bins, self.low_freq, self._highest, warp)

    def _warp(self, hertz: NDArray[np.float64]) -> NDArray[np.float64]:
        """Vocal tract length normalisation: three straight pieces that meet at two frequencies, the ends fixed."""
        low, high = self._vtln
        corners = [low * max(1.0, self.vtln_warp), high * min(1.0, self.vtln_warp)]
        from_, to = [self.low_freq, *corners, self._highest], [corner / self.vtln_warp for corner in corners]
        warped: NDArray[np.float64] = np.interp(hertz, from_, [self.low_freq, *to, self._highest])
        return warped

    @cached_property
    def _window(self) -> NDArray[np.float64]:
        turn = np.arange(self.window_size) * (2 * np.pi / (self.window_size - 1))
        hann, window = 0.5 - 0.5 * np.cos(turn), np.ones(self.window_size)
        if self.window_type == "povey":
            window = hann**0.85
        elif self.window_type == "hanning":
            window = hann
        elif self.window_type == "hamming":
            window = 0.54 - 0.46 * np.cos(turn)
        elif self.window_type == "sine":
            window = np.sin(0.5 * turn)
        elif self.window_type == "blackman":
            a = self.blackman_coeff
            window = a - 0.5 * np.cos(turn) + (0.5 - a) * np.cos(2 * turn)
        return window

    @cached_property
    def _cosines(self) -> NDArray[np.float64]:
        """The DCT-II, orthonormal, with the lifter in it, ``[num_mel_bins, num_ceps]``."""
        bins, order = self.num_mel_bins, np.arange(self.num_ceps)
        found: NDArray[np.float64] = np.cos(np.pi / bins * np.outer(np.arange(bins) + 0.5, order)) * np.sqrt(2 / bins)
        found[:, 0] = np.sqrt(1 / bins)
        if self.cepstral_lifter:
            found *= 1.0 + 0.5 * self.cepstral_lifter * np.sin(np.pi * order / self.cepstral_lifter)
        return found

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)


def _log_energy(windows: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.log(np.maximum(np.einsum("ij,ij->i", windows, windows), _EPSILON))
    return found
