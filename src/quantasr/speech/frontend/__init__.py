"""From samples to what an acoustic model reads, as the model's own processor does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import ArtifactError
from quantasr.speech.frontend.fbank import FbankFrontend
from quantasr.speech.frontend.kaldi import KaldiFrontend
from quantasr.speech.frontend.kaldi_features import GIVEN
from quantasr.speech.frontend.log_mel import LogMelFrontend
from quantasr.speech.frontend.mel_db import MelDecibelFrontend
from quantasr.speech.frontend.protocol import Frontend, collate
from quantasr.speech.frontend.wave import WaveFrontend
from quantasr.speech.frontend.whisper_mel import WhisperMelFrontend
from quantasr.speech.prepared import PreparedWave

FRONTENDS: dict[
    str,
    type[WaveFrontend]
    | type[FbankFrontend]
    | type[LogMelFrontend]
    | type[MelDecibelFrontend]
    | type[WhisperMelFrontend]
    | type[KaldiFrontend],
] = {
    frontend.kind: frontend
    for frontend in (
        WaveFrontend,
        FbankFrontend,
        LogMelFrontend,
        MelDecibelFrontend,
        WhisperMelFrontend,
        KaldiFrontend,
    )
}


def frontend_from_dict(row: Mapping[str, Any], arrays: Mapping[str, NDArray[np.generic]] | None = None) -> Frontend:
    """The frontend that ``to_dict`` described, with its ``arrays`` if it has any.

    Raises ArtifactError on an unknown kind or parameter, and on an array that is missing.
    """
    parameters = dict(row)
    kind = parameters.pop("kind", None)
    if kind not in FRONTENDS:
        raise ArtifactError(f"frontend kind {kind!r} is unknown; this version has {', '.join(sorted(FRONTENDS))}")
    try:
        if kind == KaldiFrontend.kind:
            return KaldiFrontend.from_dict(parameters, arrays or {})
        return FRONTENDS[kind](**parameters)
    except KeyError as error:
        raise ArtifactError(f"frontend {kind!r}: its array or parameter {error} is missing") from error
    except TypeError as error:
        raise ArtifactError(f"frontend {kind!r}: {error}; was the artifact written by a newer version?") from error


def noise(frontend: Frontend, samples: int, seed: int = 0) -> NDArray[np.float32]:
    """A wave of noise that ``frontend`` takes, to trace, time or look at a model with."""
    random = np.random.default_rng(seed)
    wave = random.normal(0, 0.1, samples).astype(np.float32)
    if not isinstance(frontend, KaldiFrontend):
        return wave
    features = ivectors = None
    if frontend.features.type == GIVEN:
        shape = (max(1, samples // frontend.features.shift), frontend.feature_dim)
        features = random.normal(size=shape).astype(np.float32)
    if frontend.ivector_mode == "given":
        ivectors = random.normal(0, 0.1, frontend.ivector_dim).astype(np.float32)
    return wave if features is None and ivectors is None else PreparedWave.of(wave, features, ivectors)


__all__ = [
    "FRONTENDS",
    "FbankFrontend",
    "Frontend",
    "KaldiFrontend",
    "LogMelFrontend",
    "MelDecibelFrontend",
    "WaveFrontend",
    "WhisperMelFrontend",
    "collate",
    "frontend_from_dict",
    "noise",
]
