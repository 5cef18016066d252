"""A small factored TDNN in PyTorch (TDNN-F: Povey et al., 2018), of the same layers as Kaldi's chain recipes.

Every third frame is put out. Layers after the second work at that rate already, which Kaldi finds out by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

BYPASS = 0.66
SUBSAMPLING = 3
EPSILON = 1e-3  # of Kaldi's batch norms


@dataclass(frozen=True)
class Shape:
    """Sizes of the network; ``strides`` are those of Kaldi's tdnnf-layers, in frames."""

    features: int = 40
    hidden: int = 192
    bottleneck: int = 48
    strides: tuple[int, ...] = (1, 0, 3, 3, 3, 3)
    prefinal: int = 64

    @property
    def context(self) -> int:
        """Frames that are heard on either side."""
        return 1 + sum(self.strides)


class Layer(nn.Module):
    """tdnnf-layer: linear, affine, ReLU, batch norm; and the layer before beside it."""

    def __init__(self, hidden: int, bottleneck: int, stride: int) -> None:
        super().__init__()
        # Strides become 3 only behind a layer of stride 0, where every third frame is left.
        self.stride = stride
        kernel = 2 if stride else 1
        self.linear = nn.Conv1d(hidden, bottleneck, kernel, bias=False)
        self.affine = nn.Conv1d(bottleneck, hidden, kernel, stride=SUBSAMPLING if stride == 1 else 1)
        self.batchnorm = nn.BatchNorm1d(hidden, eps=EPSILON, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, hidden, frames] to [batch, hidden, less frames]."""
        y = self.batchnorm(torch.relu(self.affine(self.linear(x))))
        if self.stride == 1:
            x = x[:, :, 1:-1:SUBSAMPLING]
        elif self.stride:
            x = x[:, :, 1:-1]
        return y + BYPASS * x


class Branch(nn.Module):
    """prefinal-layer and output-layer: affine, ReLU, batch norm, linear, batch norm, affine."""

    def __init__(self, shape: Shape, pdfs: int) -> None:
        super().__init__()
        self.affine = nn.Conv1d(shape.prefinal, shape.hidden, 1)
        self.batchnorm1 = nn.BatchNorm1d(shape.hidden, eps=EPSILON, affine=False)
        self.linear = nn.Conv1d(shape.hidden, shape.prefinal, 1, bias=False)
        self.batchnorm2 = nn.BatchNorm1d(shape.prefinal, eps=EPSILON, affine=False)
        self.output = nn.Conv1d(shape.prefinal, pdfs, 1)
        # As Kaldi starts output layers: all pdfs alike.
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, prefinal, frames] to [batch, pdfs, frames]."""
        return self.output(self.batchnorm2(self.linear(self.batchnorm1(torch.relu(self.affine(x))))))


class Tdnnf(nn.Module):
    """Features [batch, dim, frames + 2 * context] to scores and log-posteriors [batch, frames / 3, pdfs].

    ``mean`` and ``deviation`` [dim] of the features become the fixed first layer.
    """

    def __init__(self, shape: Shape, pdfs: int, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("mean", mean[:, None])
        self.register_buffer("deviation", deviation[:, None])
        self.first = nn.Conv1d(shape.features, shape.hidden, 3)
        self.batchnorm = nn.BatchNorm1d(shape.hidden, eps=EPSILON, affine=False)
        self.layers = nn.Sequential(*(Layer(shape.hidden, shape.bottleneck, s) for s in shape.strides))
        self.prefinal = nn.Conv1d(shape.hidden, shape.prefinal, 1, bias=False)
        self.chain = Branch(shape, pdfs)
        self.xent = Branch(shape, pdfs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both outputs."""
        x = self.batchnorm(torch.relu(self.first((x - self.mean) / self.deviation)))
        x = self.prefinal(self.layers(x))
        return self.chain(x).transpose(1, 2), torch.log_softmax(self.xent(x).transpose(1, 2), 2)

    @torch.no_grad()
    def constrain(self) -> None:
        """Move the bottlenecks a step towards semi-orthogonal ones of any scale, as Kaldi does now and then."""
        for linear in (*(layer.linear for layer in self.layers), self.prefinal, self.chain.linear, self.xent.linear):
            rows = linear.weight.flatten(1)
            gram = rows @ rows.T
            scale = gram.square().sum() / gram.trace()
            ratio = gram.square().sum() * len(gram) / gram.trace() ** 2
            speed = 0.125 if ratio < 1.02 else 0.0625 if ratio < 1.1 else 0.03125
            rows -= 4 * speed / scale * (gram - scale * torch.eye(len(gram))) @ rows
