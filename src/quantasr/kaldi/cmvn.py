"""Cepstral mean and variance normalisation, frames beside their neighbours, and linear transforms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import ModelLoadError
from quantasr.kaldi.stream import Reader

_VARIANCE_FLOOR = 1e-20
NO_MIN_ENERGY = float(np.finfo(np.float32).min)
OPTIONS = {
    "cmn-window": "window",
    "global-frames": "global_frames",
    "speaker-frames": "speaker_frames",
    "norm-means": "norm_means",
    "norm-vars": "norm_vars",
    "skip-dims": "skip_dims",
    "cmn-min-energy": "min_energy",
}
"""Options of ``online_cmvn.conf`` -> fields of :class:`OnlineCmvn`."""


@dataclass(frozen=True)
class OnlineCmvn:
    """Kaldi's ``OnlineCmvn``: each frame is normalised by the ``window`` frames up to it.

    Where there are fewer, at most ``speaker_frames`` of what the speaker said before are added, and then at most
    ``global_frames`` of the average of everything. ``skip_dims`` is a list like ``13:14`` of columns left alone.

    ``min_energy`` exists in Vosk's Kaldi alone, which sets it to 50: a frame whose first column is not above it takes
    what was used for the frame before, with the average of everything added once more. Below the least number there is,
    it changes nothing.
    """

    window: int = 600
    speaker_frames: int = 600
    global_frames: int = 200
    norm_means: bool = True
    norm_vars: bool = False
    skip_dims: str = ""
    min_energy: float = NO_MIN_ENERGY

    def __post_init__(self) -> None:
        if not 0 <= self.global_frames <= self.speaker_frames <= self.window or self.window < 1:
            raise ModelLoadError(
                f"online CMVN: global-frames {self.global_frames}, speaker-frames {self.speaker_frames} and cmn-window "
                f"{self.window} must not shrink in this order"
            )
        if self.norm_vars and not self.norm_means:
            raise ModelLoadError("online CMVN: norm-vars without norm-means is not possible")
        if not all(part.isdecimal() for part in self._skipped):
            raise ModelLoadError(f"online CMVN: skip-dims {self.skip_dims!r} is no list like 13:14:15")

    @property
    def _skipped(self) -> list[str]:
        return self.skip_dims.split(":") if self.skip_dims else []

    def __call__(
        self,
        features: NDArray[np.float32],
        stats: NDArray[np.float64],
        speaker: NDArray[np.float64] | None = None,
        *,
        left: int = 0,
        right: int = 0,
    ) -> NDArray[np.float32]:
        """``[frames, dim]`` normalised with global ``stats`` ``[2, dim + 1]``, and the speaker's if there are any.

        With ``left`` or ``right``, each beside its neighbours, as :func:`splice` does it.
        """
        if not self.norm_means:
            return splice(features, left, right)
        frames, width = len(features), left + 1 + right
        if self.min_energy <= NO_MIN_ENERGY:
            used, steps = np.arange(frames), np.ones(frames, np.int64)
            return splice(self._normalized(features, features, used, steps, stats, speaker), left, right)
        # Which frame is asked for when, because a quiet one takes what was used last: for each frame, all around it.
        order = np.clip(np.arange(frames)[:, None] + np.arange(-left, right + 1), 0, frames - 1).ravel()
        calls = np.arange(len(order))
        last = np.maximum.accumulate(np.where(features[order, 0] > self.min_energy, calls, -1))
        used = np.where(last < 0, -1, order[last])
        steps = calls - last + (last >= 0)
        found = self._normalized(features, features[order], used, steps, stats, speaker)
        return found.reshape(frames, width * features.shape[1])

    def _normalized(
        self,
        features: NDArray[np.float32],
        rows: NDArray[np.float32],
        used: NDArray[np.int64],
        steps: NDArray[np.int64],
        stats: NDArray[np.float64],
        speaker: NDArray[np.float64] | None,
    ) -> NDArray[np.float32]:
        """``rows`` by the window up to the frames ``used`` (-1: none), to which other statistics are added ``steps``
        times, as long as the window is not full."""
        dim = features.shape[1]
        enough = -(-self.window // self.global_frames) if self.global_frames else 1
        steps = np.minimum(steps, enough)
        pairs, where = np.unique((used + 1) * (enough + 1) + steps, return_inverse=True)
        used, steps = pairs // (enough + 1) - 1, pairs % (enough + 1)
        counts = np.minimum(used + 1, self.window).astype(np.float64)
        powers = (1, 2) if self.norm_vars else (1,)
        sums = [self._window_sums(np.power(features.astype(np.float64), power))[used + 1] for power in powers]
        for step in range(1, int(steps.max(initial=0)) + 1):
            for more, limit in ((speaker, self.speaker_frames), (stats, self.global_frames)):
                if more is None or more[0, dim] <= 0:
                    continue
                # Global statistics may be repeated; a speaker's may not count for more than they are.
                most = limit if more is stats else min(limit, float(more[0, dim]))
                added = np.where(steps >= step, np.clip(self.window - counts, 0.0, most), 0.0)
                for row, total in enumerate(sums):
                    total += (added / more[0, dim])[:, None] * more[row, :dim]
                counts += added
        counts = np.maximum(counts, 1.0)
        means = sums[0] / counts[:, None]
        skipped = [int(part) for part in self._skipped if int(part) < dim]
        means[:, skipped] = 0.0
        if not self.norm_vars:
            return _scaled(rows, means[where], None)
        variances = np.maximum(sums[1] / counts[:, None] - np.square(means), _VARIANCE_FLOOR)
        variances[:, skipped] = 1.0
        return _scaled(rows, means[where], 1.0 / np.sqrt(variances)[where])

    def _window_sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums over the window up to each frame, ``[1 + frames, dim]``; the first row is that of no frame."""
        totals: NDArray[np.float64] = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
        if len(totals) > self.window:
            totals[self.window :] -= totals[: -self.window].copy()
        return totals


def apply_cmvn(
    features: NDArray[np.float32], stats: NDArray[np.float64], *, norm_means: bool = True, norm_vars: bool = False
) -> NDArray[np.float32]:
    """``[frames, dim]`` with the mean, and the variance if wanted, of ``stats`` taken out, as ``apply-cmvn`` does it.

    ``stats`` are Kaldi's ``[2, dim + 1]``: sums and their count, sums of squares. Raises ModelLoadError when they do
    not fit.
    """
    dim = features.shape[1]
    if stats.ndim != 2 or stats.shape[1] != dim + 1 or not (1 + norm_vars) <= len(stats) <= 2 or stats[0, dim] < 1:
        raise ModelLoadError(
            f"CMVN statistics of shape {list(stats.shape)} do not fit features of {dim} columns, or count no frame"
        )
    if not norm_means:
        return features
    mean = stats[0, :dim] / stats[0, dim]
    if not norm_vars:
        return _scaled(features, mean, None)
    scale = 1.0 / np.sqrt(np.maximum(stats[1, :dim] / stats[0, dim] - np.square(mean), _VARIANCE_FLOOR))
    return _scaled(features, mean, scale)


def _scaled(
    features: NDArray[np.float32], mean: NDArray[np.float64], scale: NDArray[np.float64] | None
) -> NDArray[np.float32]:
    """``(features - mean) * scale`` in single precision, the way round in which Kaldi does it."""
    found: NDArray[np.float32]
    if scale is None:
        found = features - mean.astype(np.float32)
    else:
        found = features * scale.astype(np.float32)
        found -= (mean * scale).astype(np.float32)
    return found


def cmvn_stats(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """The statistics of ``[frames, dim]``, as ``compute-cmvn-stats`` gives them: ``[2, dim + 1]``."""
    values = features.astype(np.float64)
    stats = np.zeros((2, values.shape[1] + 1))
    stats[:, :-1] = values.sum(axis=0), np.square(values).sum(axis=0)
    stats[0, -1] = len(values)
    return stats


def read_cmvn_stats(path: str | Path) -> NDArray[np.float64]:
    """``global_cmvn.stats`` or another file of one such matrix; raises ModelLoadError when it is none."""
    stats = Reader.open(path).read_matrix(np.float64).astype(np.float64)
    if len(stats) != 2 or stats.shape[1] < 2 or not np.isfinite(stats).all() or stats[0, -1] <= 0:
        raise ModelLoadError(f"{path}: a matrix of shape {list(stats.shape)} is no CMVN statistics of finite numbers")
    return stats


def splice(features: NDArray[Any], left: int, right: int) -> NDArray[Any]:
    """``[frames, dim]`` -> ``[frames, (left + 1 + right) * dim]``: frames beside their neighbours; the ends repeat."""
    if not left and not right:
        return features
    around = np.pad(features, ((left, right), (0, 0)), mode="edge")
    parts = [around[offset : offset + len(features)] for offset in range(left + 1 + right)]
    return np.concatenate(parts, axis=1)


def transform(features: NDArray[np.float32], matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """``[frames, dim]`` times a linear ``[out, dim]`` or affine ``[out, dim + 1]`` matrix, whose offset comes last."""
    dim = features.shape[1]
    found: NDArray[np.float32] = features @ matrix[:, :dim].T
    if matrix.shape[1] == dim + 1:
        found += matrix[:, dim]
    return found
