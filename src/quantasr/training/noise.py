"""Noises from recordings, and mixing them with speech."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from quantasr.errors import ManifestError
from quantasr.speech.manifest import Utterance
from quantasr.speech.transcript import Waveform
from quantasr.training.reading import seconds_of, stream_utterances

COLOURED = "coloured"
"""In place of a manifest of noises: noise that is made."""


class Noises:
    """Recordings of noise; only the part that is needed is read."""

    def __init__(self, utterances: Sequence[Utterance]) -> None:
        self._utterances = utterances
        self._seconds = lru_cache(len(utterances))(lambda index: seconds_of(utterances[index]))

    @classmethod
    def read(cls, where: str, *, trust: bool = False) -> Noises:
        """A manifest of any form, or a folder of recordings; raises ManifestError."""
        utterances = list(stream_utterances(where, trust=trust))
        for utterance in utterances:
            if utterance.features is not None:
                where = utterance.source or where
                raise ManifestError(f"{where}: holds features and no sound: give recordings of noise")
        return cls(utterances)

    def draw(self, samples: int, sample_rate: int, random: np.random.Generator) -> Waveform:
        """So many samples from a random place in a random noise; a shorter noise is repeated."""
        chosen = int(random.integers(len(self._utterances)))
        place = float(random.random())
        utterance, wanted = self._utterances[chosen], samples / sample_rate
        left = self._seconds(chosen) - wanted if utterance.is_file else 0.0
        if left > 0:
            utterance = replace(utterance, start=utterance.start + place * left, duration=wanted)
            place = 0.0
        noise = utterance.load(sample_rate)
        # 'wrap' from a random sample on: as often as it takes.
        return noise.take(np.arange(samples) + int(place * len(noise)), mode="wrap")


def mix(speech: Waveform, noise: Waveform, snr_db: float) -> Waveform:
    """Speech with noise of as many samples, so loud that their mean powers differ by ``snr_db`` decibels.

    Silence stays as it is, and silent noise adds nothing.
    """
    powers = [float(np.mean(np.square(wave, dtype=np.float64))) if wave.size else 0.0 for wave in (speech, noise)]
    if min(powers) <= 0:
        return speech
    scale = np.sqrt(powers[0] / powers[1] / 10 ** (snr_db / 10))
    return np.asarray(speech + np.float32(scale) * noise, np.float32)
