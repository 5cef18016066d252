"""NeMo's Conformer and FastConformer encoders, computed in a way that can be traced at any length and runs fast."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from quantasr.sources.nemo.flat import batch_norm, flat_convolution
from quantasr.sources.nemo.frames import convolved

_MASKED = -1e4
"""What NeMo puts in place of masked scores; its exponential is 0 in every float type."""


def rewrite_conformer(encoder: Any) -> None:
    """Give an encoder and its parts their own ``forward``; weights, paths and results stay as they are.

    NeMo keeps the encodings of 10,000 positions in a buffer, which a trace would store in the graph, chooses between
    paths by the length at hand, and masks with selections that cost more than products and sums.
    """
    encoder.forward = partial(_encoder, encoder)
    for part in encoder.modules():
        name = type(part).__name__
        if name == "ConvSubsampling" and part.conv2d_subsampling:
            part.forward = partial(_convolutional_subsampling, part)
        elif name == "ConformerLayer" and part.self_attention_model == "rel_pos_local_attn":
            part.self_attention_model = (
                "rel_pos"  # so that its attention is given the bias, which leaves out what is far
            )
        elif name == "ConformerConvolution":
            _rewrite_convolution(part)
        elif hasattr(part, "linear_q"):
            part.forward = partial(_attention, part)


def within(lengths: Tensor, size: int) -> Tensor:
    """Boolean ``[batch, size]``: which positions are before the end of their row."""
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


def _encoder(encoder: Any, audio_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """``[batch, bins, frames]`` -> ``[batch, width, frames']``, and how many frames of each row are speech."""
    x = audio_signal.transpose(1, 2)
    if isinstance(encoder.pre_encode, nn.Linear):
        x = encoder.pre_encode(x)
    else:
        x, length = encoder.pre_encode(x=x, lengths=length)
    if encoder.pos_enc.xscale:
        x = x * encoder.pos_enc.xscale
    context = _context(encoder)
    positions, bias, valid = _surroundings(encoder, x, length, context)
    if encoder.self_attention_model == "abs_pos":
        x = x + positions
    x = encoder.pos_enc.dropout(x)
    for index, (layer, probability) in enumerate(zip(encoder.layers, encoder.layer_drop_probs, strict=True)):
        before, x = x, layer(x=x, att_mask=bias, pos_emb=positions, pad_mask=valid)
        if encoder.training and probability > 0:
            x = _drop_layer(before, x, probability)
        if encoder.reduction_position == index:
            x, length = encoder.reduction_subsampling(x=x, lengths=length)
            positions, bias, valid = _surroundings(encoder, x, length, context)
    if encoder.out_proj is not None:
        x = encoder.out_proj(x)
    if encoder.reduction_position == -1:
        x, length = encoder.reduction_subsampling(x=x, lengths=length)
    return x.transpose(1, 2), length.to(torch.int64)


def _context(encoder: Any) -> list[int]:
    """Frames to the left and to the right that attention sees; in training drawn anew, if there are several."""
    if encoder.training and len(encoder.att_context_size_all) > 1:
        return list(random.choices(encoder.att_context_size_all, weights=encoder.att_context_probs)[0])
    return list(encoder.att_context_size)


def _drop_layer(before: Tensor, after: Tensor, probability: float) -> Tensor:
    """Stochastic depth (arXiv 2102.03216), by a product, so that every weight has a gradient whatever is drawn."""
    if torch.rand(1) < probability:
        return after * 0.0 + before
    return (after - before) / (1.0 - probability) + before


def _surroundings(encoder: Any, x: Tensor, length: Tensor, context: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """What each layer is told of its frames: encodings of positions, bias of scores, 1 for speech.

    The bias is ``[batch, 1, 1 or frames, frames]``, the mask of speech ``[batch, 1, 1, frames]``.
    """
    frames = x.shape[1]
    width = encoder.pos_enc.d_model
    time = torch.arange(frames, dtype=torch.float32, device=x.device)
    if encoder.self_attention_model == "abs_pos":
        positions = _sinusoids(time, width)
    else:  # from the farthest before a frame to the farthest behind it
        distances = torch.arange(2 * frames - 1, dtype=torch.float32, device=x.device)
        positions = _sinusoids((frames - 1) - distances, width)
    if encoder.pos_enc.dropout_emb is not None:
        positions = encoder.pos_enc.dropout_emb(positions)
    valid = within(length, frames)
    bias = (~valid)[:, None, None].to(x.dtype) * _MASKED
    unseen = _unseen(encoder, time, context)
    if unseen is not None:
        bias = torch.minimum(bias, unseen.to(x.dtype) * _MASKED)
    return positions, bias, valid[:, None, None].to(x.dtype)


def _sinusoids(positions: Tensor, width: int) -> Tensor:
    """``[1, positions, width]``: sines and cosines in turns (Vaswani et al., arXiv 1706.03762, section 3.5).

    A cosine is a sine a quarter turn ahead: so they need not be woven together.
    """
    device = positions.device
    rates = torch.exp(torch.arange(0, width, 2, dtype=torch.float32, device=device) * -(math.log(-_MASKED) / width))
    ahead = torch.tensor([0.0, math.pi / 2], device=device).repeat(width // 2)
    return torch.sin(positions[:, None] * rates.repeat_interleave(2) + ahead)[None]


def _unseen(encoder: Any, time: Tensor, context: Sequence[int]) -> Tensor | None:
    """Boolean ``[frames, frames]``: what a frame (row) may not look at; None where it may look at everything."""
    if all(size < 0 for size in context):
        return None
    ahead = time[None, :] - time[:, None]
    if encoder.self_attention_model == "rel_pos_local_attn" or encoder.att_context_style == "regular":
        left, right = context
        unseen = torch.zeros_like(ahead, dtype=torch.bool)
        if left >= 0:
            unseen = unseen | (ahead < -left)
        return unseen | (ahead > right) if right >= 0 else unseen
    if encoder.att_context_style == "chunked_limited":
        left, right = context
        if right == -1:
            return ahead < -left
        chunk = torch.floor(time / (right + 1))
        chunks = chunk[:, None] - chunk[None, :]
        # 10000 chunks back is what NeMo calls everything.
        return (chunks < 0) | (chunks > (left // (right + 1) if left >= 0 else 10000))
    left, size, right = context  # chunked_limited_with_rc
    start = torch.floor(time / size)[:, None] * size
    return (time[None, :] < start - left) | (time[None, :] > start + size - 1 + right)


def _convolutional_subsampling(part: Any, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """``[batch, frames, bins]`` -> ``[batch, frames', width]``; masked where a convolution can see padding."""
    x = x[:, None]
    for layer in part.conv:
        if getattr(layer, "kernel_size", (1, 1)) != (1, 1):
            x = x * within(lengths, x.shape[2])[:, None, :, None].to(x.dtype)
        x = layer(x)
        lengths = convolved(layer, lengths)
    return part.out(x.transpose(1, 2).flatten(2)), lengths


def _attention(
    part: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    pos_emb: Tensor | None = None,
    cache: None = None,
) -> Tensor:
    """Attention, with relative positions where the layer has them (Dai et al., arXiv 1901.02860, section 3.3).

    ``mask`` is a bias of the scores. Local attention is full attention whose bias leaves out what is far: windows are
    short enough.
    """
    frames = mask.shape[-1]  # asking what is quantized for its shape would be one reader more
    scale = 1.0 / part.s_d_k
    # Before they are parted by heads, the scale and the bias are the last steps of the projection's kernel.
    q = part.linear_q(query) * scale
    k = _by_head(part.linear_k(key), frames, part).permute(0, 2, 3, 1)
    v = _by_head(part.linear_v(value), frames, part).transpose(1, 2)
    if hasattr(part, "linear_pos"):
        p = _by_head(part.linear_pos(pos_emb), 2 * frames - 1, part).permute(0, 2, 3, 1)
        toward = _by_head(q + part.pos_bias_u.reshape(-1) * scale, frames, part).transpose(1, 2)
        along = _by_head(q + part.pos_bias_v.reshape(-1) * scale, frames, part).transpose(1, 2)
        scores = toward @ k + _shifted(along @ p)
    else:
        scores = _by_head(q, frames, part).transpose(1, 2) @ k
    weights = torch.softmax(scores + mask, -1)
    if part.training:
        weights = part.dropout(weights)
    out = weights @ v
    return part.linear_out(out.transpose(1, 2).reshape(-1, frames, part.h * part.d_k))  # type: ignore[no-any-return]


def _by_head(x: Tensor, frames: int, part: Any) -> Tensor:
    """``[batch, frames, width]`` -> ``[batch, frames, heads, size]``."""
    return x.reshape(-1, frames, part.h, part.d_k)


def _shifted(x: Tensor) -> Tensor:
    """Scores by distance, ``[..., frames, 2 frames - 1]``, to scores by frame, ``[..., frames, frames]``.

    Row ``i`` moves left by ``frames - 1 - i``. Read off as one string of numbers from the first row's middle on, rows
    that are one shorter begin where they should.
    """
    batch, heads, frames, distances = x.shape
    flat = x.reshape(batch, heads, frames * distances)[..., frames - 1 : -1]
    return flat.reshape(batch, heads, frames, 2 * frames - 2)[..., :frames]


def _rewrite_convolution(part: Any) -> None:
    part.forward = partial(_convolution, part)
    if part.norm_type == "batch_norm":
        part.batch_norm.forward = partial(batch_norm, part.batch_norm)
        for conv in (part.pointwise_conv1, part.depthwise_conv, part.pointwise_conv2):
            conv._conv_forward = partial(flat_convolution, conv)


def _convolution(part: Any, x: Tensor, pad_mask: Tensor, cache: None = None) -> Tensor:
    """The convolution module on ``[batch, frames, width]``; ``pad_mask`` is 1 for speech."""
    flat = part.norm_type == "batch_norm"
    x, mask = (x.unsqueeze(1).permute(0, 3, 1, 2), pad_mask) if flat else (x.transpose(1, 2), pad_mask[:, 0])
    x = part.pointwise_conv1(x)
    x = functional.glu(x, 1) if part.pointwise_activation == "glu_" else part.pointwise_activation(x)
    x = part.depthwise_conv(x * mask)
    over_channels = part.norm_type == "layer_norm"
    x = part.batch_norm(x.transpose(1, 2)).transpose(1, 2) if over_channels else part.batch_norm(x)
    x = part.pointwise_conv2(part.activation(x))
    # With the channels innermost, as they are, this order of the axes moves nothing.
    return x.permute(0, 2, 3, 1).flatten(1, 2) if flat else x.transpose(1, 2)
