"""Recordings as they might also have sounded: faster or slower, louder or quieter, in noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import soxr  # type: ignore[import-untyped,unused-ignore]

from quantasr.errors import TrainingError
from quantasr.speech.prepared import PreparedWave
from quantasr.speech.transcript import Waveform
from quantasr.training.noise import COLOURED, Noises, mix
from quantasr.training.randomness import generator
from quantasr.training.spec_augment import SpecAugment
from quantasr.training.tables import check_table

_SLOWEST, _FASTEST = 0.5, 2.0


@dataclass(frozen=True)
class AugmentOptions:
    """What is changed about the recordings of training; nothing, unless it is asked for.

    ``speeds``: one is taken for each recording and epoch, all with equal chance, and tempo and pitch change together,
    as sox's ``speed`` does (Ko et al., 2015: 0.9, 1.0 and 1.1). ``gain_db``: louder or quieter by up to so many
    decibels. ``noise``: a manifest or folder of noises, or ``coloured`` for noise whose power falls with its frequency
    (between white and brown); ``noise_probability`` of the recordings get some, at ``noise_snr_db`` (lowest, highest)
    decibels below the speech. ``spec_augment``: masks over features that are ``[frames, bins]``.

    Raises:
        TrainingError: a number is out of its range.
    """

    speeds: tuple[float, ...] = (1.0,)
    gain_db: float = 0.0
    noise: str = ""
    noise_snr_db: tuple[float, float] = (10.0, 30.0)
    noise_probability: float = 0.5
    spec_augment: SpecAugment | None = None

    def __post_init__(self) -> None:
        if not self.speeds or not all(_SLOWEST <= speed <= _FASTEST for speed in self.speeds):
            raise TrainingError(
                f"augmentation: speeds are {list(self.speeds)}: give some between {_SLOWEST} and {_FASTEST}"
            )
        if not (math.isfinite(self.gain_db) and self.gain_db >= 0):
            raise TrainingError(f"augmentation: gain_db is {self.gain_db}: give 0 or more decibels")
        if len(self.noise_snr_db) != 2 or not -50 <= self.noise_snr_db[0] <= self.noise_snr_db[1] <= 100:
            raise TrainingError(
                f"augmentation: noise_snr_db is {list(self.noise_snr_db)}: give the lowest and the highest, -50 to 100"
            )
        if not 0 <= self.noise_probability <= 1:
            raise TrainingError(f"augmentation: noise_probability is {self.noise_probability}: give 0 to 1")

    @property
    def changes_sound(self) -> bool:
        """Whether samples are changed, which recordings that come as features do not have."""
        return set(self.speeds) != {1.0} or self.gain_db > 0 or bool(self.noise)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and TOML; without ``spec_augment`` if there is none."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], where: str = "augmentation") -> AugmentOptions:
        """Build from a table as :meth:`to_dict` gives it; raises :class:`TrainingError` naming ``where``."""
        check_table(cls, table, where)
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
        if values.get("spec_augment") is not None:
            check_table(SpecAugment, values["spec_augment"], f"{where}, spec_augment")
            values["spec_augment"] = SpecAugment(**values["spec_augment"])
        return cls(**values)


class Augmenter:
    """What happens to each recording in each epoch: decided by (seed, epoch, id) alone.

    Raises:
        ManifestError, AudioError: the noises cannot be read.
    """

    def __init__(self, options: AugmentOptions, sample_rate: int, seed: int, *, trust: bool = False) -> None:
        self.options = options
        self._rate = sample_rate
        self._seed = seed
        self._noises = None if options.noise in ("", COLOURED) else Noises.read(options.noise, trust=trust)

    def speed(self, epoch: int, id: str) -> float:
        """How many times faster the recording is played."""
        if len(self.options.speeds) == 1:
            return self.options.speeds[0]
        random = generator(self._seed, epoch, "speed", id)
        return self.options.speeds[int(random.integers(len(self.options.speeds)))]

    def __call__(self, wave: Waveform, epoch: int, id: str) -> Waveform:
        """The recording as training hears it in that epoch.

        Raises:
            TrainingError: it comes with features or i-vectors, which no longer fit a changed sound.
        """
        options = self.options
        if not options.changes_sound:
            return wave
        if isinstance(wave, PreparedWave):
            raise TrainingError(
                f"{id}: comes with features or i-vectors, which would not fit a changed sound: "
                "switch speed, gain and noise off, or give sound alone"
            )
        wave = change_speed(wave, self.speed(epoch, id), self._rate)
        random = generator(self._seed, epoch, "sound", id)
        if options.noise and random.random() < options.noise_probability:
            noise = (
                coloured_noise(len(wave), float(random.uniform(0, 2)), random)
                if self._noises is None
                else self._noises.draw(len(wave), self._rate, random)
            )
            wave = mix(wave, noise, float(random.uniform(*options.noise_snr_db)))
        if options.gain_db:
            wave = wave * np.float32(10 ** (random.uniform(-options.gain_db, options.gain_db) / 20))
        return wave


def change_speed(wave: Waveform, speed: float, sample_rate: int) -> Waveform:
    """The wave played ``speed`` times as fast: 1/speed of the samples, all frequencies times speed."""
    if speed == 1.0:
        return wave
    changed: Waveform = np.asarray(soxr.resample(wave, sample_rate * speed, sample_rate, quality="HQ"), np.float32)
    return changed


def coloured_noise(samples: int, slope: float, random: np.random.Generator) -> Waveform:
    """Noise whose power falls with frequency ** ``slope``: 0 white, 1 pink, 2 brown; without its mean."""
    length = max(2, samples)
    spectrum = np.fft.rfft(random.standard_normal(length))
    spectrum[0] = 0
    spectrum[1:] *= np.arange(1, len(spectrum)) ** (-slope / 2)
    return np.fft.irfft(spectrum, length)[:samples].astype(np.float32)
