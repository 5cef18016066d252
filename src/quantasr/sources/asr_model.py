"""The workbench's view of a recogniser: a live PyTorch module with the frontend and tokenizer around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantasr.speech.ctc import AcousticModel, CtcTranscriber
from quantasr.speech.frontend import Frontend, collate
from quantasr.speech.tokenizer import CtcTokenizer
from quantasr.speech.transcript import Waveform


@dataclass
class AsrModel:
    """A trained CTC recogniser, as any source gives it.

    ``module`` is the framework's own model: recipes address its layers by their paths in it. ``graph`` wraps it
    into what is exported: ``graph(features) -> logprobs``, and where ``padded_batches``,
    ``graph(features, lengths) -> (logprobs, frame_counts)``, with ``features`` ``[batch, time]`` or
    ``[batch, frames, bins]``, ``lengths`` ``[batch]`` and ``logprobs`` ``[batch, frames, vocabulary]``.

    ``padded_batches`` is False for models trained without an attention mask: padding would change what they hear.
    ``frame_seconds`` is the time between two rows of ``logprobs``; ``min_samples`` the shortest wave that is run as it
    is: shorter ones are filled up with zeros.
    ``rewrite`` gives parts of ``module`` the same arithmetic in a form that exports and quantizes better.
    ``files`` (name -> content) is what :func:`quantasr.sources.rebuild_model` makes the same model of, but for its
    weights.
    """

    name: str
    family: str
    module: nn.Module
    graph: nn.Module
    frontend: Frontend
    tokenizer: CtcTokenizer
    padded_batches: bool
    frame_seconds: float
    min_samples: int
    rewrite: Callable[[nn.Module], None] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def sample_rate(self) -> int:
        """Samples per second of the waves that the frontend takes."""
        return self.frontend.sample_rate

    def make_exportable(self) -> None:
        """Rewrite ``module`` in place, once; until then it computes exactly as its framework does."""
        if self.rewrite is not None:
            self.rewrite(self.module)
            self.rewrite = None

    def transcriber(self, acoustic: AcousticModel | None = None, **options: Any) -> CtcTranscriber:
        """This model as a recogniser, in PyTorch, or with ``acoustic``, its graph on an engine, in the module's place.

        ``options`` are those of :class:`CtcTranscriber`.
        """
        defaults: dict[str, Any] = {
            "name": self.name,
            "frame_seconds": self.frame_seconds,
            "min_samples": self.min_samples,
        }
        return CtcTranscriber(acoustic or TorchAcousticModel(self), self.frontend, self.tokenizer, **defaults | options)

    def inputs(self, waves: Sequence[Waveform]) -> tuple[Tensor, ...]:
        """The arguments of ``graph`` for a batch of waves."""
        features, lengths = collate([self.frontend(wave) for wave in waves], self.frontend.padding_value)
        tensors = (torch.from_numpy(features), torch.from_numpy(lengths))
        return tensors if self.padded_batches else tensors[:1]

    def probe(self, seconds: float = 1.0, batch: int = 1) -> tuple[Tensor, ...]:
        """Arguments of ``graph`` made of noise, to trace it or to find out which layers it calls."""
        rng = np.random.default_rng(0)
        samples = max(self.min_samples, round(seconds * self.sample_rate))
        return self.inputs([rng.normal(0, 0.1, samples).astype(np.float32) for _ in range(batch)])


class TorchAcousticModel:
    """``graph`` as the acoustic half of a :class:`CtcTranscriber`: arrays in, arrays out."""

    def __init__(self, model: AsrModel) -> None:
        self._model = model
        self.padded_batches = model.padded_batches

    def __call__(
        self, features: NDArray[np.float32], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        # Not inference_mode: its tensors have no version, by which observers know that one was changed in place.
        with evaluating(self._model.module), torch.no_grad():
            if self.padded_batches:
                logprobs, counts = self._model.graph(torch.from_numpy(features), torch.from_numpy(lengths))
                return logprobs.numpy(), counts.numpy()
            logprobs = self._model.graph(torch.from_numpy(features)).numpy()
        return logprobs, np.full(len(logprobs), logprobs.shape[1], dtype=np.int64)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode for a while, and back into the mode that it was in."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
