"""What a search found in one recording, and the transcript that it becomes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from quantasr.speech.tokenizer import WORD_START, Tokenizer
from quantasr.speech.transcript import Transcript, Word


@dataclass
class Hypothesis:
    """Tokens with the frames that they begin on and last, their log-probs, and all decisions on the way.

    ``path`` has a pair for each decision: the token, the blank included, and by how many frames the search went on.
    ``score`` is the log-prob of the path, ``heard`` how many frames the recording has.
    """

    tokens: list[int] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    path: list[tuple[int, int]] = field(default_factory=list)
    score: float = 0.0
    heard: int = 0

    def transcript(self, tokenizer: Tokenizer, frame_seconds: float, duration: float) -> Transcript:
        """Text, and words from the begin of their first token to the end of their last, as NeMo times them.

        A word's confidence is the geometric mean of its tokens' probabilities.
        """
        starts, ends = self._spans(tokenizer)
        places = range(len(self.tokens))
        words = []
        for word in tokenizer.words(self.tokens, list(places), [place + 1 for place in places]):
            # A mark of a word's start may be a token of its own.
            marked = (
                tokenizer.kind == "pieces" and word.start and self.tokens[word.start - 1] in tokenizer.delimiter_ids
            )
            start, end = starts[word.start - bool(marked)] * frame_seconds, ends[word.end - 1] * frame_seconds
            sure = math.exp(sum(self.logprobs[word.start : word.end]) / (word.end - word.start))
            # Zeros that filled up a short recording are no part of it.
            words.append(Word(word.text, min(start, duration), min(end, duration), sure))
        score = self.score / self.heard if self.heard else None
        return Transcript(tokenizer.decode(self.tokens), duration, tuple(words), score)

    def _spans(self, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
        """First frame and end of each token; a punctuation mark, often said much later, has no length."""
        starts, ends = list(self.frames), []
        for place, (token, start, lasts) in enumerate(zip(self.tokens, self.frames, self.durations, strict=True)):
            ends.append(start + lasts)
            mark = tokenizer.token(token).removeprefix(WORD_START)
            if place and mark and mark in tokenizer.punctuation:
                starts[place] = ends[place] = ends[place - 1]
        return starts, ends
