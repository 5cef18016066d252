"""The recogniser around the parts of an attention encoder-decoder and our own search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import ArtifactError, AudioError
from quantasr.speech.attention import transcribe_pieces
from quantasr.speech.frames import check_waves
from quantasr.speech.pauses import PauseCutter
from quantasr.speech.seq2seq.beam import beam_search
from quantasr.speech.seq2seq.greedy import greedy_search
from quantasr.speech.seq2seq.hypothesis import Hypothesis
from quantasr.speech.seq2seq.options import SearchOptions
from quantasr.speech.seq2seq.scorers import Scorers, at_temperature
from quantasr.speech.seq2seq.states import Stepper
from quantasr.speech.steps import StepTranscriber
from quantasr.speech.tokenizer import Tokenizer
from quantasr.speech.transcript import Transcript, Waveform


class SearchTranscriber(StepTranscriber):
    """Parts ``encoder``, ``decoder`` and perhaps ``lm``, searched greedily or with a beam.

    ``encoder``: ``features`` ``[1, ...]`` -> ``encoded`` ``[1, frames, size]``, what else the decoder remembers of the
    recording, and ``ctc``, log-probs ``[1, frames, vocabulary]``, where CTC is asked. ``decoder`` and ``lm``: see
    :class:`~quantasr.speech.seq2seq.states.Stepper`. Recordings are run one by one, whatever ``batch_size``, and long
    ones cut, as by :class:`quantasr.speech.attention.AttentionTranscriber`. Words have no times.
    """

    decoder: ClassVar[str] = "attention"
    tokenizer: Tokenizer
    options: SearchOptions

    def _prepare(self, decoding: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """``options`` are those of :data:`quantasr.speech.seq2seq.options.CHOICES`."""
        name, parts, tokenizer = self.name, self.parts, self.tokenizer
        self.options = SearchOptions.of(name, decoding, options)
        if missing := sorted({"encoder", *self.options.states} - set(parts)):
            raise ArtifactError(f"{name}: has no part {missing[0]}, which its decoding needs: make the artifact again")
        if len(tokenizer) != self.options.vocabulary:
            raise ArtifactError(
                f"{name}: {len(tokenizer)} tokens for a decoder with {self.options.vocabulary} outputs: make it again"
            )
        self.pieces = PauseCutter(self.options.chunk_seconds, self.sample_rate)

    @property
    def tunable(self) -> Mapping[str, Sequence[Any]]:
        """With a beam: the weights of its scorers, and when a hypothesis may end."""
        options = self.options
        found: dict[str, Sequence[Any]] = {}
        if options.greedy:
            return found
        if options.ctc_weight:
            found["ctc_weight"] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
        if options.lm_weight:
            found["lm_weight"] = tuple(
                round(options.lm_weight * ratio, 4) for ratio in (0.25, 0.5, 0.75, 1, 1.25, 1.5, 2)
            )
        if not options.length_normalization:
            found["length_weight"] = (-0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 1.5)
        if options.eos_threshold is not None:
            found["eos_threshold"] = (1.0, 1.2, 1.5, 1.8, 2.2)
        return found

    def transcribe(self, waves: Sequence[Waveform]) -> list[Transcript]:
        """As :class:`StepTranscriber`; raises AudioError, naming the wave, when one is empty, not mono, or has NaN."""
        check_waves(waves)
        return [self.transcribe_stream([wave]) for wave in waves]

    def transcribe_stream(self, blocks: Iterable[Waveform]) -> Transcript:
        """Transcribe one recording that comes in blocks of any size; one piece of it is held at a time."""
        return transcribe_pieces(self.pieces(blocks), self._recognise, self.sample_rate)

    def paths(self, waves: Sequence[Waveform]) -> list[NDArray[np.int64]]:
        """Token ids of each whole wave, without bos and eos."""
        check_waves(waves)
        return [self.search(wave).tokens for wave in waves]

    def logprobs(self, waves: Sequence[Waveform], paths: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        """The decoder's alone, ``[tokens + 1, vocabulary]``: of each token given those before it, and of the end.

        At the decoder's temperature; what the scorers say is not in it.
        """
        return [self._along(wave, path) for wave, path in zip(waves, paths, strict=True)]

    def encode(self, features: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """What the encoder says of the features of one wave."""
        return self.parts["encoder"]({"features": features[None]})

    def search(self, wave: Waveform) -> Hypothesis:
        """The best hypothesis for a whole wave, and its score."""
        encoded = self._encoded(wave)
        rows = 1 if self.options.greedy else self.options.beam_width
        decoder, frames = self._stepper("decoder", encoded, rows), encoded["encoded"].shape[1]
        if self.options.greedy:
            return greedy_search(decoder, self.options, frames)
        lm = self._stepper("lm", encoded, rows) if self.options.lm_weight else None
        ctc = encoded["ctc"][0] if self.options.ctc_weight else None
        return beam_search(decoder, Scorers(self.options, ctc, lm), self.options, frames)

    def _recognise(self, wave: Waveform) -> str:
        return self.tokenizer.decode(self.search(wave).tokens.tolist())

    def _along(self, wave: Waveform, path: NDArray[np.int64]) -> NDArray[np.float32]:
        decoder = self._stepper("decoder", self._encoded(wave), 1)
        tokens = [self.options.bos, *path.tolist()]
        rows = [decoder(np.array([token]))["logprobs"][0] for token in tokens]
        return at_temperature(np.stack(rows).astype(np.float32, copy=False), self.options.temperature)

    def _encoded(self, wave: Waveform) -> dict[str, NDArray[Any]]:
        filled, longest = self.filled(wave), self.options.max_seconds
        if longest is not None and len(filled) > longest * self.sample_rate:
            raise AudioError(
                f"recording of {len(filled) / self.sample_rate:.1f} s is too long: the model has positions for "
                f"{longest:.1f} s: set chunk_seconds"
            )
        return self.encode(self.frontend(filled))

    def _stepper(self, part: str, encoded: Mapping[str, NDArray[Any]], rows: int) -> Stepper:
        memory = {name: encoded[name] for name in self.options.memory} if part == "decoder" else {}
        frames = encoded["encoded"].shape[1]
        return Stepper(self.parts[part], self.options.states[part], memory, rows, frames)
