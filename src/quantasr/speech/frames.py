"""What recognisers share whose model says something of every frame: features, batches, and the model itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import AudioError, ModelLoadError
from quantasr.speech.fronted import FrontedTranscriber
from quantasr.speech.frontend import Frontend, collate
from quantasr.speech.prepared import PreparedWave
from quantasr.speech.transcript import Waveform


class AcousticModel(Protocol):
    """Features in, log-probabilities out: the float original, its simulation, or a graph on an engine."""

    @property
    def padded_batches(self) -> bool:
        """False for a model trained without an attention mask: padding would change what it hears, so only
        recordings of equal length may share a batch."""
        ...

    def __call__(
        self, features: NDArray[np.float32], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """``[batch, time(, bins)]``, ``[batch]`` -> logprobs ``[batch, frames, vocab]``, frame counts ``[batch]``."""
        ...


class FrameTranscriber(FrontedTranscriber):
    """The half of a :class:`~quantasr.speech.transcript.Transcriber` that ends with log-probabilities of frames."""

    def __init__(
        self,
        acoustic: AcousticModel,
        frontend: Frontend,
        *,
        name: str,
        frame_seconds: float,
        min_samples: int,
        batch_size: int = 1,
    ) -> None:
        super().__init__(
            frontend, name=name, frame_seconds=frame_seconds, min_samples=min_samples, batch_size=batch_size
        )
        self.acoustic = acoustic

    @abstractmethod
    def logprobs(self, waves: Sequence[Waveform]) -> list[NDArray[np.float32]]:
        """What the acoustic model says of each wave, ``[frames, vocab]``."""

    def encoder_call(self, wave: Waveform) -> Callable[[], object]:
        """A call that runs the acoustic model alone on the features of one wave, to be timed."""
        check_waves([wave])
        features = collate([self.frontend(self._filled(wave))], self.frontend.padding_value)
        return lambda: self.acoustic(*features)

    def _batches(self, order: list[int], waves: Sequence[Waveform]) -> Iterator[list[int]]:
        """``order`` cut in batches; of equal lengths only, where padding would change the result."""
        alike = [order]
        if not self.acoustic.padded_batches:
            alike = [list(group) for _, group in groupby(order, key=lambda i: max(waves[i].size, self.min_samples))]
        for group in alike:
            for start in range(0, len(group), self.batch_size):
                yield group[start : start + self.batch_size]

    def _run(self, waves: Sequence[Waveform]) -> list[NDArray[np.float32]]:
        """Log-probabilities of one batch."""
        features = [self.frontend(self._filled(wave)) for wave in waves]
        logprobs, frames = self.acoustic(*collate(features, self.frontend.padding_value))
        found = [row[:count] for row, count in zip(logprobs, frames.tolist(), strict=True)]
        if any(np.isnan(row).any() for row in found):
            raise ModelLoadError(f"model '{self.name}' gives NaN log-probabilities; its weights or scales are damaged")
        return found

    def _filled(self, wave: Waveform) -> Waveform:
        if wave.size == 0:
            raise AudioError("recording has no samples")
        if isinstance(wave, PreparedWave):
            return wave
        return np.pad(wave, (0, max(0, self.min_samples - wave.size)))


def check_waves(waves: Sequence[Waveform], *, prepared: bool = False) -> None:
    """Raise AudioError, naming the wave by its index, unless all are mono, finite, and have samples.

    ``prepared``: whether it may have features instead of sound, as :class:`PreparedWave`.
    """
    for i, wave in enumerate(waves):
        if isinstance(wave, PreparedWave) and (wave.features is not None or wave.ivectors is not None):
            if not prepared:
                raise AudioError(
                    f"wave {i}: has features or i-vectors, which only Kaldi models read: give its sound alone"
                )
            if wave.features is not None:
                continue
        if wave.ndim != 1 or wave.size == 0:
            raise AudioError(f"wave {i}: shape {list(wave.shape)}; one channel with at least one sample is needed")
        if not np.isfinite(wave).all():
            raise AudioError(f"wave {i}: holds NaN or infinite samples; the recording is damaged")
