"""One step of SpeechBrain's ``AttentionalRNNDecoder``: embedding, cells, attention, output layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quantasr.errors import ModelLoadError
from quantasr.sources.speechbrain.step_memory import at_their_paths, embed
from quantasr.speech.seq2seq.states import FRAMES, StateSpec

KINDS = ("content", "location", "keyvalue")


class RnnMemory(nn.Module):
    """What the attention remembers of ``encoded`` ``[1, frames, size]``."""

    def __init__(self, mods: nn.Module, searcher: Any) -> None:
        super().__init__()
        attention = searcher.dec.attn
        self._key_value = searcher.dec.attn_type == "keyvalue"
        self.names = ("keys", "values") if self._key_value else ("encoded", "keys")
        layers = [attention.key_linear, attention.value_linear] if self._key_value else [attention.mlp_enc]
        self.mods = at_their_paths(mods, layers)
        self.__dict__["_attention"] = attention
        self.axes = {name: {1: FRAMES} for name in self.names}

    def forward(self, encoded: Tensor) -> tuple[Tensor, ...]:
        """``[1, frames, ...]`` each of :attr:`names`."""
        attention: Any = self._attention
        if self._key_value:
            return attention.key_linear(encoded), attention.value_linear(encoded)
        return encoded, attention.mlp_enc(encoded)


class RnnStep(nn.Module):
    """``tokens`` ``[rows]``, memory and states -> log-probs, attention and states."""

    def __init__(self, where: str, mods: nn.Module, searcher: Any) -> None:
        super().__init__()
        decoder = searcher.dec
        if decoder.attn_type not in KINDS:
            raise ModelLoadError(f"{where}: attention {decoder.attn_type} is not supported: use {', '.join(KINDS)}")
        self.mods = at_their_paths(mods, [searcher.emb, searcher.dec, searcher.fc])
        self.__dict__["_searcher"] = searcher
        size, lstm = (decoder.num_layers, decoder.hidden_size), decoder.rnn_type == "lstm"
        self.states = {"hidden": StateSpec(size)} | ({"cell": StateSpec(size)} if lstm else {})
        self.states["context"] = StateSpec((decoder.attn_dim,))
        self._located = decoder.attn_type == "location"
        if self._located:
            self.states["attention"] = StateSpec((FRAMES,), uniform=True)
        # Where it is a state, it is given as such.
        self.outputs = ("logprobs",) if self._located else ("logprobs", "attention")
        self.gives_attention = True
        self.max_tokens = None

    def forward(self, tokens: Tensor, first: Tensor, second: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """``first`` and ``second`` are those of :attr:`RnnMemory.names`."""
        searcher: Any = self._searcher
        decoder = searcher.dec
        *recurrent, context = states[:-1] if self._located else states
        # Batches come first in states, layers in SpeechBrain's cells.
        hidden: Any = tuple(state.transpose(0, 1) for state in recurrent)
        cells = torch.cat([embed(searcher.emb, tokens), context], dim=-1)
        out, hidden = decoder.rnn(cells, hidden if len(hidden) == 2 else hidden[0])
        hidden = hidden if isinstance(hidden, tuple) else (hidden,)
        context, weights = self._attend(first, second, out, states[-1])
        joined = decoder.proj(torch.cat([context, out], dim=1))
        logprobs = torch.log_softmax(searcher.fc(joined), dim=-1)
        after = [*(state.transpose(0, 1) for state in hidden), context]
        return (logprobs, *after, weights) if self._located else (logprobs, weights, *after)

    def _attend(self, first: Tensor, second: Tensor, out: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """The context ``[rows, size]`` and the weights of frames ``[rows, frames]``."""
        searcher: Any = self._searcher
        attention = searcher.dec.attn
        if searcher.dec.attn_type == "keyvalue":
            scores = attention.query_linear(out) @ first[0].transpose(0, 1) / float(attention.scaling)
            weights = torch.softmax(scores, dim=-1)
            return weights @ second[0], weights
        energy = second + attention.mlp_dec(out.unsqueeze(1))
        if self._located:
            energy = energy + attention.mlp_loc(attention.conv_loc(before.unsqueeze(1)).transpose(1, 2))
        scores = attention.mlp_attn(torch.tanh(energy)).squeeze(-1)
        weights = torch.softmax(scores * attention.scaling, dim=-1)
        return attention.mlp_out(weights @ first[0]), weights
