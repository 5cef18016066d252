"""Estimating i-vectors as the frames come in (Kaldi's ``online2/online-ivector-feature.cc``).

The features are those of a whole recording, but nothing looks further ahead than Kaldi's online code does: the
normalisation of a frame knows the frames before it alone, and the frames beside it are in already when it counts. So
the estimate at any frame is the one that a stream gives there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import ModelLoadError
from quantasr.kaldi.cmvn import splice, transform
from quantasr.kaldi.ivector import IvectorExtractor

_MOST_PRUNING = 0.99  # keeps the best Gaussian alone
_RECOMPUTE = 0.01**2  # a residual that changed by so much is computed anew


@dataclass(frozen=True)
class SpeakerState:
    """What earlier recordings of a speaker told: normalisation statistics, and the terms of the estimate."""

    cmvn: NDArray[np.float64]
    linear: NDArray[np.float64]
    quadratic: NDArray[np.float64]
    count: float


class OnlineIvectors:
    """The i-vectors of one recording: :meth:`add` takes frames in, :meth:`ivector` tells the estimate so far."""

    def __init__(
        self, extractor: IvectorExtractor, features: NDArray[np.float32], speaker: SpeakerState | None = None
    ) -> None:
        if features.ndim != 2 or features.shape[1] != extractor.feature_dim:
            raise ModelLoadError(
                f"i-vector extractor: it was made for {extractor.feature_dim} features a frame, "
                f"these are of shape {list(features.shape)}"
            )
        self.extractor = extractor
        size, offset = extractor.ivector_dim, extractor.prior_offset
        self._features, self._speaker = features, speaker
        self._likelihoods = np.empty((0, 0), np.float32)
        self._inputs = np.empty((0, 0), np.float32)
        self._linear, self._quadratic, self._count = np.zeros(size), np.zeros(size * (size + 1) // 2), 0.0
        if speaker is None:
            self._linear[0] = np.float32(offset)
            self._add_prior(1.0, offset=False)
        else:
            self._linear[:], self._quadratic[:], self._count = speaker.linear, speaker.quadratic, speaker.count
        self._estimate = np.zeros(size)
        self._estimate[0] = offset

    def add(self, frames: NDArray[np.int64], weights: NDArray[np.float32]) -> None:
        """Take in some frames, each once, with weights; a negative weight takes back what was added before.

        Kaldi weighs down what its decoder thinks is silence and changes its mind later (``UpdateFrameWeights``).
        """
        used = weights != 0
        frames, weights = frames[used], weights[used]
        if not frames.size:
            return
        self._prepare()
        rows, gaussians, posteriors = _posteriors(self._likelihoods[frames], self._limits(weights), self._gselect)
        posteriors *= np.float32(self.extractor.options.posterior_scale) * weights[rows]
        linear, quadratic = self.extractor.projections
        chosen, index = np.unique(gaussians, return_inverse=True)
        shares = np.zeros((len(chosen), len(frames)), np.float32)
        shares[index, rows] = posteriors
        sums = shares @ self._inputs[frames]
        totals = shares.sum(axis=1)
        for row, gaussian in zip(sums, chosen, strict=True):
            self._linear += row @ linear[gaussian]
        self._quadratic += totals @ quadratic[chosen]
        before, self._count = self._count, self._count + float(totals.sum(dtype=np.float64))
        limit = self.extractor.options.max_count
        if limit > 0:
            self._add_prior((max(self._count, limit) - max(before, limit)) / limit)

    def ivector(self) -> NDArray[np.float32]:
        """The estimate from what was taken in, ``[S]``; it starts from the one before, as Kaldi's does."""
        if self._count > 0:
            if self._estimate[0] == 0.0:
                self._estimate[0] = self.extractor.prior_offset
            matrix = self._quadratic[self.extractor.unpacking]
            self._estimate = _conjugate_gradient(
                matrix, self._linear, self._estimate, self.extractor.options.num_cg_iters
            )
        else:
            self._estimate = np.zeros_like(self._estimate)
            self._estimate[0] = self.extractor.prior_offset
        found = self._estimate.astype(np.float32)
        found[0] -= np.float32(self.extractor.prior_offset)
        return found

    def _add_prior(self, scale: float, *, offset: bool = True) -> None:
        size = self.extractor.ivector_dim
        self._quadratic[np.arange(size) * (np.arange(size) + 3) // 2] += scale
        if offset:
            self._linear[0] += np.float32(self.extractor.prior_offset) * scale

    @property
    def _gselect(self) -> int:
        return min(self.extractor.options.num_gselect, len(self.extractor.ubm_weights))

    def _limits(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.minimum(np.float32(self.extractor.options.min_post) / np.abs(weights), np.float32(_MOST_PRUNING))

    def _prepare(self) -> None:
        """Likelihoods of all frames, and what the estimate is made of."""
        if len(self._likelihoods):
            return
        extractor, options = self.extractor, self.extractor.options
        speaker = self._speaker.cmvn if self._speaker else None
        around = {"left": options.splice_left, "right": options.splice_right}
        normal = transform(extractor.cmvn(self._features, extractor.global_cmvn, speaker, **around), extractor.lda)
        if options.online_cmvn_iextractor:
            self._inputs = normal
        else:
            self._inputs = transform(splice(self._features, **around), extractor.lda)
        found = normal @ extractor.ubm_means_invvars.T
        found += np.square(normal) @ (np.float32(-0.5) * extractor.ubm_inv_vars.T)
        found += extractor.gconsts
        self._likelihoods = found


def ivectors_at(
    extractor: IvectorExtractor,
    features: NDArray[np.float32],
    counts: Sequence[int] | NDArray[np.int64],
    weights: Callable[[int, int], NDArray[np.float32]] | None = None,
) -> NDArray[np.float32]:
    """The estimates after so many frames each, which must not fall: ``[len(counts), S]``.

    ``weights(row, count)`` gives the weights of the first ``count`` frames as they are known then; 1 without.
    """
    online = OnlineIvectors(extractor, features)
    found = np.empty((len(counts), extractor.ivector_dim), np.float32)
    applied = np.zeros(len(features), np.float32)
    taken = 0
    for row, count in enumerate(map(int, counts)):
        if row and count <= taken:
            found[row] = found[row - 1]
            continue
        taken = count
        change = (weights(row, count) if weights else np.float32(1.0)) - applied[:count]
        applied[:count] += change
        online.add(np.flatnonzero(change), change[change != 0])
        found[row] = online.ivector()
    return found


def _posteriors(
    likelihoods: NDArray[np.float32], limits: NDArray[np.float32], most: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """The best Gaussians of each frame: rows, Gaussians and posteriors, pruned as ``VectorToPosteriorEntry`` does."""
    highest = likelihoods.max(axis=1)
    with np.errstate(divide="ignore"):
        cut = highest + np.log(limits)
    rows, gaussians = np.nonzero(likelihoods > cut[:, None])
    if len(np.unique(rows)) < len(likelihoods):  # of a frame without any, all
        above = likelihoods > cut[:, None]
        above[~above.any(axis=1)] = True
        rows, gaussians = np.nonzero(above)
    values = np.exp(likelihoods[rows, gaussians] - highest[rows])
    order = np.lexsort((-values, rows))
    rows, gaussians, values = rows[order], gaussians[order], values[order]
    starts = np.searchsorted(rows, np.arange(len(likelihoods)))
    rank = np.arange(len(rows)) - starts[rows]
    kept = rank < most
    rows, gaussians, values, rank = rows[kept], gaussians[kept], values[kept], rank[kept]
    totals = np.bincount(rows, values, len(likelihoods)).astype(np.float32)
    kept = (rank == 0) | (values >= limits[rows] * totals[rows])
    rows, gaussians, values = rows[kept], gaussians[kept], values[kept]
    totals = np.bincount(rows, values, len(likelihoods)).astype(np.float32)
    return rows, gaussians, values / totals[rows]


def _conjugate_gradient(
    matrix: NDArray[np.float64], target: NDArray[np.float64], start: NDArray[np.float64], iterations: int
) -> NDArray[np.float64]:
    """Solve ``matrix @ x = target``, with as many steps from ``start`` (negative: as many as it takes)."""
    x = start.copy()
    direction = target - matrix @ x
    residual = -direction
    norm = first = recomputed = float(residual @ residual)
    steps = len(x) + 5
    for _ in range(steps if iterations < 0 else min(iterations, steps)):
        if norm <= np.finfo(np.float64).tiny:
            break
        along = matrix @ direction
        step = -float(direction @ residual) / float(direction @ along)
        x += step * direction
        residual += step * along
        after = float(residual @ residual)
        if not _RECOMPUTE * recomputed <= after <= recomputed / _RECOMPUTE:
            residual = matrix @ x - target
            after = recomputed = float(residual @ residual)
        direction *= after / norm
        direction -= residual
        norm = after
    if norm > first + 1e-10 * float(target @ target):
        return np.linalg.solve(matrix, target)
    return x
