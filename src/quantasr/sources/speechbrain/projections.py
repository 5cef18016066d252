"""PyTorch's ``nn.MultiheadAttention`` with projections that are layers, so that they can be quantized.

As it is written it hands all its weights to one function, and none of its layers is ever called. In a Transformer's
decoder the projections of what the encoder gave are computed anew for every token.
"""

from __future__ import annotations

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
        bias = _bias(key_padding_mask, attn_mask, q)
        weights = None
        if need_weights:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            weights = torch.softmax(scores if bias is None else scores + bias, dim=-1)
            weights = F.dropout(weights, self.dropout, self.training)
            found = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            found = F.scaled_dot_product_attention(q, k, v, bias, self.dropout if self.training else 0.0)
        out = self.out_proj(found.transpose(1, 2).flatten(-2))
        out = out if self.batch_first else out.transpose(0, 1)
        if not batched:
            out = out.squeeze(0 if self.batch_first else 1)
            weights = None if weights is None else weights.squeeze(0)
        return out, weights

    def _heads(self, name: str, x: Tensor) -> Tensor:
        """``[batch, heads, time, size]`` of a projection."""
        projected: Tensor = getattr(self, name)(x)
        if not self.batch_first:
            projected = projected.transpose(0, 1)
        return projected.reshape(*projected.shape[:-1], self.num_heads, -1).transpose(1, 2)


def _bias(padding: Tensor | None, mask: Tensor | None, q: Tensor) -> Tensor | None:
    """Both masks as one sum, of a shape that fits ``[batch, heads, queries, keys]``."""
    total = None
    for given, shape in ((mask, None), (padding, (len(q), 1, 1, -1))):
        if given is None:
            continue
        one = (
            torch.zeros_like(given, dtype=q.dtype).masked_fill(given, float("-inf"))
            if given.dtype == torch.bool
            else given
        )
        if shape is not None:
            one = one.view(shape)
        elif one.ndim == 3:
            one = one.view(len(q), -1, *one.shape[1:])
        total = one if total is None else total + one
    return total


def project_attention(module: nn.Module) -> None:
    """Give every plain ``nn.MultiheadAttention`` in ``module`` projections that are layers; in place."""
    for part in list(module.modules()):
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
