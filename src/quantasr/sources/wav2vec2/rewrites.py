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
        elif name.endswith("FeatureEncoder") and type(part.conv_layers[0]).__name__.endswith("GroupNormConvLayer"):
            _rewrite_feature_encoder(part)
        elif name == "Wav2Vec2BertSelfAttention" and part.position_embeddings_type == "relative_key":
            part.forward = partial(_relative_key_attention, part)
        elif name == "Wav2Vec2BertRotaryPositionalEmbedding":
            part.forward = partial(_rotary_embedding, part)
        elif name == "Wav2Vec2BertRelPositionalEmbedding":
            part.forward = partial(_relative_embedding, part)


def _rewrite_feature_encoder(encoder: Any) -> None:
    """Feature encoder with one group norm: 2-d convolutions of height 1, the norm as a scale and a shift.

    OpenVINO keeps a 2-d convolution's output with the channels innermost and can sum over time in that layout; in
    1-d, and for the norm's own operator, it brings 32 MB for 10 s of audio into another layout and back. On
    wav2vec2-base, 10 s, one thread: 237 ms with the norm's operator, 222 with sums in 1-d, 212 in 2-d.
    """
    encoder.forward = partial(_feature_encoder, encoder)
    encoder.conv_layers[0].forward = partial(_group_norm_layer, encoder.conv_layers[0])
    for layer in encoder.conv_layers:
        # The module is still what is called, so its input and weight still meet their quantizers.
        layer.conv._conv_forward = partial(_flat_convolution, layer.conv)


def _feature_encoder(encoder: Any, input_values: Tensor) -> Tensor:
    """``[batch, samples]`` -> ``[batch, channels, frames]``."""
    hidden = input_values[:, None, None, :]
    for layer in encoder.conv_layers:
        hidden = layer(hidden)
    return hidden.squeeze(2)


def _flat_convolution(conv: nn.Conv1d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1-d convolution over the last axis of ``[batch, channels, 1, time]``."""
    stride, padding, dilation = (1, *conv.stride), (0, *conv.padding), (1, *conv.dilation)
    return nn.functional.conv2d(x, weight.unsqueeze(2), bias, stride, padding, dilation, conv.groups)


def _group_norm_layer(layer: Any, hidden_states: Tensor) -> Tensor:
    """First convolution and its group norm, a group for each channel, of ``[batch, channels, 1, time]``.

    var = E[x^2] - E[x]^2 is safe here because the convolution of a normalised wave has nearly no mean.
    """
    hidden = layer.conv(hidden_states)
    norm = layer.layer_norm
    if not torch.onnx.is_in_onnx_export():
        # In PyTorch it is the other way round: 20 ms for the norm's own operator, 42 to 81 for sums.
        at_once: Tensor = layer.activation(norm(hidden))
        return at_once
    mean = hidden.mean(-1, keepdim=True)
    square = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True) ** 2 / hidden.shape[-1]
    gain = torch.rsqrt(torch.clamp(square - mean * mean, min=0.0) + norm.eps) * norm.weight[:, None, None]
    activated: Tensor = layer.activation(hidden * gain + (norm.bias[:, None, None] - mean * gain))
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
    weights = nn.functional.dropout(torch.softmax(scores, dim=-1), attention.dropout, attention.training)
    context = torch.matmul(weights, v)
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
    context = torch.matmul(attention.dropout(torch.softmax(scores, dim=-1)), v)
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
