"""Whisper as a recogniser: recordings of any length in, text out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import AudioError
from quantasr.speech.frontend import WhisperMelFrontend
from quantasr.speech.parts import Arrays
from quantasr.speech.steps import StepTranscriber
from quantasr.speech.transcript import Transcript, Waveform, Word
from quantasr.speech.whisper.fallback import decide
from quantasr.speech.whisper.levels import LevelStream, loudest_of
from quantasr.speech.whisper.memory import require_memory
from quantasr.speech.whisper.options import WhisperOptions, settings
from quantasr.speech.whisper.segments import ROWS_PER_STEP, TIME_STEP, Segment, cut, read_before
from quantasr.speech.whisper.tokenizer import WhisperTokenizer
from quantasr.speech.whisper.transcript import WhisperTranscript
from quantasr.speech.whisper.window import WindowSearch
from quantasr.speech.whisper.words import word_times


@dataclass
class _Heard:
    """What was found of one recording so far."""

    random: np.random.Generator
    language: str | None = None
    segments: list[Segment] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    logprob: float = 0.0
    tokens: int = 0
    conditioned: bool = False


_STEADY_ROWS = 50  # half a second, in which speech changes

_GATES = {"logprob_threshold": (-1.5, -1.25, -1.0, -0.75, -0.5), "no_speech_threshold": (0.4, 0.5, 0.6, 0.7, 0.8)}


class WhisperTranscriber(StepTranscriber):
    """A :class:`~quantasr.speech.transcript.Transcriber` around a Whisper model's ``encoder`` and ``decoder``.

    Options are those of :class:`~quantasr.speech.whisper.options.WhisperOptions`. Recordings of up to
    ``chunk_seconds`` are heard at once; longer ones in windows that begin where the time stamps of the one before end.
    """

    decoder: ClassVar[str] = "whisper"
    tokenizer_type: ClassVar[Any] = WhisperTokenizer
    frontend: WhisperMelFrontend
    tokenizer: WhisperTokenizer
    options: WhisperOptions

    def _prepare(self, decoding: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        self.facts, self.options = settings(decoding, options)
        if self.options.beam_width > 1:
            require_memory(self.facts, self.options.beam_width)
        self._window = WindowSearch(self.parts, self.facts, self.options, self.name)
        self._rows = self.frontend.window_frames
        whole = self.frontend.chunk_seconds
        self._chunk_rows = min(self._rows, round(self.options.chunk_seconds * self._rows / whole))

    @property
    def tunable(self) -> Mapping[str, Sequence[Any]]:
        """The gates that judge a text by its probability, and with a beam how texts of unlike lengths compare."""
        found: dict[str, Sequence[Any]] = {"length_penalty": (0.4, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0)}
        if self.options.beam_width == 1:
            found = {}
        for name, values in _GATES.items():
            if getattr(self.options, name) is not None:
                found[name] = values
        return found

    def transcribe(self, waves: Sequence[Waveform]) -> list[Transcript]:
        """Transcribe a batch; the text of each is the same as when it is transcribed alone.

        A recording without samples has no text. Raises AudioError, naming the wave by its index, when one is not mono,
        or holds NaN.
        """
        _check(waves)
        return [self._transcribe(wave) for wave in waves]

    def transcribe_stream(self, blocks: Iterable[Waveform]) -> WhisperTranscript:
        """Transcribe one recording that comes in blocks of any size; of a long one no more than two windows are held.

        A long one is normalised by the loudest it has heard so far, instead of the loudest of the whole.
        """
        coming = iter(blocks)
        held: list[Waveform] = []
        while sum(block.size for block in held) <= self._chunk_samples:
            block = next(coming, None)
            if block is None:
                return self._transcribe(np.concatenate(held) if held else np.zeros(0, np.float32))
            _check([block])
            held.append(block)
        return self._long(chain(held, _checked(coming)))

    def paths(self, waves: Sequence[Waveform]) -> list[NDArray[np.int64]]:
        """Prompt and tokens that the search finds at temperature 0, without gates, in the first window of each wave.

        The end is left out. The prompt are the first :meth:`WhisperFacts.prompt_length` tokens.
        """
        found = []
        for wave in waves:
            cross = self.encode(self._features(wave))
            prompt = self._window.prompt(self._window.language(cross), timestamps=self.options.timestamps)
            opening = self._window.open(cross, prompt)
            hypothesis = self._window.search(opening, timestamps=self.options.timestamps)
            found.append(np.array([*prompt, *hypothesis.tokens], np.int64))
        return found

    def logprobs(self, waves: Sequence[Waveform], paths: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        """Log-probs of all tokens, none suppressed, after the prompt and after each token behind it.

        ``[tokens + 1, vocabulary]``; the decoder is called as in a search: the prompt at once, then a token a call.
        """
        found = []
        decoder = self._window.decoder
        for wave, path in zip(waves, paths, strict=True):
            prompt = self.facts.prompt_length(path)
            state = decoder.begin(self.encode(self._features(wave)))
            logits, state = decoder.step(state, path[None, :prompt], (prompt - 1,))
            rows = [logits[0, 0]]
            for token in path[prompt : self.facts.max_length]:
                logits, state = decoder.step(state, np.array([[token]], np.int64), (0,))
                rows.append(logits[0, 0])
            scores = np.stack(rows)
            scores -= scores.max(axis=1, keepdims=True)
            found.append(scores - np.log(np.exp(scores).sum(axis=1, keepdims=True)))
        return found

    def encode(self, features: NDArray[np.float32]) -> Arrays:
        """The encoder alone on the features of one window."""
        return self._window.encode(features)

    def encoder_call(self, wave: Waveform) -> Callable[[], object]:
        """A call that runs the encoder alone on the features of one wave's first window, to be timed."""
        features = self._features(wave)
        return lambda: self.encode(features)

    @property
    def _chunk_samples(self) -> int:
        return self._chunk_rows * self.frontend.hop_length

    def _features(self, wave: Waveform) -> NDArray[np.float32]:
        """What the encoder hears of a wave that is at most a window, or of the first window of a longer one."""
        _check([wave])
        wave = self.filled(wave[: self._chunk_samples])
        return self.frontend(wave)[: self._encoded_rows(wave.size // self.frontend.hop_length)]

    def _encoded_rows(self, rows: int) -> int:
        """How many rows the encoder hears where there are ``rows`` of sound; always even."""
        if self.options.encode == "window":
            return self._rows
        margin = round(self.options.encode_margin * self.sample_rate / self.frontend.hop_length)
        return min(self._rows, (rows + margin + 2) // 2 * 2)

    def _transcribe(self, wave: Waveform) -> WhisperTranscript:
        if wave.size > self._chunk_samples:
            block = self._chunk_samples
            loudest = loudest_of(self.frontend, wave, block)
            return self._long((wave[i : i + block] for i in range(0, wave.size, block)), loudest)
        heard = self._begin()
        if wave.size:
            levels = self.frontend.levels(self.filled(wave))
            features = self.frontend.normalized(levels, float(levels.max()))
            if not self._is_unspoken(levels[: -(-wave.size // self.frontend.hop_length)]):
                self._short(features, heard, -(-wave.size // self.frontend.hop_length))
        return self._finish(heard, wave.size)

    def _begin(self) -> _Heard:
        return _Heard(np.random.default_rng(self.options.seed))

    def _short(self, features: NDArray[np.float32], heard: _Heard, content: int) -> None:
        """All windows of a recording that fits into one, ``content`` rows of which are sound."""
        rows = self._encoded_rows(content)
        if not self.options.timestamps:
            self._window_text(features[:rows], heard, 0.0, content, timestamps=False)
            return
        start = 0
        while start < content:
            seen = features[start:rows]
            start += self._window_text(
                self._padded(seen), heard, start / ROWS_PER_STEP * TIME_STEP, rows - start, timestamps=True
            )

    def _long(self, blocks: Iterable[Waveform], loudest: float | None = None) -> WhisperTranscript:
        stream = LevelStream(self.frontend, blocks, loudest)
        heard = self._begin()
        start = 0
        while len(levels := stream.window(start, self._chunk_rows)):
            if self._is_unspoken(levels):
                start += len(levels)
                continue
            offset = start / ROWS_PER_STEP * TIME_STEP
            features = self._padded(stream.features(levels))
            start += self._window_text(features, heard, offset, len(levels), timestamps=True)
        return self._finish(heard, stream.samples)

    def _is_unspoken(self, levels: NDArray[np.float32]) -> bool:
        """Whether there is no sound to be heard, or one that does not change: a tone, a hum."""
        silence, steady = self.options.silence_threshold, self.options.steady_threshold
        if silence is not None and 10.0 * float(levels.max()) < silence:
            return True
        if steady is None or len(levels) < _STEADY_ROWS:
            return False
        low, high = np.percentile(levels[:, levels.mean(axis=0).argmax()], (5, 95))
        return 10.0 * float(high - low) < steady

    def _padded(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """A window of a long recording filled up as transformers does it: with zeros, which is no silence."""
        rows = self._encoded_rows(len(features))
        return np.pad(features, ((0, max(0, rows - len(features))), (0, 0)))

    def _window_text(
        self, features: NDArray[np.float32], heard: _Heard, offset: float, rows: int, *, timestamps: bool
    ) -> int:
        """Search one window, ``rows`` rows of which are the recording's -> how many rows to go on by."""
        window = self._window
        cross = window.encode(features)
        if heard.language is None:
            heard.language = window.language(cross)
        previous = read_before(heard.segments, self.facts) if heard.conditioned else ()
        opening = window.open(cross, window.prompt(heard.language, timestamps=timestamps, previous=previous))
        decision = decide(window, self.tokenizer, opening, heard.random, timestamps=timestamps)
        heard.conditioned = self.options.condition_on_previous_text and decision.temperature < 0.5
        hypothesis = decision.hypothesis
        if not hypothesis.tokens:
            return rows
        heard.logprob += hypothesis.logprob
        heard.tokens += len(hypothesis.tokens) + hypothesis.ended
        segments, advance = [Segment(hypothesis.tokens, offset, offset + rows / ROWS_PER_STEP * TIME_STEP)], rows
        if timestamps:
            segments, advance = cut(hypothesis.tokens, self.facts, offset=offset, rows=rows)
        heard.segments += segments
        if self.options.word_timestamps:
            text = [token for segment in segments for token in segment.tokens if token < self.facts.end]
            steps = min(rows, advance) // ROWS_PER_STEP
            heard.words += word_times(window, self.tokenizer, cross, text, heard.language, steps=steps, offset=offset)
        return max(advance, 1)

    def _finish(self, heard: _Heard, samples: int) -> WhisperTranscript:
        duration = samples / self.sample_rate
        text = self.tokenizer.decode(token for segment in heard.segments for token in segment.tokens).strip()
        spoken = [(self.tokenizer.decode(segment.tokens).strip(), segment) for segment in heard.segments]
        return WhisperTranscript(
            text,
            duration,
            tuple(replace(word, end=min(word.end, duration)) for word in heard.words),
            heard.logprob / heard.tokens if heard.tokens else None,
            heard.language,
            tuple(Word(part, segment.start, min(segment.end, duration)) for part, segment in spoken if part),
        )


def _check(waves: Sequence[Waveform]) -> None:
    """Raise AudioError unless all are mono and finite."""
    for i, wave in enumerate(waves):
        if wave.ndim != 1:
            raise AudioError(f"wave {i}: shape {list(wave.shape)}; one channel is needed")
        if not np.isfinite(wave).all():
            raise AudioError(f"wave {i}: holds NaN or infinite samples; the recording is damaged")


def _checked(blocks: Iterator[Waveform]) -> Iterator[Waveform]:
    for block in blocks:
        _check([block])
        yield block
