"""What stands at the head of a SpeechBrain encoder, and the encoder without what the frontend stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantasr.errors import ModelLoadError
from quantasr.sources.speechbrain.features import is_features, is_normalization, read_frontend, wave_frontend
from quantasr.speech.frontend import Frontend


@dataclass(frozen=True)
class Head:
    """What of the encoder is not in the graph: paths of layers that the frontend stands for.

    ``containers`` are the paths of those that hold some of them and are run child by child; ``lobe`` is that of a
    Wav2Vec2, HuBERT or WavLM that stands first and normalises the wave.
    """

    features: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()
    lobe: str | None = None


class Chain(nn.Module):
    """A container, run child by child without the layers that the frontend stands for.

    A module of its own, so that nodes of a trace carry the container's name, as recipes do. It looks its children up
    when it is called: they may be replaced.
    """

    def __init__(self, container: nn.Module, path: str, head: Head) -> None:
        super().__init__()
        self.__dict__["_container"] = container  # no child: the layers keep the paths that they have in it
        self._left_out = [name for name, _ in container.named_children() if f"{path}.{name}" in head.features]
        for name, child in container.named_children():
            if (part := part_of(child, f"{path}.{name}", head)) is not None:
                self.add_module(name, part)

    def forward(self, x: Any) -> Tensor:
        container: Any = self._container
        for name, child in container.named_children():
            if name not in self._left_out:
                x = (self._modules.get(name) or child)(x)
                x = x[0] if isinstance(x, tuple) else x
        found: Tensor = x
        return found


class Lobe(nn.Module):
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


def part_of(module: nn.Module, path: str, head: Head) -> nn.Module | None:
    """What stands for ``module`` in the graph, where it is not run as it is."""
    if path in head.containers:
        return Chain(module, path, head)
    return Lobe(module) if path == head.lobe else None


def read_head(where: str, encoder: nn.Module, rate: int) -> tuple[Head, Frontend]:
    """What stands first in the encoder, and the frontend for it."""
    from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2

    layers: list[nn.Module] = []
    paths: list[str] = []
    containers: list[str] = []
    for path, opened, layer in walk("encoder", encoder):
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


def walk(path: str, module: nn.Module, opened: tuple[str, ...] = ()) -> Any:
    """(path, containers around it, layer) of all layers, in the order in which they are called."""
    if not is_chain(module):
        yield path, opened, module
        return
    for name, child in module.named_children():
        yield from walk(f"{path}.{name}", child, (*opened, path))


def is_chain(module: nn.Module) -> bool:
    """Whether a container does nothing but call its children one after the other."""
    from speechbrain.nnet.containers import LengthsCapableSequential, Sequential

    known = (nn.Sequential.forward, Sequential.forward, LengthsCapableSequential.forward)
    return type(module).forward in known
