"""One step of SpeechBrain's language models, ``RNNLM`` and ``TransformerLM``, as a beam search asks them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quantasr.errors import ModelLoadError
from quantasr.sources.speechbrain.step_memory import at_their_paths, attend, cache, embed, remember
from quantasr.speech.seq2seq.states import StateSpec

_PADDING = 0
"""``TransformerLM`` takes it for padding, wherever it stands."""
_MASKED = -1e30


class RnnLmStep(nn.Module):
    """``tokens`` ``[rows]`` and states ``[rows, layers, size]`` -> log-probs and states."""

    def __init__(self, where: str, mods: nn.Module, lm: Any) -> None:
        super().__init__()
        from speechbrain.nnet.RNN import GRU, LSTM, RNN  # type: ignore[import-untyped,unused-ignore]

        if not isinstance(lm.rnn, LSTM | GRU | RNN):
            raise ModelLoadError(f"{where}: a language model with {type(lm.rnn).__name__} is not supported")
        self.mods = at_their_paths(mods, [lm])
        self.__dict__["_lm"] = lm
        shape = (lm.rnn.rnn.num_layers, lm.rnn.rnn.hidden_size)
        self.states = {"hidden": StateSpec(shape)} | ({"cell": StateSpec(shape)} if isinstance(lm.rnn, LSTM) else {})
        self.max_tokens = None

    def forward(self, tokens: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Those of :attr:`states`, in order."""
        lm: Any = self._lm
        before: Any = tuple(state.transpose(0, 1).contiguous() for state in states)
        x, after = lm.rnn(embed(lm.embedding, tokens).unsqueeze(1), before if len(before) == 2 else before[0])
        after = after if isinstance(after, tuple) else (after,)
        logits = lm.out(lm.dnn(x))[:, 0]
        return (torch.log_softmax(logits, dim=-1), *(state.transpose(0, 1) for state in after))


class TransformerLmStep(nn.Module):
    """``tokens`` ``[rows]`` and states -> log-probs and states.

    States are ``masked`` ``[rows, steps]``, which is added to the scores of each step, and the :func:`cache` of each
    layer.
    """

    def __init__(self, where: str, mods: nn.Module, lm: Any) -> None:
        super().__init__()
        if lm.num_decoder_layers or not lm.num_encoder_layers:
            raise ModelLoadError(f"{where}: TransformerLM with decoder layers is not supported")
        if lm.attention_type != "regularMHA" or lm.positional_encoding_type != "fixed_abs_sine":
            raise ModelLoadError(f"{where}: TransformerLM with {lm.attention_type} is not supported: use regularMHA")
        self.mods = at_their_paths(mods, [lm])
        self.__dict__["_lm"] = lm
        self.states = {"masked": StateSpec((0,))}
        for i, layer in enumerate(lm.encoder.layers):
            self.states |= cache(layer.self_att.att, str(i))
        self.max_tokens = int(lm.positional_encoding.pe.shape[1])

    def forward(self, tokens: Tensor, masked: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Those of :attr:`states`, in order."""
        lm: Any = self._lm
        x = embed(lm.custom_src_module, tokens.unsqueeze(1))
        x = x if lm.embedding_proj is None else lm.embedding_proj(x)
        steps = masked.shape[1]
        x = x + lm.positional_encoding.pe[:, steps : steps + 1]
        masked = torch.cat([masked, (tokens == _PADDING).to(masked.dtype).unsqueeze(1) * _MASKED], dim=1)
        found = [masked]
        for i, layer in enumerate(lm.encoder.layers):
            own = layer.self_att.att
            before = layer.norm1(x) if layer.normalize_before else x
            keys, values = remember(own, before, states[2 * i], states[2 * i + 1])
            found += [keys, values]
            x = x + attend(own, before, keys, values, masked)
            x = x if layer.normalize_before else layer.norm1(x)
            x = x + layer.pos_ffn(layer.norm2(x) if layer.normalize_before else x)
            x = x if layer.normalize_before else layer.norm2(x)
        logits = lm.output_proj(lm.encoder.norm(x))[:, 0]
        return (torch.log_softmax(logits, dim=-1), *found)
