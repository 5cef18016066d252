"""nnet3's components as PyTorch modules; all take and give ``[batch, channels, 1, time]``.

In this layout convolutions are fast. Every product of a matrix with frames is a ``Conv2d`` of height 1, or of the
height of a time-height convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantasr.errors import ModelLoadError
from quantasr.kaldi.nnet3.components import Component

# ---- products ----


def matrix(component: Component) -> tuple[Any, Any]:
    """(weight ``[out, in]``, bias ``[out]`` or None) of any component that multiplies by a matrix."""
    fields = component.fields
    weight = fields["LinearParams"] if "LinearParams" in fields else fields["Params"]
    bias = fields.get("BiasParams")
    return weight, bias if bias is not None and len(bias) else None


def product(weight: Any, bias: Any, taps: int = 1, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """``[out, taps * in]`` as a convolution over time; the taps' blocks lie one after the other."""
    out, columns = weight.shape
    conv = nn.Conv2d(columns // taps, out, (1, taps), (1, stride), dilation=(1, dilation), bias=bias is not None)
    blocks = torch.tensor(weight, dtype=torch.float32).view(out, taps, columns // taps)
    conv.weight = nn.Parameter(blocks.transpose(1, 2).unsqueeze(2).contiguous())
    if bias is not None:
        conv.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float32))
    return conv


def rows_product(weight: Any, bias: Any) -> nn.Linear:
    """``[out, in]`` on frames as rows, ``[batch, time, in]``: where its many outputs are wanted like that."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float32))
    if bias is not None:
        linear.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float32))
    return linear


class TimeHeight(nn.Conv2d):
    """TimeHeightConvolutionComponent: an image of ``height x filters`` at each frame; heights outside are zero."""

    def __init__(self, component: Component, stride: int, dilation: int) -> None:
        fields = component.fields
        offsets: Sequence[tuple[int, int]] = [tuple(pair) for pair in fields["Offsets"]]
        times, heights = sorted({t for t, _ in offsets}), sorted({h for _, h in offsets})
        t_step = int(np.gcd.reduce(np.diff(times))) if len(times) > 1 else 1  # times that are left out have weight zero
        filters_in, filters_out = fields["NumFiltersIn"], fields["NumFiltersOut"]
        self.height_in, self.height_out = fields["HeightIn"], fields["HeightOut"]
        subsample = fields["HeightSubsampleOut"]
        h_step = int(np.gcd.reduce(np.diff(heights))) if len(heights) > 1 else 1
        kernel = ((heights[-1] - heights[0]) // h_step + 1, (times[-1] - times[0]) // t_step + 1)
        super().__init__(filters_in, filters_out, kernel, (subsample, stride), dilation=(h_step, dilation))
        weight, bias = matrix(component)
        blocks = torch.tensor(weight, dtype=torch.float32).view(filters_out, len(offsets), filters_in)
        full = torch.zeros(filters_out, filters_in, *kernel)
        self.places = [((h - heights[0]) // h_step, (t - times[0]) // t_step) for t, h in offsets]
        for i, place in enumerate(self.places):
            full[:, :, *place] = blocks[:, i]
        self.weight = nn.Parameter(full)
        self.bias = nn.Parameter(torch.zeros(filters_out) if bias is None else torch.tensor(bias))
        below = (self.height_out - 1) * subsample + heights[-1] - (self.height_in - 1)
        self.pad = (-heights[0], below)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(x.shape[0], self.height_in, self.in_channels, -1).transpose(1, 2)
        x = F.pad(x, (0, 0, *self.pad))
        y: Tensor = self._conv_forward(x, self.weight, self.bias)
        return y.transpose(1, 2).reshape(y.shape[0], self.height_out * self.out_channels, 1, -1)


class Blocks(nn.Module):
    """RepeatedAffine and BlockAffine: the input cut in equal blocks, each multiplied by a matrix."""

    def __init__(self, weights: Tensor, bias: Tensor | None) -> None:
        """``weights`` are ``[blocks, out, in]``."""
        super().__init__()
        groups, out, each = weights.shape
        self.conv = nn.Conv2d(groups * each, groups * out, 1, groups=groups, bias=bias is not None)
        self.conv.weight = nn.Parameter(weights.reshape(groups * out, each, 1, 1))
        if bias is not None:
            self.conv.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


# ---- element by element ----


class ScaleOffset(nn.Module):
    """``x * scale + offset``, each ``[channels]`` or absent."""

    scale: Tensor | None
    offset: Tensor | None

    def __init__(self, scale: Any = None, offset: Any = None) -> None:
        super().__init__()
        for name, values in (("scale", scale), ("offset", offset)):
            column = None if values is None else torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, column)

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is not None:
            x = x * self.scale
        return x if self.offset is None else x + self.offset


class BatchNorm(ScaleOffset):
    """BatchNormComponent: ``scale`` and ``offset`` say what its statistics are, and in evaluation mode that is all.

    In training mode each batch is normalised by its own statistics, and those of the component follow, as in PyTorch's
    norms: one part in ten a batch. Kaldi counts those of all batches instead. Variances are divided by the number of
    frames, as Kaldi does.
    """

    momentum = 0.1

    def __init__(self, component: Component) -> None:
        """Raises ModelLoadError for a norm without statistics."""
        fields = component.fields
        mean, var = np.asarray(fields["StatsMean"], np.float64), np.asarray(fields["StatsVar"], np.float64)
        if not fields["Count"]:
            raise ModelLoadError(
                f"component '{component.name}': a batch norm without statistics; was the model trained?"
            )
        scale = fields["TargetRms"] / np.sqrt(var + fields["Epsilon"])
        self.rms, self.epsilon = float(fields["TargetRms"]), float(fields["Epsilon"])
        self.blocks = fields["Dim"] // len(mean)
        super().__init__(np.tile(scale, self.blocks), np.tile(-mean * scale, self.blocks))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        parts = x.reshape(x.shape[0], self.blocks, -1, x.shape[2] * x.shape[3])
        var, mean = torch.var_mean(parts, (0, 1, 3), correction=0)
        self._follow(mean.detach(), var.detach())
        scale = self.rms * torch.rsqrt(var + self.epsilon)
        column = torch.stack([scale, -mean * scale]).repeat(1, self.blocks).unsqueeze(-1).unsqueeze(-1)
        return x * column[0] + column[1]

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel of a block."""
        assert self.scale is not None and self.offset is not None
        channels = len(self.scale) // self.blocks
        scale, offset = self.scale[:channels, 0, 0].double(), self.offset[:channels, 0, 0].double()
        return -offset / scale, ((self.rms / scale) ** 2 - self.epsilon).clamp(min=0)

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor) -> None:
        assert self.scale is not None and self.offset is not None
        old_mean, old_var = self.statistics()
        mean, var = old_mean.lerp(mean.double(), self.momentum), old_var.lerp(var.double(), self.momentum)
        scale = self.rms * torch.rsqrt(var + self.epsilon)
        self.scale.copy_(scale.repeat(self.blocks).view(-1, 1, 1))
        self.offset.copy_((-mean * scale).repeat(self.blocks).view(-1, 1, 1))


class Softmax(nn.Module):
    """Softmax over the channels, or its logarithm."""

    dim = 1

    def __init__(self, log: bool) -> None:
        super().__init__()
        self.log = log

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.log_softmax(x, self.dim) if self.log else F.softmax(x, self.dim)
        return y


class Permute(nn.Module):
    """PermuteColumns: channel ``i`` of the result is channel ``order[i]``."""

    order: Tensor

    def __init__(self, order: Any) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor(np.asarray(order), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.order)


class SumGroup(nn.Module):
    """Sums of neighbouring channels, ``sizes`` of them each."""

    weight: Tensor

    def __init__(self, sizes: Any) -> None:
        super().__init__()
        sizes = np.asarray(sizes)
        owner = np.repeat(np.arange(len(sizes)), sizes)
        self.register_buffer("weight", torch.tensor(owner == np.arange(len(sizes))[:, None], dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[:, :, None, None])


class Product(nn.Module):
    """ElementwiseProduct: the product of the parts that the channels are cut in."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = x.chunk(self.parts, dim=1)
        for part in rest:
            first = first * part
        return first


class Normalize(nn.Module):
    """NormalizeComponent: each frame, or block of it, scaled to the root mean square ``rms``; and its logarithm."""

    floor = 2.0**-66  # of the mean square, as in Kaldi's NormalizePerRow

    def __init__(self, rms: float, blocks: int, add_log: bool) -> None:
        super().__init__()
        self.rms, self.blocks, self.add_log = rms, blocks, add_log

    def forward(self, x: Tensor) -> Tensor:
        parts = x.reshape(x.shape[0], self.blocks, -1, x.shape[-1])
        square = parts.square().mean(dim=2, keepdim=True) / self.rms**2
        square = square.clamp(min=self.floor)
        found = parts * square.rsqrt()
        if self.add_log:
            found = torch.cat([found, 0.5 * square.log() + float(np.log(self.rms))], dim=2)
        return found.reshape(x.shape[0], -1, 1, x.shape[-1])


class SumBlocks(nn.Module):
    """SumBlockComponent: the sum of the blocks that the channels are cut in, scaled."""

    def __init__(self, blocks: int, scale: float) -> None:
        super().__init__()
        self.blocks, self.scale = blocks, scale

    def forward(self, x: Tensor) -> Tensor:
        parts = x.reshape(x.shape[0], self.blocks, -1, x.shape[-1])
        return parts.sum(dim=1).unsqueeze(2) * self.scale


class Constant(nn.Module):
    """The same ``values`` ``[channels]`` at every frame."""

    values: Tensor

    def __init__(self, values: Any) -> None:
        super().__init__()
        self.register_buffer("values", torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.values.expand(x.shape[0], -1, 1, x.shape[-1])


class Pnorm(nn.Module):
    """The 2-norm (``p`` in general) of each group of channels."""

    def __init__(self, groups: int, p: float) -> None:
        super().__init__()
        self.groups, self.p = groups, p

    def forward(self, x: Tensor) -> Tensor:
        parts = x.reshape(x.shape[0], self.groups, -1, x.shape[-1])
        norms: Tensor = torch.linalg.vector_norm(parts, self.p, dim=2)
        return norms.unsqueeze(2)


class LstmNonlinearity(nn.Module):
    """One step of an LSTM behind its matrix: channels are the four gates' sums and the last cell -> cell, output.

    Peepholes are diagonal, rows of ``params`` ``[3, cell]`` (Kaldi's ComputeLstmNonlinearity). With dropout there are
    three more channels that scale the gates.
    """

    params: Tensor

    def __init__(self, params: Any) -> None:
        super().__init__()
        self.register_buffer("params", torch.tensor(params, dtype=torch.float32)[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        cell = self.params.shape[1]
        i, f, g, o, last = x[:, : 5 * cell].chunk(5, dim=1)
        scales = [x[:, 5 * cell + k : 5 * cell + k + 1] for k in range(3)] if x.shape[1] > 5 * cell else [1.0] * 3
        forget = torch.sigmoid(f + self.params[1] * last) * scales[1]
        new = forget * last + torch.sigmoid(i + self.params[0] * last) * scales[0] * torch.tanh(g)
        out = torch.sigmoid(o + self.params[2] * new) * scales[2] * torch.tanh(new)
        return torch.cat([new, out], dim=1)


# ---- the table ----


def _blocks(component: Component) -> Blocks:
    fields = component.fields
    weight, bias = matrix(component)
    weight, bias = torch.tensor(weight), None if bias is None else torch.tensor(bias)
    if "NumRepeats" in fields:
        repeats = fields["NumRepeats"]
        return Blocks(weight.expand(repeats, *weight.shape), None if bias is None else bias.repeat(repeats))
    return Blocks(weight.view(fields["NumBlocks"], -1, weight.shape[1]), bias)


def _normalize(component: Component) -> Normalize:
    fields = component.fields
    dim = fields["Dim"] if "Dim" in fields else fields["InputDim"]
    blocks = dim // fields["BlockDim"] if "BlockDim" in fields else 1
    return Normalize(float(fields.get("TargetRms", 1.0)), blocks, bool(fields.get("AddLogStddev", False)))


def _scale_and_offset(component: Component) -> ScaleOffset:
    fields = component.fields
    blocks = fields["Dim"] // len(fields["Scales"])
    return ScaleOffset(np.tile(fields["Scales"], blocks), np.tile(fields["Offsets"], blocks))


def _identity(component: Component) -> nn.Module:
    return nn.Identity()


ELEMENTWISE: dict[str, Callable[[Component], nn.Module]] = {
    "RectifiedLinearComponent": lambda c: nn.ReLU(),
    "SigmoidComponent": lambda c: nn.Sigmoid(),
    "TanhComponent": lambda c: nn.Tanh(),
    "SoftmaxComponent": lambda c: Softmax(log=False),
    "LogSoftmaxComponent": lambda c: Softmax(log=True),
    "BatchNormComponent": BatchNorm,
    # Unlike GeneralDropout's, its training did not scale what is left up, so inference scales down.
    "DropoutComponent": lambda c: ScaleOffset([1.0 - c.fields["DropoutProportion"]]),
    "GeneralDropoutComponent": _identity,
    "SpecAugmentTimeMaskComponent": _identity,
    "NoOpComponent": _identity,
    "ClipGradientComponent": _identity,
    "BackpropTruncationComponent": lambda c: (
        nn.Identity() if c.fields.get("Scale", 1.0) == 1.0 else ScaleOffset([c.fields["Scale"]])
    ),
    "PermuteComponent": lambda c: Permute(c.fields["ColumnMap"]),
    "FixedScaleComponent": lambda c: ScaleOffset(c.fields["Scales"]),
    "FixedBiasComponent": lambda c: ScaleOffset(None, c.fields["Bias"]),
    "PerElementScaleComponent": lambda c: ScaleOffset(c.fields["Params"]),
    "NaturalGradientPerElementScaleComponent": lambda c: ScaleOffset(c.fields["Params"]),
    "PerElementOffsetComponent": lambda c: ScaleOffset(None, c.fields["Offsets"]),
    "ScaleAndOffsetComponent": _scale_and_offset,
    "NormalizeComponent": _normalize,
    "SumBlockComponent": lambda c: SumBlocks(c.fields["InputDim"] // c.fields["OutputDim"], float(c.fields["Scale"])),
    "ConstantFunctionComponent": lambda c: Constant(c.fields["Output"]),
    "SumGroupComponent": lambda c: SumGroup(c.fields["Sizes"]),
    "ElementwiseProductComponent": lambda c: Product(c.fields["InputDim"] // c.fields["OutputDim"]),
    "PnormComponent": lambda c: Pnorm(c.fields["OutputDim"], 2.0),
    "LstmNonlinearityComponent": lambda c: LstmNonlinearity(c.fields["Params"]),
    "RepeatedAffineComponent": _blocks,
    "NaturalGradientRepeatedAffineComponent": _blocks,
    "BlockAffineComponent": _blocks,
}
"""Components that look at one frame at a time and hold no matrix over all channels."""

MATRICES = (
    "AffineComponent",
    "NaturalGradientAffineComponent",
    "LinearComponent",
    "FixedAffineComponent",
)
IN_TIME = ("TdnnComponent", "TimeHeightConvolutionComponent")


def offsets_of(component: Component) -> tuple[tuple[int, ...], frozenset[int]]:
    """(the times at which a component reads its input, those of them that count as zero where nothing is)."""
    if component.kind == "TdnnComponent":
        return tuple(int(t) for t in component.fields["TimeOffsets"]), frozenset()
    if component.kind == "TimeHeightConvolutionComponent":
        times = sorted({int(t) for t, _ in component.fields["Offsets"]})
        required = {int(t) for t in component.fields["RequiredTimeOffsets"]}
        return tuple(times), frozenset(set(times) - required)
    return (0,), frozenset()
