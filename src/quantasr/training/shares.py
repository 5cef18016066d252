"""What this process computes in each step: its share of the recordings, read ahead and cut into batches."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from quantasr.training.batch import Batch, BatchSource, LazyExample, Loss
from quantasr.training.options import TrainOptions
from quantasr.training.randomness import generator


@dataclass(frozen=True)
class Share:
    """Batches of one process in one step, each with the position of its first recording among all of the step.

    ``examples`` counts the recordings of all processes. ``longest`` names the longest recording of this one.
    """

    step: int
    batches: tuple[tuple[int, Batch], ...]
    examples: int
    longest: str

    @property
    def weight(self) -> float:
        """What this share adds to the divisor of the step's loss."""
        return sum(batch.weight for _, batch in self.batches)


def shares(
    source: BatchSource, loss: Loss, options: TrainOptions, first: int, last: int, *, rank: int = 0, count: int = 1
) -> Generator[Share]:
    """The shares of process ``rank`` of ``count`` in the steps from ``first`` to ``last - 1``.

    ``options.workers`` threads read that many steps ahead, in order; what they do must draw nothing from global
    generators.
    """
    steps = enumerate(source.batches(first, last), first)
    if not options.workers:
        for step, recordings in steps:
            yield _share(recordings, loss, options, step, rank, count)
        return
    pool = ThreadPoolExecutor(options.workers, thread_name_prefix="quantasr-reading")
    ahead: deque[Future[Share]] = deque()
    try:
        for step, recordings in steps:
            ahead.append(pool.submit(_share, recordings, loss, options, step, rank, count))
            if len(ahead) > options.workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def seed_step(seed: int, step: int, position: int) -> None:
    """Seed all generators for one run of the model, so that no number depends on what was drawn before."""
    mixed = _seed("model", seed, step, position)
    torch.manual_seed(mixed)
    np.random.seed(mixed)
    random.seed(mixed)


def _seed(*names: int | str) -> int:
    return int(generator(*names).integers(2**32))


def _share(
    recordings: Sequence[LazyExample], loss: Loss, options: TrainOptions, step: int, rank: int, count: int
) -> Share:
    mine = recordings[rank::count]
    longest = max(mine, key=lambda recording: recording.seconds, default=None)
    size = -(-len(mine) // options.accumulate)
    batches = []
    for start in range(0, len(mine), size or 1):
        examples = [recording.load() for recording in mine[start : start + size]]
        batches.append((rank + start * count, loss.collate(examples, _seed("batch", options.seed, step))))
    words = f"{longest.id} of {longest.seconds:.1f} s" if longest else "none"
    return Share(step, tuple(batches), len(recordings), words)
