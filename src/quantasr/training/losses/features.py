"""Recordings as the features of one batch, which every loss of whole recordings needs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantasr.errors import AudioError
from quantasr.sources.asr_model import FrameModel
from quantasr.speech.frontend import KaldiFrontend, collate
from quantasr.speech.prepared import PreparedWave
from quantasr.training.batch import Example
from quantasr.training.randomness import generator
from quantasr.training.spec_augment import SpecAugment


class BatchFeatures:
    """The frontend of a model over the waves of a batch, filled up to the longest.

    Features ``[frames, bins]`` are masked by ``spec_augment``. Models that read the wave hide time from themselves
    (``FrameModel.set_time_masking``), so for them it must be None.
    """

    def __init__(self, model: FrameModel, spec_augment: SpecAugment | None = None) -> None:
        self._frontend = model.frontend
        self._min_samples = model.min_samples
        self._spec_augment = spec_augment
        # Behind Kaldi's features are i-vectors, which are not masked.
        self._bins = model.frontend.feature_dim if isinstance(model.frontend, KaldiFrontend) else None

    def __call__(self, examples: Sequence[Example], seed: int) -> tuple[Tensor, Tensor]:
        """``features`` ``[batch, time(, bins)]`` and their ``lengths`` ``[batch]``; ``seed`` decides the masks."""
        features, lengths = collate([self._of(example, seed) for example in examples], self._frontend.padding_value)
        return torch.from_numpy(features), torch.from_numpy(lengths)

    def _of(self, example: Example, seed: int) -> NDArray[np.float32]:
        wave = example.wave
        if not isinstance(wave, PreparedWave):
            wave = np.pad(wave, (0, max(0, self._min_samples - wave.size)))
        try:
            features = self._frontend(wave)
        except AudioError as error:
            raise AudioError(f"{example.id}: {error}") from error
        if self._spec_augment is None or features.ndim != 2:
            return features
        masked = self._spec_augment(features[:, : self._bins], generator(seed, "spec_augment", example.id))
        return masked if self._bins is None else np.concatenate([masked, features[:, self._bins :]], axis=1)
