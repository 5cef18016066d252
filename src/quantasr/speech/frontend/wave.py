"""The wave itself as the features."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from quantasr.speech.frontend.protocol import as_wave, require_rate


@dataclass(frozen=True)
class WaveFrontend:
    """The wave itself, for models that learn their own features: Wav2Vec2, HuBERT, WavLM, Data2Vec.

    With ``normalize`` each recording is brought to mean 0 and variance 1: ``(x - mean) / sqrt(var + epsilon)``, with
    1e-7 as transformers' ``Wav2Vec2FeatureExtractor`` does, and 1e-5 in SpeechBrain.
    """

    kind: ClassVar[str] = "wave"

    sample_rate: int = 16000
    normalize: bool = True
    padding_value: float = 0.0
    epsilon: float = 1e-7

    def __post_init__(self) -> None:
        require_rate(self.sample_rate)

    def __call__(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        """``[samples]`` -> ``[samples]``; raises AudioError when there are none."""
        wave = as_wave(wave)
        if not self.normalize:
            return wave
        normal: NDArray[np.float32] = (wave - wave.mean()) / np.sqrt(wave.var() + self.epsilon)
        return normal.astype(np.float32, copy=False)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {"kind": self.kind, **asdict(self)}
