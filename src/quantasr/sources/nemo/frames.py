"""How many frames the layers of NeMo's encoders make of so many."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def frame_counts(encoder: Any, lengths: Tensor) -> Tensor:
    """Frames of log-probs, ``[batch]``, for rows of features; ``encoder`` is a ConvASREncoder or a ConformerEncoder."""
    if not hasattr(encoder, "pre_encode"):
        for block in encoder.encoder:
            for layer in block.mconv:
                if type(layer).__name__ == "MaskedConv1d":
                    lengths = layer.get_seq_len(lengths)
        return lengths
    lengths = _subsampled(encoder.pre_encode, lengths)
    return lengths if encoder.reduction_position is None else _subsampled(encoder.reduction_subsampling, lengths)


def convolved(layer: Any, lengths: Tensor) -> Tensor:
    """Frames behind a two-dimensional convolution or pooling over ``[time, bins]``, which may have a stride."""
    if getattr(layer, "stride", (1, 1)) == (1, 1):
        return lengths
    # What pads by itself, or not on both sides alike, says so.
    uneven = hasattr(layer, "_left_padding")
    padded = layer._left_padding + layer._right_padding if uneven else 2 * layer.padding[0]
    return strided(lengths + padded, layer.kernel_size[0], layer.stride[0])


def convolved_in_time(subsampling: Any, layer: Any, lengths: Tensor) -> Tensor:
    """Frames behind a layer of a subsampling with one-dimensional convolutions."""
    if getattr(layer, "stride", (1,)) == (1,):
        return lengths
    padded = lengths + subsampling._left_padding + subsampling._right_padding
    return strided(padded, subsampling._kernel_size, subsampling._stride)


def stacked(subsampling: Any, lengths: Tensor) -> Tensor:
    """Frames behind stacking; last ones that fill no stack are left out."""
    return torch.div(lengths, subsampling.subsampling_factor, rounding_mode="floor")


def strided(lengths: Tensor, kernel: int, stride: int) -> Tensor:
    """Windows of ``kernel`` frames, every ``stride``, in padded ``lengths``."""
    return torch.div(lengths - kernel, stride, rounding_mode="floor") + 1


def _subsampled(part: Any, lengths: Tensor) -> Tensor:
    if isinstance(part, nn.Linear):
        return lengths
    if hasattr(part, "reduction_enc"):
        if part.reduction == "striding":
            return _subsampled(part.reduction_enc, lengths)
        for _ in range(part._sampling_num):
            lengths = strided(lengths, part.kernel_size, part.stride)
        return lengths
    if type(part).__name__ == "StackingSubsampling":
        return stacked(part, lengths)
    for layer in part.conv:
        flat = part.conv2d_subsampling
        lengths = convolved(layer, lengths) if flat else convolved_in_time(part, layer, lengths)
    return lengths
