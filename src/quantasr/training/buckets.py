"""Batches of recordings that are about equally long, in another order in every epoch."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import TrainingError
from quantasr.training.randomness import generator

_LEAST_BATCHES = 16
"""Of fewer in a bucket, the same utterances would meet again and again."""


class Buckets:
    """Parts utterances into buckets by their length, and each bucket into batches.

    Which utterances share a bucket is fixed; which of them share a batch, and the order of batches, are drawn anew in
    each epoch. Every utterance comes once in an epoch. All batches have ``batch`` utterances, or fewer where so many of
    the longest of a bucket would last more than ``max_batch_seconds``; only the last of a bucket may be smaller still,
    and without that limit only one batch of all. So each epoch has the same number of batches, and any of them is known
    without those before.

    ``seconds``: the length of each utterance at its longest.
    """

    def __init__(
        self,
        seconds: NDArray[np.float64],
        batch: int,
        *,
        buckets: int = 30,
        max_batch_seconds: float | None = None,
        seed: int = 0,
    ) -> None:
        if batch < 1 or buckets < 1:
            raise TrainingError(f"batch is {batch} and buckets {buckets}: give 1 or more")
        self._seed = seed
        # (size of the batches, utterances); equal lengths are in the order of the manifest.
        self._buckets: list[tuple[int, NDArray[np.int64]]] = []
        order = np.argsort(seconds, kind="stable")
        start, width = 0, max(-(-len(order) // buckets), _LEAST_BATCHES * batch)
        while start < len(order):
            size, end = batch, min(len(order), start + -(-width // batch) * batch)
            if max_batch_seconds is not None:
                size = max(1, min(batch, int(max_batch_seconds / float(seconds[order[end - 1]]))))
                end = start + max((end - start) // size * size, min(size, end - start))
            self._buckets.append((size, order[start:end]))
            start = end
        self.per_epoch = sum(-(-len(members) // size) for size, members in self._buckets)
        self._epoch = lru_cache(2)(self._drawn)

    def batch(self, step: int) -> tuple[int, NDArray[np.int64]]:
        """The epoch of a step, counted from 0, and the indices of its utterances."""
        epoch, at = divmod(step, self.per_epoch)
        return epoch, self._epoch(epoch)[at]

    def _drawn(self, epoch: int) -> list[NDArray[np.int64]]:
        random = generator(self._seed, epoch, "batches")
        batches: list[NDArray[np.int64]] = []
        for size, members in self._buckets:
            shuffled = random.permutation(members)
            batches += [shuffled[i : i + size] for i in range(0, len(shuffled), size)]
        return [batches[i] for i in random.permutation(len(batches))]
