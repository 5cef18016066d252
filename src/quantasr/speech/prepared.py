"""A recording whose features or i-vectors were computed before, elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import AudioError, KaldiFileError
from quantasr.kaldi.archive import Archive
from quantasr.speech.transcript import Waveform


class PreparedWave(np.ndarray[Any, np.dtype[np.float32]]):
    """The samples of a recording, ``[time]``, with ``features`` or ``ivectors`` that Kaldi's frontend need not compute.

    Where only features are known, every sample is NaN: whatever needs the sound refuses it. ``features``:
    ``[frames, dim]`` before CMVN; ``ivectors``: ``[rows, dim]``, one every ``ivector_period`` frames, or ``[dim]``.
    """

    features: NDArray[np.float32] | None
    ivectors: NDArray[np.float32] | None
    ivector_period: int

    @classmethod
    def of(
        cls,
        samples: Waveform | int,
        features: NDArray[np.float32] | None = None,
        ivectors: NDArray[np.float32] | None = None,
        ivector_period: int = 10,
    ) -> PreparedWave:
        """From samples, or their number where they are not known."""
        if isinstance(samples, int):
            samples = np.full(samples, np.nan, np.float32)
        wave = samples.view(cls)
        wave.features, wave.ivectors, wave.ivector_period = features, ivectors, ivector_period
        return wave

    def __array_finalize__(self, source: object) -> None:
        self.features, self.ivectors, self.ivector_period = None, None, 10

    def __getitem__(self, index: Any) -> Any:
        """A slice from the beginning keeps that share of the features, and all i-vectors."""
        found = super().__getitem__(index)
        if isinstance(found, PreparedWave) and isinstance(index, slice) and not index.start:
            if self.features is not None:
                frames = -(-len(self.features) * len(found) // max(1, len(self)))
                found.features = self.features[:frames]
            found.ivectors, found.ivector_period = self.ivectors, self.ivector_period
        return found


@dataclass(frozen=True, eq=False)
class Archived:
    """An array in one of Kaldi's archives, read when it is needed. ``period``: frames from a row to the next."""

    archive: Archive
    key: str
    period: int = 1

    @property
    def name(self) -> str:
        """Where it is."""
        return f"{self.archive.path} {self.key}"

    def load(self) -> NDArray[np.float32]:
        """The array, decompressed. Raises AudioError that names the file and the byte."""
        try:
            found = np.asarray(self.archive[self.key], np.float32)
        except KaldiFileError as error:
            raise AudioError(str(error)) from error
        if not found.size or not np.isfinite(found).all():
            fault = "holds NaN or infinity" if found.size else "is empty"
            raise AudioError(f"{self.archive.path}: '{self.key}' {fault}: compute it again, or take it out")
        return found
