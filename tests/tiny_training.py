"""A tiny model, loss and data to train with: recordings of a few numbers, whose mean is to be found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantasr.training.batch import Batch, Example, Output

BINS = 4


class TinyNet(nn.Module):
    """Frames to outputs, with dropout and a matrix, a bias, a norm and a learned scale."""

    def __init__(self, dropout: float = 0.0, batch_norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(BINS, 8)
        self.norm = nn.BatchNorm1d(8) if batch_norm else nn.LayerNorm(8)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(8, 1)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor, lengths: Tensor) -> Output:
        x = torch.tanh(self.first(features))
        x = self.norm(x.mT).mT if isinstance(self.norm, nn.BatchNorm1d) else self.norm(x)
        return Output(self.last(self.dropout(x)) * self.log_scale.exp(), lengths)


class Distance:
    """The squared distance of each frame from the mean of its bins; the weight is the number of frames."""

    name = "squared"

    def __init__(self, nan_at: Sequence[str] = ()) -> None:
        self.nan_at = set(nan_at)
        self.seeds: list[int] = []

    def collate(self, examples: Sequence[Example], seed: int) -> Batch:
        self.seeds.append(seed)
        frames = [torch.from_numpy(np.asarray(example.wave)).view(-1, BINS) for example in examples]
        lengths = torch.tensor([len(rows) for rows in frames])
        features = nn.utils.rnn.pad_sequence(frames, batch_first=True)
        mask = torch.arange(features.shape[1]) < lengths[:, None]
        return Batch(tuple(example.id for example in examples), features, lengths, mask, float(lengths.sum()))

    def __call__(self, output: Output, batch: Batch) -> Tensor:
        errors = (output.logprobs[..., 0] - batch.features.mean(-1) - 1).square() * batch.targets
        return errors.sum() * (torch.nan if self.nan_at & set(batch.ids) else 1.0)


@dataclass(frozen=True)
class Recording:
    id: str
    frames: int

    @property
    def seconds(self) -> float:
        return self.frames / 10

    def load(self) -> Example:
        step, place = self.id.split("-")
        values = np.random.default_rng([int(step), int(place)]).normal(size=self.frames * BINS)
        return Example(self.id, values.astype(np.float32), None)


@dataclass(frozen=True)
class Recordings:
    """``sizes`` of the batches, over and over; recording ``<step>-<place>`` has 2 to 6 frames."""

    sizes: tuple[int, ...] = (8,)
    steps_per_epoch: int = 10

    def batches(self, first: int, last: int) -> Iterator[list[Recording]]:
        for step in range(first, last):
            count = self.sizes[step % len(self.sizes)]
            yield [Recording(f"{step}-{place}", 2 + (step + place) % 5) for place in range(count)]


def weights(module: nn.Module) -> dict[str, Any]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
