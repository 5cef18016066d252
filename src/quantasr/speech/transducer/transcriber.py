"""A transducer as a recogniser: samples in, text out, around its parts and a search."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from quantasr.speech.ctc import CtcTranscriber
from quantasr.speech.frames import check_waves
from quantasr.speech.fronted import CountedBlocks
from quantasr.speech.long_form import Windows
from quantasr.speech.steps import StepTranscriber
from quantasr.speech.transcript import Transcript, Waveform
from quantasr.speech.transducer.beam import BeamSearch
from quantasr.speech.transducer.ctc_head import CtcHead
from quantasr.speech.transducer.greedy import GreedySearch
from quantasr.speech.transducer.hypothesis import Hypothesis
from quantasr.speech.transducer.network import Floats, Network, log_softmax
from quantasr.speech.transducer.options import TransducerOptions, settings
from quantasr.speech.transducer.seams import spliced

_NATS = (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
"""Values of ``blank_penalty`` or ``length_bonus`` to be tried."""


class Search(Protocol):
    """Some recordings being searched at once, piece by piece."""

    def accept(self, encoded: Floats, counts: NDArray[np.int64]) -> None:
        """Take the next frames, ``[rows, frames, H]``, of which ``counts`` ``[rows]`` are speech."""
        ...

    def finish(self) -> list[Hypothesis]:
        """What was found; nothing can be accepted afterwards."""
        ...


class TransducerTranscriber(StepTranscriber):
    """A :class:`~quantasr.speech.transcript.Transcriber` around a transducer's parts.

    Options are those of :class:`~quantasr.speech.transducer.options.TransducerOptions`. The parts:

    - ``encoder``: ``features`` ``[batch, time, bins]``, ``lengths`` ``[batch]`` -> ``encoded`` ``[batch, frames, H]``
      with the joiner's projection applied, ``frame_counts`` ``[batch]``; of hybrid models also ``hidden`` for ``ctc``;
    - ``decoder``, the prediction network: ``tokens`` ``[batch, 1]`` and its states -> ``prediction`` ``[batch, H]``
      with the joiner's projection applied, and its next states;
    - ``joiner``: ``encoded`` ``[batch, frames, H]``, ``prediction`` ``[batch, H]`` -> ``logits`` ``[batch, frames,
      tokens + 1 (+ durations)]``: several frames at once, since a blank leaves the prediction what it was;
    - ``ctc``, of hybrid models: ``hidden`` -> ``logprobs`` ``[batch, frames, tokens + 1]``.
    """

    decoder: ClassVar[str] = "transducer"
    options: TransducerOptions

    def _prepare(self, decoding: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        facts, self.options = settings(decoding, options)
        self._network = Network(self.parts, facts, self.frontend, self.tokenizer.blank_id, self.name)
        chunk, overlap = self.options.chunk_seconds, self.options.overlap_seconds
        self._windows = Windows.of_seconds(chunk, overlap, self.frame_seconds, self.sample_rate) if chunk else None
        self._ctc: CtcTranscriber | None = None
        if self.options.head == "ctc":
            self._ctc = CtcTranscriber(
                CtcHead(self.parts, self.name),
                self.frontend,
                self.tokenizer,
                name=self.name,
                frame_seconds=self.frame_seconds,
                min_samples=self.min_samples,
                batch_size=self.batch_size,
                chunk_seconds=chunk,
                overlap_seconds=overlap,
            )
        elif self.options.beam_width > 1:
            BeamSearch.check(self._network, self.options)

    @property
    def tunable(self) -> Mapping[str, Sequence[Any]]:
        """What weighs blanks against tokens: quantized models lose tokens. In an RNN-T's beam search, only one does."""
        if self._ctc is not None:
            return {}
        beam = self.options.beam_width > 1 and len(self._network.durations) == 1
        return {"length_bonus" if beam else "blank_penalty": _NATS}

    def transcribe(self, waves: Sequence[Waveform]) -> list[Transcript]:
        """Transcribe a batch; the text of each is the same as when it is transcribed alone.

        Raises AudioError, naming the wave by its index, when one is empty, not mono, or holds NaN.
        """
        check_waves(waves)
        if self._ctc is not None:
            return self._ctc.transcribe(waves)
        limit = self._windows.length if self._windows else np.inf
        short = [i for i, wave in enumerate(waves) if wave.size <= limit]
        found = dict(zip(short, self._search_whole([waves[i] for i in short]), strict=True))
        return [
            self._transcript(found[i] if i in found else self._search_stream([wave]), wave.size)
            for i, wave in enumerate(waves)
        ]

    def transcribe_stream(self, blocks: Iterable[Waveform]) -> Transcript:
        """Transcribe one recording that comes in blocks of any size; at most two windows of it are held."""
        if self._ctc is not None:
            return self._ctc.transcribe_stream(blocks)
        counted = CountedBlocks(blocks)
        found = self._search_stream(counted)
        return self._transcript(found, counted.size)

    def paths(self, waves: Sequence[Waveform]) -> list[NDArray[np.int64]]:
        """Decisions ``[n, 2]`` for each wave: a token or the blank, and by how many frames the search went on.

        With the CTC head, the best token of each frame, ``[frames]``.
        """
        check_waves(waves)
        if self._ctc is not None:
            return [rows.argmax(-1) for rows in self.logprobs(waves, [])]
        return [np.array(found.path, np.int64).reshape(-1, 2) for found in self._search_whole(waves)]

    def logprobs(self, waves: Sequence[Waveform], paths: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        """Log-softmax of all the joiner's outputs at each decision of a path, ``[decisions, outputs]``.

        With the CTC head, its log-probs of each frame, whatever ``paths`` is.
        """
        check_waves(waves)
        if self._ctc is not None:
            whole = CtcHead(self.parts, self.name)
            found = []
            for wave in waves:
                features = self.frontend(self.filled(wave))
                found.append(whole(features[None], np.array([len(features)]))[0][0])
            return found
        return [self._follow(wave, path) for wave, path in zip(waves, paths, strict=True)]

    def encode(self, features: NDArray[np.float32]) -> object:
        """The encoder alone on the features of one wave."""
        return self.parts["encoder"]({"features": features[None], "lengths": np.array([len(features)])})

    def _follow(self, wave: Waveform, path: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores along one path: the decoder steps through its tokens, the joiner sees the frames of each step."""
        encoded, counts = self._network.encode([self.filled(wave)])
        prediction, state = self._network.start(1)
        at = np.concatenate([[0], np.cumsum(path[:, 1])[:-1]]).astype(np.int64)
        spoken = np.flatnonzero(path[:, 0] != self._network.blank)
        found, first = [], 0
        for last in [*spoken.tolist(), len(path) - 1]:
            frames = np.minimum(at[first : last + 1], counts[0] - 1)
            if len(frames):
                found.append(self._network.join(encoded[:, frames], prediction)[0])
            first = last + 1
            if first < len(path):
                prediction, state = self._network.step(path[last : last + 1, 0], state)
        return log_softmax(np.concatenate([np.zeros((0, self._network.outputs), np.float32), *found]))

    def _search(self, rows: int) -> Search:
        if self.options.beam_width > 1:
            return BeamSearch(self._network, self.options, rows)
        return GreedySearch(self._network, self.options, rows)

    def _search_whole(self, waves: Sequence[Waveform]) -> list[Hypothesis]:
        """Each wave in one piece, those of like lengths together."""
        order = sorted(range(len(waves)), key=lambda i: waves[i].size)
        found: dict[int, Hypothesis] = {}
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            encoded, counts = self._network.encode([self.filled(waves[i]) for i in batch])
            search = self._search(len(batch))
            search.accept(encoded, counts)
            found |= zip(batch, search.finish(), strict=True)
        return [found[i] for i in range(len(waves))]

    def _search_stream(self, blocks: Iterable[Waveform]) -> Hypothesis:
        """One recording in windows, or whole where nothing is cut."""
        if self._windows is None:
            wave = np.concatenate([np.zeros(0, np.float32), *blocks])
            check_waves([wave])
            return self._search_whole([wave])[0]
        search = self._search(1)
        for encoded in spliced(self._encode_windows(self._windows, blocks)):
            search.accept(encoded[None], np.array([len(encoded)]))
        return search.finish()[0]

    def _encode_windows(self, windows: Windows, blocks: Iterable[Waveform]) -> Iterator[tuple[int, Floats]]:
        cut = windows.cut(blocks)
        while some := list(islice(cut, self.batch_size)):
            encoded, counts = self._network.encode([self.filled(window.wave) for window in some])
            for window, row, count in zip(some, encoded, counts.tolist(), strict=True):
                yield window.start // windows.hop, row[:count]

    def _transcript(self, found: Hypothesis, samples: int) -> Transcript:
        return found.transcript(self.tokenizer, self.frame_seconds, samples / self.sample_rate)
