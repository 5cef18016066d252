"""What recognisers share that find their text step by step: Whisper, transducers, attention encoder-decoders."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import AudioError
from quantasr.speech.frames import check_waves
from quantasr.speech.fronted import FrontedTranscriber
from quantasr.speech.frontend import Frontend
from quantasr.speech.parts import Parts
from quantasr.speech.tokenizer import Tokenizer
from quantasr.speech.transcript import Waveform

STEP_DECODERS = {
    "attention": "quantasr.speech.seq2seq:SearchTranscriber",
    "transducer": "quantasr.speech.transducer:TransducerTranscriber",
    "whisper": "quantasr.speech.whisper:WhisperTranscriber",
}
"""Names of the searches that go step by step, and their classes, imported when one is used."""


def step_transcriber(decoder: str) -> type[StepTranscriber]:
    """The class of the search called ``decoder``."""
    module, _, name = STEP_DECODERS[decoder].partition(":")
    found: type[StepTranscriber] = getattr(import_module(module), name)
    return found


class StepTranscriber(FrontedTranscriber):
    """A :class:`~quantasr.speech.transcript.Transcriber` around the parts of a model and a search of ours.

    The parts may be in PyTorch or on engines: the search is the same. ``frame_seconds`` is the time between two frames
    of the encoder's output.
    """

    decoder: ClassVar[str]
    """Its name in :data:`STEP_DECODERS`."""

    tokenizer_type: ClassVar[Any] = Tokenizer
    """The class of its tokenizer, with ``to_dict`` and ``from_dict``."""

    options: Any = None
    """What the search was told: a frozen dataclass of its own."""

    artifact: Any = None
    """Where its parts come from, if they are graphs."""

    engines: Mapping[str, Any] = {}
    """What the parts run on, by their names, if they are graphs."""

    def __init__(
        self,
        parts: Parts,
        frontend: Frontend,
        tokenizer: Any,
        decoding: Mapping[str, Any],
        *,
        name: str,
        frame_seconds: float,
        min_samples: int,
        batch_size: int = 1,
        **options: Any,
    ) -> None:
        """``decoding`` is what the model says of its search, JSON-ready; ``options`` are the user's, and win.

        Raises :class:`RecipeError` for an option that this search has not, or a value that it cannot have.
        """
        super().__init__(
            frontend, name=name, frame_seconds=frame_seconds, min_samples=min_samples, batch_size=batch_size
        )
        self.parts = parts
        self.tokenizer = tokenizer
        self._prepare(decoding, options)

    @abstractmethod
    def _prepare(self, decoding: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """Make ``options`` of its own, and what it searches with, of those that :meth:`__init__` was given."""

    @property
    def tunable(self) -> Mapping[str, Sequence[Any]]:
        """Options that can make up for what quantization changed, and values of each that ``retune`` tries."""
        return {}

    @abstractmethod
    def paths(self, waves: Sequence[Waveform]) -> list[NDArray[np.int64]]:
        """The decisions that the search takes for each wave, heard whole: what :meth:`logprobs` goes along."""

    @abstractmethod
    def logprobs(self, waves: Sequence[Waveform], paths: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        """Log-probs of all tokens at each decision of a path, ``[decisions, vocabulary]``; nothing is searched."""

    @abstractmethod
    def encode(self, features: NDArray[np.float32]) -> object:
        """The encoder alone on the features of one wave."""

    def encoder_call(self, wave: Waveform) -> Callable[[], object]:
        """A call that runs the encoder alone on the features of one wave, to be timed."""
        check_waves([wave])
        features = self.frontend(self.filled(wave))
        return lambda: self.encode(features)

    def filled(self, wave: Waveform) -> Waveform:
        """``wave``, with zeros behind it where it is too short; raises AudioError if it is empty."""
        if wave.size == 0:
            raise AudioError("recording has no samples")
        return np.pad(wave, (0, max(0, self.min_samples - wave.size)))
