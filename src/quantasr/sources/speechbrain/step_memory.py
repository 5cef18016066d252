"""What the steps of several decoders share: modules at their own paths, and attention by projections."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantasr.speech.seq2seq.states import StateSpec


def at_their_paths(root: nn.Module, modules: Iterable[nn.Module]) -> nn.Module:
    """A module that holds some of ``root``'s modules, and nothing else, at the paths that they have in ``root``.

    Then nodes of a trace carry the paths that recipes name.
    """
    paths = {id(part): path for path, part in root.named_modules()}
    tree = nn.Module()
    for module in modules:
        *above, last = paths[id(module)].split(".")
        place = tree
        for name in above:
            if name not in place._modules:
                place.add_module(name, nn.Module())
            place = place.get_submodule(name)
        place.add_module(last, module)
    return tree


def embed(embedding: Any, tokens: Tensor) -> Tensor:
    """``tokens`` by a ``NormalizedEmbedding``, SpeechBrain's ``Embedding`` or PyTorch's.

    SpeechBrain's cast ids to the type that they have, and OpenVINO then calls the graph's input by the cast's name.
    """
    if hasattr(embedding, "d_model"):
        return embed(embedding.emb, tokens) * math.sqrt(embedding.d_model)
    found: Tensor = getattr(embedding, "Embedding", embedding)(tokens)
    return found


def project(attention: Any, name: str, x: Tensor) -> Tensor:
    """``x`` by one of the projections ``q_proj``, ``k_proj``, ``v_proj`` of an ``nn.MultiheadAttention``.

    They are layers once the model is made exportable.
    """
    layer = getattr(attention, name, None)
    if layer is not None:
        found: Tensor = layer(x)
        return found
    rows = slice((i := "qkv".index(name[0])) * attention.embed_dim, (i + 1) * attention.embed_dim)
    bias = None if attention.in_proj_bias is None else attention.in_proj_bias[rows]
    return F.linear(x, attention.in_proj_weight[rows], bias)


def remember(attention: Any, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """``keys`` ``[rows, heads, steps, size]`` and ``values`` ``[rows, heads, size, steps]`` with one step more.

    Of ``x``, ``[rows, 1, width]``.
    """
    shape = (-1, attention.num_heads, attention.head_dim)
    new = [project(attention, name, x).reshape(shape) for name in ("k_proj", "v_proj")]
    return torch.cat([keys, new[0].unsqueeze(2)], dim=2), torch.cat([values, new[1].unsqueeze(3)], dim=3)


def attend(attention: Any, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
    """Self-attention of one step ``[rows, 1, width]`` to what :func:`remember` gives.

    The products are turned round, with steps in rows. As they are written elsewhere, OpenVINO 2026.4 fuses them into a
    kernel that is wrong in all runs of 16 steps and more after a first run of one.
    """
    queries = project(attention, "q_proj", x) * attention.head_dim**-0.5
    scores = keys @ queries.reshape(-1, attention.num_heads, attention.head_dim, 1)
    scores = scores if bias is None else scores + bias[:, None, :, None]
    found = values @ torch.softmax(scores, dim=2)
    out: Tensor = attention.out_proj(found.reshape(-1, 1, attention.embed_dim))
    return out


def cache(attention: Any, name: str) -> dict[str, StateSpec]:
    """What :func:`remember` begins with, by the names ``keys_<name>`` and ``values_<name>``."""
    heads, size = attention.num_heads, attention.head_dim
    return {f"keys_{name}": StateSpec((heads, 0, size)), f"values_{name}": StateSpec((heads, size, 0))}
