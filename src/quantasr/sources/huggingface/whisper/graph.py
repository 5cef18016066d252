"""Whisper's two parts as they are exported: the encoder, and one step of the decoder with its caches going in and out.

The layers are transformers' own, at their own paths; only what stands between them is written here, because
transformers' code holds its caches in objects and takes nothing but 30 s of audio.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class EncoderGraph(nn.Module):
    """``features`` ``[batch, time, bins]`` -> keys, then values, that each layer of the decoder attends to.

    ``time`` is even, and up to twice the number of positions: with less audio there are fewer frames, not more silence.
    Keys are ``[batch, heads, head_dim, frames]``, as the decoder multiplies with them, and values
    ``[batch, heads, frames, head_dim]``. They depend on the audio alone, so the decoder's projections of them run here,
    once.
    """

    def __init__(self, whisper: Any) -> None:
        """``whisper`` is a ``WhisperForConditionalGeneration``; modules keep the paths that they have in it."""
        super().__init__()
        self.model = whisper.model

    def encode(self, features: Tensor) -> Tensor:
        """The encoder's own output, ``[batch, frames, width]``."""
        encoder = self.model.encoder
        hidden = nn.functional.gelu(encoder.conv1(features.transpose(1, 2)))
        hidden = nn.functional.gelu(encoder.conv2(hidden)).transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        for layer in encoder.layers:
            hidden = layer(hidden, None)
        encoded: Tensor = encoder.layer_norm(hidden)
        return encoded

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        encoded = self.encode(features)
        keys, values = [], []
        for layer in self.model.decoder.layers:
            attention = layer.encoder_attn
            keys.append(_heads(attention, attention.k_proj(encoded)).transpose(2, 3))
            values.append(_heads(attention, attention.v_proj(encoded)))
        return *keys, *values


class DecoderGraph(nn.Module):
    """One step: ``tokens`` ``[batch, new]`` behind what the caches hold -> logits, longer caches, alignment.

    Arguments after ``tokens`` and ``rows`` are ``past_key``, ``past_value`` of every layer, then ``cross_key``,
    ``cross_value`` of every layer. The past is ``[batch, heads, past, head_dim]``, and may be empty; what is crossed to
    is the encoder's, and of one recording (batch 1) serves all beams. ``rows`` are the new positions whose logits,
    ``[batch, rows, vocabulary]``, are wanted: of a prompt mostly the last, and the vocabulary is most of the work.
    ``alignment``, ``[batch, heads, new, frames]``, is where the heads of ``alignment_heads`` (layer, head) look.
    """

    def __init__(self, whisper: Any, alignment_heads: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.model, self.proj_out = whisper.model, whisper.proj_out
        self._heads = {
            layer: [head for at, head in alignment_heads if at == layer]
            for layer in sorted({layer for layer, _ in alignment_heads})
        }

    def forward(self, tokens: Tensor, rows: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        """Logits, ``key`` and ``value`` of every layer, ``alignment``."""
        decoder = self.model.decoder
        count = len(decoder.layers)
        past, cross = caches[: 2 * count], caches[2 * count :]
        new, before = tokens.shape[1], past[0].shape[2]
        position = torch.arange(new, device=tokens.device) + before
        hidden = decoder.embed_tokens(tokens) + decoder.embed_positions.weight[position]
        # The new tokens do not see those behind them.
        hides = torch.arange(before + new, device=tokens.device)[None, :] > position[:, None]
        mask = torch.zeros_like(hides, dtype=hidden.dtype).masked_fill(hides, torch.finfo(hidden.dtype).min)
        grown, looks = [], []
        for i, layer in enumerate(decoder.layers):
            attention = layer.self_attn
            normed = layer.self_attn_layer_norm(hidden)
            key = torch.cat([past[2 * i], _heads(attention, attention.k_proj(normed))], dim=2)
            value = torch.cat([past[2 * i + 1], _heads(attention, attention.v_proj(normed))], dim=2)
            grown += [key, value]
            seen, _ = _attend(attention, normed, key.transpose(2, 3), value, mask)
            hidden = hidden + seen
            heard, weights = _attend(
                layer.encoder_attn, layer.encoder_attn_layer_norm(hidden), cross[2 * i], cross[2 * i + 1]
            )
            hidden = hidden + heard
            if i in self._heads:
                looks.append(_chosen(weights, self._heads[i]))
            inner = layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden)))
            hidden = hidden + layer.fc2(inner)
        logits = self.proj_out(decoder.layer_norm(hidden.index_select(1, rows)))
        return logits, *grown, torch.cat(looks, dim=1)


def _heads(attention: Any, x: Tensor) -> Tensor:
    """``[batch, time, width]`` -> ``[batch, heads, time, head_dim]``."""
    return x.reshape(*x.shape[:2], attention.num_heads, attention.head_dim).transpose(1, 2)


def _attend(
    attention: Any, hidden: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What ``hidden`` takes from ``value``, projected, and how much of each; ``key`` is ``[.., head_dim, frames]``."""
    query = _heads(attention, attention.q_proj(hidden) * attention.scaling)
    scores = torch.matmul(query, key)
    weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    seen = torch.matmul(weights, value).transpose(1, 2)
    out: Tensor = attention.out_proj(seen.reshape(*hidden.shape[:2], -1))
    return out, weights


def _chosen(weights: Tensor, heads: list[int]) -> Tensor:
    return weights if heads == list(range(weights.shape[1])) else weights[:, heads]
