"""One step of SpeechBrain's Transformer decoder, with the keys and values of the steps before kept.

SpeechBrain itself decodes the whole prefix anew for each token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quantasr.errors import ModelLoadError
from quantasr.sources.speechbrain.step_memory import at_their_paths, attend, cache, embed, project, remember
from quantasr.speech.seq2seq.states import FRAMES, StateSpec


class TransformerMemory(nn.Module):
    """Keys ``[heads, size, frames]`` and values ``[heads, frames, size]`` of ``encoded``, for each layer."""

    def __init__(self, mods: nn.Module, searcher: Any) -> None:
        super().__init__()
        attentions = _cross_attentions(searcher)
        self.mods = at_their_paths(mods, _projections(attentions, "k_proj", "v_proj"))
        self.__dict__["_attentions"] = attentions
        self.names = tuple(f"memory_{kind}_{i}" for i in range(len(attentions)) for kind in ("keys", "values"))
        self.axes = {name: {2 if "keys" in name else 1: FRAMES} for name in self.names}

    def forward(self, encoded: Tensor) -> tuple[Tensor, ...]:
        """``encoded`` ``[1, frames, width]`` -> those of :attr:`names`."""
        attentions: Any = self._attentions
        found = []
        for attention in attentions:
            for name, order in (("k_proj", (1, 2, 0)), ("v_proj", (1, 0, 2))):
                projected = project(attention, name, encoded)[0]
                found.append(projected.reshape(-1, attention.num_heads, attention.head_dim).permute(order))
        return tuple(found)


class TransformerStep(nn.Module):
    """``tokens`` ``[rows]``, memory and states -> log-probs, perhaps attention, and states.

    States are the :func:`cache` of each layer.
    """

    def __init__(self, where: str, mods: nn.Module, searcher: Any, gives_attention: bool) -> None:
        super().__init__()
        model = searcher.model
        self._positions = _decoder_positions(model)
        held = [model.decoder, model.custom_tgt_module, searcher.fc]
        self.mods = at_their_paths(mods, held + ([] if self._positions is None else [self._positions]))
        self.__dict__["_searcher"] = searcher
        for layer in model.decoder.layers:
            for attention in (layer.self_attn.att, layer.multihead_attn.att):
                _check(where, attention)
        self.states: dict[str, StateSpec] = {}
        for i, layer in enumerate(model.decoder.layers):
            self.states |= cache(layer.self_attn.att, str(i))
        self.gives_attention = gives_attention
        self.outputs = ("logprobs", "attention") if gives_attention else ("logprobs",)
        self.max_tokens = None if self._positions is None else int(self._positions.pe.shape[1])

    def forward(self, tokens: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """``rest``: those of :attr:`TransformerMemory.names`, then the states."""
        searcher: Any = self._searcher
        model = searcher.model
        layers = model.decoder.layers
        memory, states = rest[: 2 * len(layers)], rest[2 * len(layers) :]
        (embedding,) = model.custom_tgt_module.layers
        x = embed(embedding, tokens.unsqueeze(1))
        if self._positions is not None:
            steps = states[0].shape[2]
            x = x + self._positions.pe[:, steps : steps + 1]
        found = []
        for i, layer in enumerate(layers):
            x, weights, *state = _layer(layer, x, memory[2 * i : 2 * i + 2], (states[2 * i], states[2 * i + 1]))
            found += state
        logprobs = torch.log_softmax(searcher.fc(model.decoder.norm(x))[:, 0], dim=-1)
        return (logprobs, *([weights.mean(0)] if self.gives_attention else []), *found)


def _layer(layer: Any, x: Tensor, memory: tuple[Tensor, ...], states: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """``TransformerDecoderLayer``: what it gives, its attention to frames, its keys and values so far."""
    before = layer.norm1(x) if layer.normalize_before else x
    own = layer.self_attn.att
    keys, values = remember(own, before, *states)
    x = x + attend(own, before, keys, values)
    x = x if layer.normalize_before else layer.norm1(x)
    before = layer.norm2(x) if layer.normalize_before else x
    cross = layer.multihead_attn.att
    # All hypotheses attend to one recording: their queries share a product.
    queries = project(cross, "q_proj", before).reshape(-1, cross.num_heads, cross.head_dim).transpose(0, 1)
    weights = torch.softmax((queries * cross.head_dim**-0.5) @ memory[0], dim=-1)
    x = x + cross.out_proj((weights @ memory[1]).transpose(0, 1).reshape(-1, 1, cross.embed_dim))
    x = x if layer.normalize_before else layer.norm2(x)
    before = layer.norm3(x) if layer.normalize_before else x
    x = x + layer.pos_ffn(before)
    x = x if layer.normalize_before else layer.norm3(x)
    return x, weights, keys, values


def _cross_attentions(searcher: Any) -> list[Any]:
    return [layer.multihead_attn.att for layer in searcher.model.decoder.layers]


def _projections(attentions: list[Any], *names: str) -> list[nn.Module]:
    """Layers, once there are such; before, what holds their weights."""
    return [getattr(one, name, one) for one in attentions for name in names]


def _decoder_positions(model: Any) -> Any:
    """The table of positions that ``TransformerASR.decode`` adds, or None."""
    if model.attention_type in ("RelPosMHAXL", "RoPEMHA"):
        return model.positional_encoding_decoder
    if model.positional_encoding_type == "fixed_abs_sine" or model.attention_type == "hypermixing":
        return model.positional_encoding
    return None


def _check(where: str, attention: Any) -> None:
    if not isinstance(attention, nn.MultiheadAttention) or not attention._qkv_same_embed_dim:
        raise ModelLoadError(f"{where}: a decoder with {type(attention).__name__} of this kind is not supported")
    if attention.bias_k is not None or attention.add_zero_attn:
        raise ModelLoadError(f"{where}: attention with add_bias_kv or add_zero_attn is not supported")
