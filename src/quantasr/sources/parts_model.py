"""A recogniser whose text is found step by step, as parts of which each becomes a graph."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantasr.sources.asr_model import AsrModel, evaluating
from quantasr.speech.parts import Arrays, Parts
from quantasr.speech.steps import StepTranscriber


@dataclass(frozen=True)
class TorchPart:
    """One part in PyTorch, and all that makes a graph of it.

    ``graph`` is called with the tensors of ``inputs``, in order, and gives those of ``outputs``, in order (a tuple, or
    one tensor). It holds submodules of the model's ``module``, best under the same paths, so that quantizers attached
    there act here. ``axes`` names the axes of each input and output whose lengths vary; ``example`` gives arguments to
    trace it with, their varying lengths neither 0 nor 1. ``typical`` are the lengths of the axes in one call while
    speech is decoded, by their names (1 where it names none; ``time`` only of features that always have one length);
    ``calls`` the calls in a second of speech, 0 for one in each recording: what times and shares of work are weighed
    with.
    """

    graph: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    axes: Mapping[str, Mapping[int, str]]
    example: Callable[[], tuple[Tensor, ...]]
    typical: Mapping[str, int] = field(default_factory=dict)
    calls: float = 0.0

    def __call__(self, feed: Arrays) -> dict[str, NDArray[Any]]:
        """See :class:`quantasr.speech.parts.Part`."""
        with evaluating(self.graph), torch.no_grad():
            found = self.graph(*(torch.from_numpy(feed[name]) for name in self.inputs))
        tensors = (found,) if isinstance(found, Tensor) else found
        return {name: tensor.numpy() for name, tensor in zip(self.outputs, tensors, strict=True)}

    def to_dict(self) -> dict[str, Any]:
        """Its row in ``artifact.json``; see :attr:`quantasr.artifact.Artifact.parts`."""
        inputs = {}
        for name, tensor in zip(self.inputs, self.example(), strict=True):
            named = self.axes.get(name, {})
            shape = [named.get(axis, size) for axis, size in enumerate(tensor.shape)]
            inputs[name] = {"type": str(tensor.dtype).removeprefix("torch."), "shape": shape}
        return {"inputs": inputs, "typical": dict(self.typical), "calls": float(self.calls)}


@dataclass
class PartsModel(AsrModel):
    """A recogniser with an encoder and a decoder, and perhaps a joiner and more, that is decoded step by step.

    ``graph`` runs every layer once, whatever it gives, so that layers in use can be found. ``decoding`` is what the
    model says of its search, JSON-ready: the defaults of its transcriber's options. ``logprobs`` are those of the
    framework's own forward along a path, so that a graph's steps are compared with something else than themselves.
    """

    tokenizer: Any
    frame_seconds: float
    decoding: dict[str, Any]

    @abstractmethod
    def parts(self) -> dict[str, TorchPart]:
        """The parts by name; after :meth:`make_exportable`, as they are exported."""

    @abstractmethod
    def transcriber(self, parts: Parts | None = None, **options: Any) -> StepTranscriber:
        """This model as a recogniser, in PyTorch, or with its graphs on engines in the place of its parts."""
