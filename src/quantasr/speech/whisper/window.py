"""One window of at most 30 s: encoded, opened with a prompt, searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantasr.speech.parts import Arrays, Parts
from quantasr.speech.whisper.beam import beam_search
from quantasr.speech.whisper.decoder import DecoderState, WhisperDecoder
from quantasr.speech.whisper.greedy import Hypothesis, greedy
from quantasr.speech.whisper.options import WhisperFacts, WhisperOptions, language_code
from quantasr.speech.whisper.rules import Rules


@dataclass(frozen=True)
class Opening:
    """The decoder after its prompt: what comes next is scored by ``logits`` ``[vocabulary]``."""

    prompt: tuple[int, ...]
    state: DecoderState
    logits: NDArray[np.float32]
    no_speech: float


class WindowSearch:
    """Encoder and decoder on one window at a time."""

    def __init__(self, parts: Parts, facts: WhisperFacts, options: WhisperOptions, name: str) -> None:
        self._encoder = parts["encoder"]
        self.decoder = WhisperDecoder(parts["decoder"], facts, name)
        self.facts = facts
        self.options = options
        self._rules = {timed: Rules(facts, options, timestamps=timed) for timed in (False, True)}

    def encode(self, features: NDArray[np.float32]) -> Arrays:
        """``[time, bins]`` -> what the decoder hears."""
        return self._encoder({"features": features[None]})

    def language(self, cross: Arrays) -> str | None:
        """The language asked for, or the one heard; None for an English-only model."""
        if not self.facts.is_multilingual:
            return None
        if self.options.language is not None:
            return language_code(self.facts, self.options.language)
        logits, _ = self.decoder.step(self.decoder.begin(cross), np.array([[self.facts.start]]), (0,))
        codes = list(self.facts.languages)
        return codes[int(logits[0, 0, [self.facts.languages[code] for code in codes]].argmax())]

    def prompt(self, language: str | None, *, timestamps: bool, previous: Sequence[int] = ()) -> tuple[int, ...]:
        """What the decoder reads first: the text before, if any, then language, task, and whether it writes times."""
        facts = self.facts
        found = [facts.start]
        if language is not None:
            task = facts.translate if self.options.task == "translate" else facts.transcribe
            found += [facts.languages[language], *([] if task is None else [task])]
        if not timestamps:
            found.append(facts.no_timestamps)
        if previous and facts.prev_sot is not None:
            return (facts.prev_sot, *previous[-(facts.max_length // 2 - 1) :], *found)
        return tuple(found)

    def open(self, cross: Arrays, prompt: Sequence[int]) -> Opening:
        """Read the prompt in one call."""
        start = len(prompt) - 1 - tuple(reversed(prompt)).index(self.facts.start)
        rows = sorted({start, len(prompt) - 1})
        logits, state = self.decoder.step(self.decoder.begin(cross), np.array([prompt], np.int64), rows)
        at_start = logits[0, 0]
        no_speech = np.exp(at_start[self.facts.no_speech] - _log_sum(at_start))
        return Opening(tuple(prompt), state, logits[0, -1], float(no_speech))

    def search(
        self,
        opening: Opening,
        *,
        timestamps: bool,
        temperature: float = 0.0,
        random: np.random.Generator | None = None,
    ) -> Hypothesis:
        """The text behind the prompt: the best by beam or one token at a time, or drawn at random."""
        facts, options = self.facts, self.options
        limit = facts.max_length - len(opening.prompt)
        if options.max_tokens is not None:
            limit = min(limit, options.max_tokens)
        rules, first = self._rules[timestamps], opening.logits.copy()
        if temperature == 0.0 and options.beam_width > 1:
            return beam_search(
                self.decoder,
                opening.state,
                first,
                rules,
                end=facts.end,
                limit=limit,
                width=options.beam_width,
                length_penalty=options.length_penalty,
            )
        return greedy(
            self.decoder,
            opening.state,
            first,
            rules,
            end=facts.end,
            limit=limit,
            temperature=temperature,
            random=random,
            loop_before=None if options.compression_ratio_threshold is None else facts.timestamp_begin,
        )


def _log_sum(row: NDArray[np.float32]) -> float:
    """log of the sum of exp."""
    best = float(row.max())
    return best + float(np.log(np.exp(row - best).sum()))
