"""``EncoderDecoderASR`` as parts: encoder, one step of the decoder, one step of a language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantasr.errors import ModelLoadError
from quantasr.sources.asr_model import evaluating
from quantasr.sources.parts_model import TorchPart
from quantasr.sources.speechbrain.frames import measure_frames
from quantasr.sources.speechbrain.head import Head, part_of, read_head, walk
from quantasr.sources.speechbrain.interface import load_errors, quiet
from quantasr.sources.speechbrain.lm_step import RnnLmStep, TransformerLmStep
from quantasr.sources.speechbrain.rnn_step import RnnMemory, RnnStep
from quantasr.sources.speechbrain.searcher import all_scorers, language_model, needs_attention, read_search
from quantasr.sources.speechbrain.step_memory import at_their_paths
from quantasr.sources.speechbrain.tokenizer import read_tokenizer
from quantasr.sources.speechbrain.transformer_step import TransformerMemory, TransformerStep
from quantasr.speech.frontend import Frontend, noise
from quantasr.speech.seq2seq.states import FRAMES
from quantasr.speech.tokenizer import Tokenizer

TOKENS_PER_SECOND = 5.0
"""Of speech: 3 to 4 with the usual thousands of word pieces, 15 with characters."""
_DECODING = ("decoder", "custom_tgt_module", "positional_encoding_decoder")
_ROWS = "hypotheses"
_STEPS = "steps"


class Encoder(nn.Module):
    """Features ``[batch, ...]`` -> what the decoder attends to, ``[batch, frames, size]``."""

    def __init__(self, interface: Any, head: Head) -> None:
        super().__init__()
        mods = interface.mods
        apart = mods["transformer"] if getattr(interface, "transformer_beam_search", False) else None
        self.mods = at_their_paths(mods, _encoder_layers(mods, head, apart))
        # Only what of them is called is a part of this, at the paths above.
        chain = part_of(mods["encoder"], "encoder", head)
        self.__dict__ |= {"_encoder": chain or mods["encoder"], "_transformer": apart}

    def forward(self, features: Tensor) -> Tensor:
        """As ``encode_batch``, but for the features."""
        encoder: Any = self._encoder
        transformer: Any = self._transformer
        encoded = encoder(features)
        encoded = encoded[0] if isinstance(encoded, tuple) else encoded
        found: Tensor = encoded if transformer is None else transformer.encode(encoded)
        return found


class EncoderGraph(nn.Module):
    """``features`` ``[1, ...]`` -> ``encoded`` ``[1, frames, size]``, the decoder's memory, and CTC's log-probs."""

    def __init__(self, interface: Any, head: Head) -> None:
        super().__init__()
        mods, searcher = interface.mods, interface.mods["decoder"]
        self.encode = Encoder(interface, head)
        self.memory = (TransformerMemory if hasattr(searcher, "model") else RnnMemory)(mods, searcher)
        ctc = all_scorers(searcher).get("ctc")
        if ctc is not None:
            self.mods = at_their_paths(mods, [ctc.ctc_fc])
        self.__dict__["_ctc"] = None if ctc is None else ctc.ctc_fc
        self.others = tuple(name for name in self.memory.names if name != "encoded")
        self.outputs = ("encoded", *self.others, *(() if ctc is None else ("ctc",)))

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """Those of :attr:`outputs`."""
        encoded = self.encode(features)
        remembered = dict(zip(self.memory.names, self.memory(encoded), strict=True))
        found = [encoded, *(remembered[name] for name in self.others)]
        ctc: Any = self._ctc
        return tuple(found if ctc is None else [*found, torch.log_softmax(ctc(encoded), dim=-1)])


def _encoder_layers(mods: Any, head: Head, apart: Any) -> Iterator[nn.Module]:
    """All that encoding calls; of a Transformer, its encoder."""
    leaves = [layer for path, _, layer in walk("encoder", mods["encoder"]) if path not in head.features]
    for layer in leaves if apart is None else [*leaves, apart]:
        transformer = getattr(layer, "transformer", layer)
        if isinstance(getattr(transformer, "custom_src_module", None), nn.Module):
            yield from (part for name, part in transformer.named_children() if name not in _DECODING)
        else:
            yield layer


@dataclass(frozen=True)
class Layout:
    """How a live ``EncoderDecoderASR`` comes apart: all that does not change with its weights."""

    head: Head
    frontend: Frontend
    tokenizer: Tokenizer
    decoding: dict[str, Any]
    frame_seconds: float
    min_samples: int


def read_layout(interface: Any, where: str) -> Layout:
    """Raises :class:`ModelLoadError`, naming what cannot be had without PyTorch."""
    mods, searcher = interface.mods, interface.mods["decoder"]
    with load_errors(where), quiet():
        head, frontend = read_head(where, mods["encoder"], int(interface.audio_normalizer.sample_rate))
        graph, steps = EncoderGraph(interface, head), _steps(interface, where)
        lobe = None if head.lobe is None else mods.get_submodule(head.lobe).model.config
        frames = measure_frames(where, partial(_encode, mods, graph, frontend), frontend, lobe)
        outputs = int(searcher.set_n_out())
        decoding = read_search(where, searcher, outputs)
        tokenizer = read_tokenizer(where, interface.tokenizer, outputs, decoding["eos"] % outputs, " ")
        decoder: Any = steps["decoder"]
        limits = [step.max_tokens for step in steps.values() if step.max_tokens is not None]
        decoding |= {
            "memory": list(graph.memory.names),
            "states": {
                name: {key: spec.to_dict() for key, spec in step.states.items()} for name, step in steps.items()
            },
            "attention": decoder.gives_attention,
            "max_tokens": min(limits, default=None),
            "max_seconds": _longest(mods, frames.seconds),
        }
    return Layout(head, frontend, tokenizer, decoding, frames.seconds, frames.min_samples)


def make_parts(interface: Any, where: str, layout: Layout) -> dict[str, TorchPart]:
    """``encoder``, ``decoder`` and perhaps ``lm``; they run ``interface``'s own layers as they are now."""
    # New modules are in training mode, and would hand it on to the layers that they hold.
    encoder = EncoderGraph(interface, layout.head).train(interface.mods.training)
    features = torch.from_numpy(
        layout.frontend(noise(layout.frontend, max(layout.min_samples, layout.frontend.sample_rate)))
    )
    memory_axes = encoder.memory.axes
    parts = {
        "encoder": TorchPart(
            encoder,
            ("features",),
            encoder.outputs,
            {"features": {1: "time"}, "encoded": {1: FRAMES}, "ctc": {1: FRAMES}, **memory_axes},
            lambda: (features[None],),
            {FRAMES: round(10 / layout.frame_seconds)},
        )
    }
    for name, step in _steps(interface, where).items():
        step.train(interface.mods.training)
        memory = encoder.memory.names if name == "decoder" else ()
        outputs = getattr(step, "outputs", ("logprobs",))
        after = tuple(f"next_{state}" for state in step.states)
        axes: dict[str, dict[int, str]] = {
            "tokens": {0: _ROWS},
            "logprobs": {0: _ROWS},
            "attention": {0: _ROWS, 1: FRAMES},
        }
        axes |= {key: memory_axes[key] for key in memory}
        for state, spec in step.states.items():
            grows = {
                1 + i: FRAMES if axis == FRAMES else _STEPS for i, axis in enumerate(spec.shape) if axis in (0, FRAMES)
            }
            axes[state] = {0: _ROWS, **grows}
            axes[f"next_{state}"] = {key: "more_steps" if axis == _STEPS else axis for key, axis in axes[state].items()}
        parts[name] = TorchPart(
            step,
            ("tokens", *memory, *step.states),
            (*outputs, *after),
            axes,
            partial(_example, encoder, features, step, memory),
            {_ROWS: max(1, layout.decoding.get("beam_width", 0)), FRAMES: round(10 / layout.frame_seconds), _STEPS: 25},
            TOKENS_PER_SECOND,
        )
    return parts


def _example(encoder: EncoderGraph, features: Tensor, step: Any, memory: tuple[str, ...]) -> tuple[Tensor, ...]:
    """Arguments of a step: three hypotheses of two tokens."""
    with evaluating(encoder), torch.no_grad():
        found = dict(zip(encoder.outputs, encoder(features[None]), strict=True))
    frames = found["encoded"].shape[1]
    states = []
    for spec in step.states.values():
        shape = [3, *(frames if axis == FRAMES else axis or 2 for axis in spec.shape)]
        states.append(torch.full(shape, 1 / frames if spec.uniform else 0.0))
    return torch.tensor([1, 2, 1]), *(found[name] for name in memory), *states


def _steps(interface: Any, where: str) -> dict[str, Any]:
    """The modules of one step, by the names of their parts."""
    from speechbrain.lobes.models.RNNLM import RNNLM
    from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM

    mods, searcher = interface.mods, interface.mods["decoder"]
    attention = needs_attention(searcher)
    decoder = (
        TransformerStep(where, mods, searcher, attention)
        if hasattr(searcher, "model")
        else RnnStep(where, mods, searcher)
    )
    steps: dict[str, Any] = {"decoder": decoder}
    lm = language_model(searcher)
    kinds: list[tuple[type, Callable[..., nn.Module]]] = [(RNNLM, RnnLmStep), (TransformerLM, TransformerLmStep)]
    if lm is not None:
        make = next((make for kind, make in kinds if isinstance(lm, kind)), None)
        if make is None:
            raise ModelLoadError(
                f"{where}: language model {type(lm).__name__} is not supported: use RNNLM, TransformerLM"
            )
        steps["lm"] = make(where, mods, lm)
    return steps


def _longest(mods: nn.Module, frame_seconds: float) -> float | None:
    """How long a recording may be by the tables of positions that are added to frames."""
    from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR

    part: Any
    for part in mods.modules():
        added = isinstance(part, TransformerASR) and part.attention_type == "regularMHA"
        if added and part.positional_encoding_type is not None:
            return float(part.positional_encoding.pe.shape[1] - 1) * frame_seconds
    return None


def _encode(mods: nn.Module, graph: EncoderGraph, frontend: Frontend, samples: int) -> Tensor:
    with evaluating(mods), torch.no_grad():
        found: Tensor = graph.encode(torch.from_numpy(frontend(np.zeros(samples, np.float32)))[None])
    return found
