"""What stands at the head of a SpeechBrain encoder and only computes features, as a frontend in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from quantasr.errors import ArtifactError, AudioError, ModelLoadError
from quantasr.speech.frontend import Frontend, MelDecibelFrontend, WaveFrontend

TOLERANCE = 1e-2
"""Largest difference between our features and SpeechBrain's on a second of noise.

Its float32 FFT is off by up to 1e-3 dB where one bin is a million times weaker than others; what is set up in another
way differs by far more."""


def is_features(layer: nn.Module) -> bool:
    """Whether a layer makes features of the wave and can be read as a frontend."""
    from speechbrain.lobes.features import MFCC, Fbank

    return isinstance(layer, Fbank | MFCC)


def is_normalization(layer: nn.Module) -> bool:
    """Whether a layer normalises features."""
    from speechbrain.processing.features import InputNormalization

    return isinstance(layer, InputNormalization)


def read_frontend(where: str, layers: Sequence[nn.Module], sample_rate: int) -> Frontend:
    """The frontend for the layers at the head: one that makes features, and perhaps one that normalises them.

    Without any, the model hears the wave itself. Raises :class:`ModelLoadError` where they are set up in a way that
    cannot be had in NumPy.
    """
    if not layers:
        return WaveFrontend(sample_rate, normalize=False)
    normalization = _normalization(where, layers[1]) if len(layers) > 1 else {}
    try:
        frontend = MelDecibelFrontend(**_mel(layers[0]), **normalization)
        _compare(where, frontend, layers)
    except ArtifactError as error:
        raise ModelLoadError(f"{where}: {error}") from error
    return frontend


def wave_frontend(lobe: Any, sample_rate: int) -> WaveFrontend:
    """The frontend of a Wav2Vec2, HuBERT or WavLM inside SpeechBrain, which normalises waves by ``F.layer_norm``."""
    return WaveFrontend(sample_rate, normalize=bool(lobe.normalize_wav), epsilon=1e-5)


def _mel(features: Any) -> dict[str, Any]:
    transform, bank = features.compute_STFT, features.compute_fbanks
    # Filters that training may move are stored as shares of the rate.
    factor = 1.0 if bank.freeze else bank.sample_rate * bank.param_change_factor**2
    cosines = getattr(features, "compute_dct", None)
    context = features.context_window if features.context else None
    return {
        "centres": (bank.f_central.detach() * factor).tolist(),
        "bandwidths": (bank.band.detach() * factor).tolist(),
        "sample_rate": int(transform.sample_rate),
        "window_length": int(transform.win_length),
        "hop_length": int(transform.hop_length),
        "fft_length": int(transform.n_fft),
        "filter_shape": bank.filter_shape if bank.filter_shape in ("triangular", "rectangular") else "gaussian",
        "log": bool(bank.log_mel),
        "decibels": float(bank.multiplier),
        "floor": float(bank.amin),
        "reference": float(bank.ref_value),
        "top_db": float(bank.top_db),
        "num_ceps": 0 if cosines is None else int(cosines.dct_mat.shape[1]),
        "deltas": bool(features.deltas),
        "delta_length": 2 * int(features.compute_deltas.n) + 1,
        "left": 0 if context is None else int(context.left_frames),
        "right": 0 if context is None else int(context.right_frames),
    }


def _normalization(where: str, layer: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "normalize": {"global": "fixed"}.get(layer.norm_type, layer.norm_type),
        "scale": bool(layer.std_norm),
        "epsilon": float(getattr(layer, "epsilon", getattr(layer, "eps", 1e-10))),
    }
    if layer.norm_type == "global":
        mean, std = torch.as_tensor(layer.glob_mean), torch.as_tensor(layer.glob_std)
        if not mean.numel():
            raise ModelLoadError(
                f"{where}: the statistics of its InputNormalization are not loaded: list it in the pretrainer's "
                "loadables"
            )
        found |= {"fixed_mean": mean.flatten().tolist(), "fixed_std": std.flatten().tolist()}
    return found


@torch.no_grad()
def _compare(where: str, frontend: MelDecibelFrontend, layers: Sequence[nn.Module]) -> None:
    """Raise :class:`ModelLoadError` unless the frontend gives what the layers give."""
    # Quiet at one end, so that the floor below the loudest value is met too.
    rng = np.random.default_rng(0)
    wave = (rng.normal(0, 1, frontend.sample_rate) * np.logspace(-7, -1, frontend.sample_rate)).astype(np.float32)
    try:
        expected: Any = torch.from_numpy(wave)[None]
        for layer in layers:
            expected = layer(expected)
        found = frontend(wave)
    except (RuntimeError, ValueError, TypeError, AudioError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ModelLoadError(f"{where}: its features cannot be computed: {reason}") from error
    if found.shape != tuple(expected.shape[1:]):
        raise ModelLoadError(
            f"{where}: its features have the shape {list(expected.shape[1:])}, and not {list(found.shape)} as read"
        )
    difference = float(np.abs(found - expected[0].numpy()).max())
    if not difference <= TOLERANCE:
        kinds = " and ".join(type(layer).__name__ for layer in layers)
        raise ModelLoadError(
            f"{where}: {kinds} are set up in a way that is not supported: features differ by {difference:.2g}"
        )
