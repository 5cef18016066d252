"""``EncoderASR``: an encoder that ends in CTC's outputs, from the wave on in one container, as a :class:`CtcModel`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantasr.sources.asr_model import CtcModel, FrameGraph, evaluating
from quantasr.sources.speechbrain.decoding import blank_of, read_decoder, word_delimiter
from quantasr.sources.speechbrain.frames import Frames, measure_frames
from quantasr.sources.speechbrain.head import Head, is_chain, part_of, read_head
from quantasr.sources.speechbrain.interface import load_errors, quiet
from quantasr.sources.speechbrain.rewrites import rewrite
from quantasr.sources.speechbrain.tokenizer import read_tokenizer
from quantasr.sources.wav2vec2.masking import guard_masking, set_time_masking
from quantasr.speech.frontend import Frontend


@dataclass
class SpeechBrainCtc(CtcModel):
    """A live ``EncoderASR``; ``module`` is ``interface.mods``, so what is done to it is done to ``interface`` too."""

    interface: Any = field(kw_only=True)


class CtcGraph(FrameGraph):
    """Features -> log-probs: the encoder without what the frontend does, and a log-softmax at the end."""

    def __init__(self, modules: nn.ModuleDict, head: Head) -> None:
        super().__init__()
        self.mods = modules
        self._head = head
        self.frames: Frames | None = None
        self.encoder = part_of(modules["encoder"], "encoder", head)

    @property
    def lobe(self) -> Any:
        """The Wav2Vec2, HuBERT or WavLM that stands first, or None."""
        return None if self._head.lobe is None else self.mods.get_submodule(self._head.lobe)

    def forward(self, features: Tensor) -> Tensor:
        found = (self.encoder or self.mods["encoder"])(features)
        found = found[0] if isinstance(found, tuple) else found
        if _gives_probabilities(_last(self.mods["encoder"])):
            return torch.log(torch.clamp(found.float(), min=torch.finfo(torch.float32).tiny))
        # Of log-probs this is what they are.
        return torch.log_softmax(found.float(), dim=-1)

    def frame_counts(self, lengths: Tensor) -> Tensor:
        """As measured when the model was loaded."""
        assert self.frames is not None
        return self.frames.counts(lengths)


def load_ctc(interface: Any, where: str, provenance: dict[str, Any]) -> SpeechBrainCtc:
    """The model around a live ``EncoderASR``; raises :class:`ModelLoadError` where it is not made for CTC."""
    modules = interface.mods
    rate = int(getattr(interface.audio_normalizer, "sample_rate", 16000))
    with load_errors(where), quiet():
        head, frontend = read_head(where, modules["encoder"], rate)
        graph = CtcGraph(modules, head)
        lobe = None if graph.lobe is None else graph.lobe.model.config
        frames = graph.frames = measure_frames(where, partial(_run, graph, frontend), frontend, lobe)
        decoding = interface.decoding_function
        blank = blank_of(where, decoding, frames.outputs)
        tokenizer = read_tokenizer(where, interface.tokenizer, frames.outputs, blank, word_delimiter(decoding))
        decoder = read_decoder(where, decoding)
    if head.lobe:
        guard_masking(modules)
    return SpeechBrainCtc(
        name=str(provenance.get("name") or Path(where).name),
        family="speechbrain_wav2vec2" if head.lobe else "speechbrain_crdnn",
        module=modules,
        graph=graph,
        frontend=frontend,
        tokenizer=tokenizer,
        # Norms, recurrent layers and convolutions without masks all hear padding.
        padded_batches=False,
        frame_seconds=frames.seconds,
        min_samples=frames.min_samples,
        rewrite=rewrite,
        time_masking=partial(set_time_masking, modules) if head.lobe else None,
        provenance={**provenance, "architecture": "EncoderASR", "parameters": _parameters(modules)},
        own_decoder=decoder,
        interface=interface,
    )


def _parameters(modules: nn.Module) -> int:
    return sum(parameter.numel() for parameter in modules.parameters())


def _last(module: nn.Module) -> nn.Module:
    while is_chain(module) and len(children := list(module.children())):
        module = children[-1]
    return module


def _gives_probabilities(layer: Any) -> bool:
    """Whether the encoder ends in a softmax that gives no logarithms."""
    from speechbrain.nnet.activations import Softmax

    return isinstance(layer, nn.Softmax) or (isinstance(layer, Softmax) and layer.act is nn.functional.softmax)


def _run(graph: CtcGraph, frontend: Frontend, samples: int) -> Tensor:
    with evaluating(graph.mods), torch.no_grad():
        found: Tensor = graph(torch.from_numpy(frontend(np.zeros(samples, np.float32)))[None])
    return found
