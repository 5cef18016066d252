"""Parts of Transformers' models computed in another way, with the same result, for quantization's and speed's sake."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def rewrite(module: nn.Module) -> None:
    """Give every part that has a better way its own ``forward``; weights and module paths stay as they are."""
    for found in module.modules():
        part: Any = found
        name = type(part).__name__
        if name == "WavLMAttention":
            part.torch_multi_head_self_attention = partial(_wavlm_attention, part)
        elif name.endswith("GroupNormConvLayer") and part.layer_norm.num_groups == part.layer_norm.num_channels:
            part.forward = partial(_group_norm_layer, part)
        elif name == "Wav2Vec2BertSelfAttention" and part.position_embeddings_type == "relative_key":
            part.forward = partial(_relative_key_attention, part)
        elif name == "Wav2Vec2BertRotaryPositionalEmbedding":
            part.forward = partial(_rotary_embedding, part)
        elif name == "Wav2Vec2BertRelPositionalEmbedding":
            part.forward = partial(_relative_embedding, part)


def _group_norm_layer(layer: Any, hidden_states: Tensor) -> Tensor:
    """First convolution with its group norm (one group a channel), as one scale and shift of each channel.

    The norm's own operator makes engines bring 64 MB for 10 s of audio into another layout and back. Two sums over
    time and one multiply-add, which fuses with the activation and the next quantizer, took 15 of 237 ms off
    wav2vec2-base on OpenVINO. ``[batch, channels, time]``; var = E[x^2] - E[x]^2, safe because the convolution of a
    normalised wave has nearly no mean.
    """
    hidden = layer.conv(hidden_states)
    norm = layer.layer_norm
    mean = hidden.mean(-1, keepdim=True)
    square = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True) ** 2 / hidden.shape[-1]
    gain = torch.rsqrt(torch.clamp(square - mean * mean, min=0.0) + norm.eps) * norm.weight[:, None]
    activated: Tensor = layer.activation(hidden * gain + (norm.bias[:, None] - mean * gain))
    return activated


def _wavlm_attention(
    attention: Any, hidden_states: Tensor, attention_mask: Tensor | None, gated_position_bias: Tensor
) -> tuple[Tensor, None]:
    """WavLM's attention, calling its projections instead of handing their weights to one fused function.

    A layer that is never called has no input that could be quantized. The arithmetic is that of
    ``F.multi_head_attention_forward`` with separate projections.
    """
    batch, frames, width = hidden_states.shape
    heads, size = attention.num_heads, attention.head_dim

    def split(x: Tensor) -> Tensor:
        return x.reshape(batch, frames, heads, size).transpose(1, 2)

    q = split(attention.q_proj(hidden_states) * size**-0.5)
    k, v = split(attention.k_proj(hidden_states)), split(attention.v_proj(hidden_states))
    scores = torch.matmul(q, k.transpose(2, 3)) + gated_position_bias.reshape(batch, heads, frames, frames)
    if attention_mask is not None:
        scores = scores.masked_fill(attention_mask.ne(1)[:, None, None, :], torch.finfo(scores.dtype).min)
    context = torch.matmul(torch.softmax(scores, dim=-1), v)
    return attention.out_proj(context.transpose(1, 2).reshape(batch, frames, width)), None


def _relative_key_attention(
    attention: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any
) -> tuple[Tensor, None]:
    """Wav2Vec2-BERT's attention with ``relative_key`` positions (Shaw et al., arXiv 1803.02155).

    transformers multiplies each query with an embedding for every pair of frames, ``[frames, frames, head_size]``.
    There are only a few different distances, so here each query meets every distance once, and every pair of frames
    picks its product: at 500 frames 3 instead of 20 ms a layer on OpenVINO, 11 instead of 23 on ONNX Runtime.
    """
    batch, frames, width = hidden_states.shape
    heads, size = attention.num_heads, attention.head_size

    def split(x: Tensor) -> Tensor:
        return x.reshape(batch, frames, heads, size).transpose(1, 2)

    q, k, v = (split(f(hidden_states)) for f in (attention.linear_q, attention.linear_k, attention.linear_v))
    left, right = attention.left_max_position_embeddings, attention.right_max_position_embeddings
    position = torch.arange(frames, device=q.device)
    distance = torch.clamp(position[None, :] - position[:, None], -left, right) + left
    by_distance = torch.matmul(q, attention.distance_embedding.weight.transpose(0, 1))
    # Rows of all distances laid end to end: one list of indices serves every head and every recording.
    pairs = (distance + position[:, None] * (left + right + 1)).reshape(-1)
    bias = by_distance.reshape(batch, heads, -1).index_select(2, pairs).reshape(batch, heads, frames, frames)

    scores = torch.matmul(q, k.transpose(2, 3)) * attention.scaling + bias * attention.scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    context = torch.matmul(torch.softmax(scores, dim=-1), v)
    return attention.linear_out(context.transpose(1, 2).reshape(batch, frames, width)), None


def _rotary_embedding(embedding: Any, hidden_states: Tensor) -> Tensor:
    """Rotary positions without transformers' cache, which a trace would freeze at one length."""
    position = torch.arange(hidden_states.shape[1], device=hidden_states.device).to(embedding.inv_freq.dtype)
    angles = (position[:, None] * embedding.inv_freq).repeat(1, 2)[:, None, None, :]
    return torch.stack([angles.cos(), angles.sin()]).to(hidden_states.dtype)


def _relative_embedding(embedding: Any, hidden_states: Tensor) -> Tensor:
    """Sinusoids of all distances, ``[1, 2 * frames - 1, width]``, the largest first (Transformer-XL).

    transformers keeps a table of ``max_source_positions``; computed, they need no 40 MB in the file and end nowhere.
    """
    frames, width = hidden_states.shape[1], embedding.d_model
    distance = torch.arange(2 * frames - 1, device=hidden_states.device) - (frames - 1)
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=hidden_states.device)
    rate = torch.exp(exponents * -(torch.log(torch.tensor(10000.0)) / width))
    angles = -distance.to(torch.float32)[:, None] * rate
    return torch.stack([angles.sin(), angles.cos()], dim=-1).reshape(1, 2 * frames - 1, width)
