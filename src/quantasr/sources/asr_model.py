"""The workbench's view of a recogniser: a live PyTorch module with the frontend and tokenizer around it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantasr.atomic import create, create_file
from quantasr.errors import ModelLoadError
from quantasr.speech.ctc import GREEDY, CtcTranscriber
from quantasr.speech.decoding import CtcDecoder
from quantasr.speech.frames import AcousticModel, FrameTranscriber
from quantasr.speech.frontend import Frontend, collate, noise
from quantasr.speech.lattice.files import DecodingFiles
from quantasr.speech.lattice.transcriber import LatticeTranscriber
from quantasr.speech.tokenizer import Tokenizer
from quantasr.speech.transcript import Transcriber, Waveform

_SAVERS = ("huggingface", "kaldi", "nemo", "speechbrain")
"""Sources that write models too."""

Paths = list[NDArray[np.int64]] | None
"""Token ids of each recording along which an attention model is scored; None where log-probs need none (CTC)."""


@dataclass
class AsrModel(ABC):
    """A trained recogniser, as any source gives it.

    ``module`` is the framework's own model: recipes address its layers by their paths in it. ``graph`` wraps it into
    what transcribing calls: ``graph(features)``, and where ``padded_batches``, ``graph(features, lengths)``, with
    ``features`` ``[batch, time]`` or ``[batch, frames, bins]`` and ``lengths`` ``[batch]``.

    ``padded_batches`` is False for models trained without an attention mask: padding would change what they hear.
    ``min_samples`` is the shortest wave that is run as it is: shorter ones are filled up with zeros.
    ``rewrite`` gives parts of ``module`` the same arithmetic in a form that exports and quantizes better.
    ``exportable`` says whether that was done. ``files`` (name -> content) is what
    :func:`quantasr.sources.rebuild_model` makes the same model of, but for its weights.
    """

    name: str
    family: str
    module: nn.Module
    graph: nn.Module
    frontend: Frontend
    padded_batches: bool
    min_samples: int
    rewrite: Callable[[nn.Module], None] | None = field(default=None, kw_only=True)
    provenance: dict[str, Any] = field(default_factory=dict, kw_only=True)
    files: dict[str, bytes] = field(default_factory=dict, kw_only=True)
    exportable: bool = field(default=False, init=False)

    decoder: ClassVar[str]
    """How log-probs become text: one of :data:`quantasr.artifact.DECODERS`."""

    @property
    def sample_rate(self) -> int:
        """Samples per second of the waves that the frontend takes."""
        return self.frontend.sample_rate

    @abstractmethod
    def transcriber(self, **options: Any) -> Transcriber:
        """This model as a recogniser, in PyTorch."""

    @abstractmethod
    def run(self, wave: Waveform) -> None:
        """Call everything that transcribing a wave of any length calls; calibration watches it."""

    @abstractmethod
    def logprobs(self, waves: Sequence[Waveform], paths: Paths = None) -> list[NDArray[np.float32]]:
        """What decides the text of each wave, ``[frames or tokens, vocabulary]``.

        ``paths`` are those of the model that this one is compared with, from :meth:`paths`.
        """

    def paths(self, waves: Sequence[Waveform]) -> Paths:
        """The token ids that the model's own search finds, where log-probs depend on them."""
        return None

    def save(self, where: str | Path) -> None:
        """Write the model, with the weights that ``module`` has now, in the format that it was loaded in.

        Its framework loads it, and so does :func:`quantasr.sources.load_model`; what is no weight is copied from where
        the model came from. All or nothing. Raises :class:`ArtifactError` when ``where`` exists or cannot be written,
        and :class:`ModelLoadError` when the original is gone, or ``module`` was made ready for export, by which it
        became another one.
        """
        place, saver = Path(where), self.saver()
        if place.suffix == getattr(saver, "SUFFIX", None):  # formats that have a file for the folder
            create_file(place, partial(saver.save_file, self))
        else:
            create(place, partial(saver.save, self))

    def saver(self) -> Any:
        """The module that writes models of this source; raises :class:`ModelLoadError` unless this one can be."""
        if self.exportable:
            raise ModelLoadError(
                f"{self.name}: was made ready for export, which is not undone: load it again to save it"
            )
        source = self.provenance.get("source")
        if source not in _SAVERS:
            raise ModelLoadError(f"{self.name}: models of source {source} cannot be saved")
        return import_module(f"quantasr.sources.{source}.save")

    def make_exportable(self) -> None:
        """Rewrite ``module`` in place, once; until then it computes exactly as its framework does."""
        self.exportable = True
        if self.rewrite is not None:
            self.rewrite(self.module)
            self.rewrite = None

    def inputs(self, waves: Sequence[Waveform]) -> tuple[Tensor, ...]:
        """The arguments of ``graph`` for a batch of waves."""
        features, lengths = collate([self.frontend(wave) for wave in waves], self.frontend.padding_value)
        tensors = (torch.from_numpy(features), torch.from_numpy(lengths))
        return tensors if self.padded_batches else tensors[:1]

    def probe(self, seconds: float = 1.0, batch: int = 1) -> tuple[Tensor, ...]:
        """Arguments of ``graph`` made of noise, to trace it or to find out which layers it calls."""
        samples = max(self.min_samples, round(seconds * self.sample_rate))
        return self.inputs([noise(self.frontend, samples, seed) for seed in range(batch)])


class FrameGraph(nn.Module):
    """What is exported: ``graph(features) -> logprobs``, or ``graph(features, lengths) -> (logprobs, frame_counts)``.

    The latter where ``padded_batches``; ``logprobs`` are ``[batch, frames, vocabulary]``.
    """

    def frame_counts(self, lengths: Tensor) -> Tensor:
        """Frames of log-probs, ``[batch]``, that recordings of so many rows of features give; nothing is run."""
        raise NotImplementedError(f"{type(self).__name__} does not count its frames")


@dataclass
class FrameModel(AsrModel):
    """A recogniser whose model says something of every frame, whatever becomes of that: it can be exported as a graph.

    ``frame_seconds`` is the time between two rows of ``logprobs``. ``time_masking`` sets how a model hides stretches of
    time from itself while it is trained, where it does that.
    """

    graph: FrameGraph
    frame_seconds: float
    time_masking: Callable[[float, int], bool] | None = field(default=None, kw_only=True)

    @abstractmethod
    def transcriber(self, acoustic: AcousticModel | None = None, **options: Any) -> FrameTranscriber:
        """This model as a recogniser, in PyTorch, or with ``acoustic``, its graph on an engine, in its place."""

    def run(self, wave: Waveform) -> None:
        """Run the windows that a transcriber would cut."""
        self.transcriber().logprobs([wave])

    def logprobs(self, waves: Sequence[Waveform], paths: Paths = None) -> list[NDArray[np.float32]]:
        """Log-probs of every frame of each wave, ``[frames, vocabulary]``; run whole."""
        return self.transcriber(chunk_seconds=0).logprobs(waves)

    def train_outputs(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """A training batch: ``logprobs`` ``[batch, frames, vocabulary]``, frame counts ``[batch]``, and no third.

        Gradients flow to the parameters of ``module``, which is left in the mode that it is in. Recordings of any
        lengths share a batch: also models without a mask (``padded_batches`` False) were trained so, on zeros behind
        the shorter ones. Chain models give the log-posteriors of their cross-entropy branch as the third.
        """
        if self.padded_batches:
            logprobs, counts = self.graph(features, lengths)
        else:
            logprobs, counts = self.graph(features), self.frame_counts(lengths)
        return logprobs, counts, None

    def frame_counts(self, lengths: Tensor) -> Tensor:
        """Frames of log-probs, ``[batch]``, that recordings of so many rows of features give; nothing is run."""
        return self.graph.frame_counts(lengths).clamp(min=0)

    def set_time_masking(self, probability: float, length: int) -> bool:
        """Hide stretches of ``length`` frames in training, ``probability`` of all frames (SpecAugment); 0 for none.

        Until it is called, what the checkpoint says holds. False where a model has no such thing: then its features
        are what is masked (arXiv 1904.08779). Which frames, numpy's global generator decides.
        """
        return self.time_masking is not None and self.time_masking(probability, length)

    def _defaults(self) -> dict[str, Any]:
        return {"name": self.name, "frame_seconds": self.frame_seconds, "min_samples": self.min_samples}


@dataclass
class CtcModel(FrameModel):
    """A trained CTC recogniser. ``own_decoder`` is the way to the text that the model brings along.

    ``vocabulary`` has the files of a new vocabulary, by name, in place of those of the place that the model was loaded
    from; None for one that is not needed any more.
    """

    tokenizer: Tokenizer
    own_decoder: CtcDecoder = field(default=GREEDY, kw_only=True)
    vocabulary: dict[str, bytes | None] = field(default_factory=dict, kw_only=True)

    decoder: ClassVar[str] = "ctc"

    def transcriber(self, acoustic: AcousticModel | None = None, **options: Any) -> CtcTranscriber:
        """As :meth:`FrameModel.transcriber`; ``options`` are those of :class:`CtcTranscriber`."""
        defaults = {**self._defaults(), "decoder": self.own_decoder}
        return CtcTranscriber(acoustic or TorchAcousticModel(self), self.frontend, self.tokenizer, **defaults | options)


@dataclass
class LatticeModel(FrameModel):
    """A trained hybrid recogniser: log-likelihoods of states (``logprobs`` too), searched in a graph for words.

    ``decoding`` are the files of the graph; None where a model has none, so that only its log-likelihoods can be had.
    """

    decoding: DecodingFiles | None = None

    decoder: ClassVar[str] = "lattice"

    def transcriber(self, acoustic: AcousticModel | None = None, **options: Any) -> LatticeTranscriber:
        """As :meth:`FrameModel.transcriber`; ``options`` are those of :class:`LatticeTranscriber`."""
        defaults = {**self._defaults(), "decoder": self.decoding}
        return LatticeTranscriber(acoustic or TorchAcousticModel(self), self.frontend, **defaults | options)


class TorchAcousticModel:
    """``graph`` as the acoustic half of a :class:`FrameTranscriber`: arrays in, arrays out."""

    def __init__(self, model: FrameModel) -> None:
        self._model = model
        self.padded_batches = model.padded_batches

    def __call__(
        self, features: NDArray[np.float32], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        # Not inference_mode: its tensors have no version, by which observers know that one was changed in place.
        device = next((parameter.device for parameter in self._model.module.parameters()), torch.device("cpu"))
        batch = torch.from_numpy(features).to(device)
        with evaluating(self._model.module), torch.no_grad():
            if self.padded_batches:
                logprobs, counts = self._model.graph(batch, torch.from_numpy(lengths).to(device))
                return logprobs.cpu().numpy(), counts.cpu().numpy()
            logprobs = self._model.graph(batch).cpu().numpy()
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
