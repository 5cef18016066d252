"""``EncoderASR``: an encoder that ends in CTC's outputs, from the wave on in one container, as a :class:`CtcModel`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantasr.errors import ModelLoadError
from quantasr.sources.asr_model import CtcModel, FrameGraph, evaluating
from quantasr.sources.speechbrain.decoding import blank_of, read_decoder, word_delimiter
from quantasr.sources.speechbrain.features import is_features, is_normalization, read_frontend, wave_frontend
from quantasr.sources.speechbrain.frames import Frames, measure_frames
from quantasr.sources.speechbrain.interface import load_errors, quiet
from quantasr.sources.speechbrain.rewrites import rewrite
from quantasr.sources.speechbrain.tokenizer import read_tokenizer
from quantasr.sources.wav2vec2.masking import guard_masking, set_time_masking
from quantasr.speech.frontend import Frontend


@dataclass
class SpeechBrainCtc(CtcModel):
    """A live ``EncoderASR``; ``module`` is ``interface.mods``, so what is done to it is done to ``interface`` too."""

    interface: Any = field(kw_only=True)


@dataclass(frozen=True)
class Head:
    """What of the encoder is not in the graph: paths of layers that the frontend stands for.

    ``containers`` are the paths of those that hold some of them and are run child by child; ``lobe`` is that of a
    Wav2Vec2, HuBERT or WavLM that stands first and normalises the wave.
    """

    features: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()
    lobe: str | None = None


class _Chain(nn.Module):
    """A container, run child by child without the layers that the frontend stands for.

    A module of its own, so that nodes of a trace carry the container's name, as recipes do. It looks its children up
    when it is called: they may be replaced.
    """

    def __init__(self, container: nn.Module, path: str, head: Head) -> None:
        super().__init__()
        self.__dict__["_container"] = container  # no child: the layers keep the paths that they have in it
        self._left_out = [name for name, _ in container.named_children() if f"{path}.{name}" in head.features]
        for name, child in container.named_children():
            if (part := _part(child, f"{path}.{name}", head)) is not None:
                self.add_module(name, part)

    def forward(self, x: Any) -> Tensor:
        container: Any = self._container
        for name, child in container.named_children():
            if name not in self._left_out:
                x = (self._modules.get(name) or child)(x)
                x = x[0] if isinstance(x, tuple) else x
        found: Tensor = x
        return found


class _Lobe(nn.Module):
    """``extract_features`` of a wave that is normalised already, with a norm that takes any length in a trace."""

    def __init__(self, lobe: nn.Module) -> None:
        super().__init__()
        self.__dict__["_lobe"] = lobe

    def forward(self, wave: Tensor) -> Tensor:
        lobe: Any = self._lobe
        hidden: Tensor = lobe.model(wave, output_hidden_states=False).last_hidden_state
        if lobe.output_norm:
            centred = hidden - hidden.mean((1, 2), keepdim=True)
            hidden = centred * torch.rsqrt(centred.square().mean((1, 2), keepdim=True) + 1e-5)
        return hidden


def _part(module: nn.Module, path: str, head: Head) -> nn.Module | None:
    """What stands for ``module`` in the graph, where it is not run as it is."""
    if path in head.containers:
        return _Chain(module, path, head)
    return _Lobe(module) if path == head.lobe else None


class CtcGraph(FrameGraph):
    """Features -> log-probs: the encoder without what the frontend does, and a log-softmax at the end."""

    def __init__(self, modules: nn.ModuleDict, head: Head) -> None:
        super().__init__()
        self.mods = modules
        self._head = head
        self.frames: Frames | None = None
        self.encoder = _part(modules["encoder"], "encoder", head)

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
        head, frontend = _read_head(where, modules["encoder"], rate)
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


def _read_head(where: str, encoder: nn.Module, rate: int) -> tuple[Head, Frontend]:
    """What stands first in the encoder, and the frontend for it."""
    from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2

    layers: list[nn.Module] = []
    paths: list[str] = []
    containers: list[str] = []
    for path, opened, layer in _walk("encoder", encoder):
        if not layers and isinstance(layer, Wav2Vec2):
            if layer.output_all_hiddens:
                raise ModelLoadError(f"{where}: {path} gives all its hidden layers, which is not supported")
            return Head(containers=opened, lobe=path), wave_frontend(layer, rate)
        if not (is_features(layer) if not layers else is_normalization(layer)):
            break
        layers.append(layer)
        paths.append(path)
        containers += [name for name in opened if name not in containers]
        if len(layers) == 2:
            break
    return Head(tuple(paths), tuple(containers)), read_frontend(where, layers, rate)


def _walk(path: str, module: nn.Module, opened: tuple[str, ...] = ()) -> Any:
    """(path, containers around it, layer) of all layers, in the order in which they are called."""
    if not _is_chain(module):
        yield path, opened, module
        return
    for name, child in module.named_children():
        yield from _walk(f"{path}.{name}", child, (*opened, path))


def _is_chain(module: nn.Module) -> bool:
    """Whether a container does nothing but call its children one after the other."""
    from speechbrain.nnet.containers import LengthsCapableSequential, Sequential

    known = (nn.Sequential.forward, Sequential.forward, LengthsCapableSequential.forward)
    return type(module).forward in known


def _last(module: nn.Module) -> nn.Module:
    while _is_chain(module) and len(children := list(module.children())):
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
