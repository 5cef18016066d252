"""Attention whose projections are layers, so that they can be quantized: PyTorch's, and a Conformer's in SpeechBrain.

As they are written their weights are handed to functions, and no layer is ever called. In a Transformer's decoder
SpeechBrain computes the projections of what the encoder gave anew for every token.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_NAMES = ("q_proj", "k_proj", "v_proj")


class ProjectedAttention(nn.MultiheadAttention):
    """The same attention, of the same weights, up to the rounding of floats; ``in_proj_weight`` is put together."""

    @property
    def in_proj_weight(self) -> Tensor:  # type: ignore[override]
        """Weights of the three projections, ``[3 * embed_dim, embed_dim]``."""
        return torch.cat([getattr(self, name).weight for name in _NAMES])

    @property
    def in_proj_bias(self) -> Tensor | None:  # type: ignore[override]
        """Their biases, ``[3 * embed_dim]``."""
        biases = [getattr(self, name).bias for name in _NAMES]
        return None if biases[0] is None else torch.cat(biases)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention``'s own."""
        batched = query.ndim == 3
        if not batched:
            query, key, value = (x.unsqueeze(0 if self.batch_first else 1) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        q, k, v = (self._heads(name, x) for name, x in zip(_NAMES, (query, key, value), strict=True))
        bias = _bias(key_padding_mask, attn_mask, query.shape[0 if self.batch_first else 1], self.num_heads, q)
        scores = q.transpose(0, 1) * q.shape[-1] ** -0.5
        keys = k.permute(1, 2, 0)
        # In three dimensions nothing has to be copied before the products.
        scores = torch.bmm(scores, keys) if bias is None else torch.baddbmm(bias, scores, keys)
        attention = F.dropout(torch.softmax(scores, dim=-1), self.dropout, self.training)
        found = torch.bmm(attention, v.transpose(0, 1)).transpose(0, 1)
        out = self.out_proj(found.reshape(q.shape[0], -1, self.embed_dim))
        out = out.transpose(0, 1) if self.batch_first else out
        weights = None
        if need_weights:
            weights = attention.view(-1, self.num_heads, *attention.shape[1:])
            weights = weights.mean(1) if average_attn_weights else weights
        if not batched:
            out = out.squeeze(0 if self.batch_first else 1)
            weights = None if weights is None else weights.squeeze(0)
        return out, weights

    def _heads(self, name: str, x: Tensor) -> Tensor:
        """``[time, batch * heads, size]`` of a projection."""
        projected: Tensor = getattr(self, name)(x)
        if self.batch_first:
            projected = projected.transpose(0, 1)
        return projected.reshape(projected.shape[0], -1, self.embed_dim // self.num_heads)


def _bias(padding: Tensor | None, mask: Tensor | None, batch: int, heads: int, q: Tensor) -> Tensor | None:
    """Both masks as one sum, ``[batch * heads, queries, keys]`` or what is broadcast to it."""
    total = None if mask is None else _added(mask, q)
    if padding is not None:
        one = _added(padding, q)[:, None, None].expand(batch, heads, 1, -1).reshape(batch * heads, 1, -1)
        total = one if total is None else total + one
    return total


def _added(mask: Tensor, q: Tensor) -> Tensor:
    """A mask as what is added to scores."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, float("-inf"))


def project_attention(module: nn.Module) -> None:
    """Give every ``nn.MultiheadAttention`` and ``RelPosMHAXL`` in ``module`` projections that are layers; in place."""
    for part in list(module.modules()):
        if type(part).__name__ == "RelPosMHAXL":
            _project_relative(part)
        if type(part) is not nn.MultiheadAttention or not part._qkv_same_embed_dim:
            continue
        if part.bias_k is not None or part.add_zero_attn:
            continue
        weight, bias = part._parameters.pop("in_proj_weight"), part._parameters.pop("in_proj_bias")
        assert weight is not None
        part.__class__ = ProjectedAttention
        for i, name in enumerate(_NAMES):
            part.add_module(name, _linear(weight, bias, i, part.embed_dim))


def _linear(weight: Tensor, bias: Tensor | None, i: int, size: int) -> nn.Linear:
    rows = slice(i * size, (i + 1) * size)
    layer: Any = nn.Linear(size, size, bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach()[rows], requires_grad=weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach()[rows], requires_grad=bias.requires_grad)
    return layer.eval()  # type: ignore[no-any-return]


@cache
def _relative() -> Any:
    """SpeechBrain's ``RelPosMHAXL`` with a layer ``in_proj``."""
    from speechbrain.nnet.attention import RelPosMHAXL  # type: ignore[import-untyped,unused-ignore]

    class ProjectedRelativeAttention(RelPosMHAXL):  # type: ignore[misc,unused-ignore]
        """The same attention with relative positions (arXiv 1901.02860), of the same weights."""

        @property
        def in_proj_weight(self) -> Tensor:
            """``[3 * embed_dim, embed_dim]``."""
            weight: Tensor = self.in_proj.weight
            return weight

        def forward(
            self,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            pos_embs: Tensor,
            key_padding_mask: Tensor | None = None,
            attn_mask: Tensor | None = None,
            return_attn_weights: bool = True,
        ) -> Any:
            """As ``RelPosMHAXL``'s own, ``[batch, time, size]``; of three tensors that are not one it is that."""
            if query is not key or key is not value:
                return super().forward(
                    query, key, value, pos_embs, key_padding_mask, attn_mask, return_attn_weights=return_attn_weights
                )
            shape = (query.shape[0], -1, self.num_heads, 3 * self.head_dim)
            q, k, v = self.in_proj(query).reshape(shape).transpose(1, 2).chunk(3, dim=-1)
            v = v if self.vbias is None else v + self.value_bias_weight.view(1, self.num_heads, 1, -1)
            places = self.linear_pos(pos_embs).reshape(1, -1, self.num_heads, self.head_dim).permute(0, 2, 3, 1)
            # As SpeechBrain lays the biases out, and as it scales: by the whole width.
            bias_u, bias_v = (bias.view(1, self.num_heads, 1, -1) for bias in (self.pos_bias_u, self.pos_bias_v))
            scores = ((q + bias_u) * self.scale) @ k.transpose(-1, -2)
            scores = scores + self.rel_shift(((q + bias_v) * self.scale) @ places)
            if attn_mask is not None:
                masks = _added(attn_mask, scores)
                scores = scores + (masks if masks.ndim == 2 else masks.view(-1, self.num_heads, *masks.shape[1:]))
            if key_padding_mask is not None:
                scores = scores + _added(key_padding_mask, scores)[:, None, None]
            attention = self.dropout_att(torch.softmax(scores, dim=-1))
            found = (attention @ v).transpose(1, 2).reshape(query.shape[0], -1, self.vdim)
            out = self.out_proj(found)
            return (out, attention) if return_attn_weights else out

    return ProjectedRelativeAttention


def _project_relative(part: Any) -> None:
    if part._qkv_same_embed_dim:
        weight = part._parameters.pop("in_proj_weight")
        part.__class__ = _relative()
        layer: Any = nn.Linear(part.embed_dim, 3 * part.embed_dim, False, device="meta")
        layer.weight = weight
        part.add_module("in_proj", layer.eval())
