"""CTC beam search with a KenLM n-gram, unigrams and hotwords, through pyctcdecode (extra ``lm``)."""

from __future__ import annotations

import gzip
import weakref
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import EngineError, ModelLoadError, RecipeError
from quantasr.speech.decoding import Decoded, collapse
from quantasr.speech.tokenizer import WORD_START, Tokenizer, WordSpan

LN10 = float(np.log(10.0))
"""KenLM counts in powers of ten, everything else here in powers of e."""

EXPECTED_WORD_LENGTH = 6
"""A beginning of no known word costs more once it is longer than this, as in pyctcdecode's own model."""

# pyctcdecode takes a bare mark of a word's start for a break on both sides, unless something invisible follows it.
_FILLER = "\u2060"


@dataclass(frozen=True)
class BeamDecoder:
    """Prefix beam search (Hannun et al., 2014): acoustics + ``alpha`` · log P(words) + ``beta`` · words.

    ``lm`` is an ARPA or KenLM binary file; without it this is a plain search over prefixes. ``unigrams`` are the known
    words, read from the file when it is an ARPA: a beginning of no known word pays ``unk_penalty`` (nats) while it is
    one, a finished unknown word pays it (in powers of ten) on top of its probability. With none at all (empty, not
    None) every beginning pays, and of the finished words those that the n-gram lacks. ``sentence_start`` and
    ``sentence_end`` say whether the n-gram sees these. ``hotwords`` gain ``hotword_weight`` each.

    Tokens below ``min_token_logp`` and beams ``prune_logp`` below the best are dropped; frames whose blank is above
    ``blank_skip_logp``, if given, are left out. ``prune_history`` drops beams alike over the n-gram's whole history, or
    without one, in their last word; by default only with an n-gram. Special tokens are never written. Long recordings
    are searched in parts of one to two ``segment_frames``, cut in pauses; the n-gram's context goes on across them.
    Raises EngineError when the libraries are not installed.
    """

    beam_width: int = 64
    alpha: float = 0.5
    beta: float = 1.5
    lm: str | Path | None = None
    unigrams: tuple[str, ...] | None = None
    hotwords: tuple[str, ...] = ()
    hotword_weight: float = 10.0
    unk_penalty: float = -10.0
    prune_logp: float = -10.0
    min_token_logp: float = -5.0
    sentence_start: bool = True
    sentence_end: bool = True
    blank_skip_logp: float | None = None
    prune_history: bool | None = None
    segment_frames: int = 1500

    def __post_init__(self) -> None:
        for name in ("beam_width", "segment_frames"):
            if getattr(self, name) < 1:
                raise RecipeError(f"beam search: {name} is {getattr(self, name)}; it must be at least 1")
        if self.lm is not None and not Path(self.lm).is_file():
            raise ModelLoadError(f"language model {self.lm}: no such file; give an ARPA or KenLM binary file")
        if self.unigrams and self.lm is None:
            raise RecipeError("beam search: unigrams need a language model; to favour words without one, use hotwords")
        for name in ("unigrams", "hotwords"):
            # JSON has lists, and a frozen dataclass must be hashable.
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        _libraries()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary of all but the language model's file; ``BeamDecoder(**row, lm=...)`` reads it."""
        row = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "lm"}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in row.items()}

    def stream(self, tokenizer: Tokenizer) -> BeamStream:
        """Begin a recording; the language model is loaded with the first one."""
        if tokenizer not in self._searches:
            self._searches[tokenizer] = _Search(self, tokenizer, self._words)
        return BeamStream(self._searches[tokenizer])

    @cached_property
    def _searches(self) -> dict[Tokenizer, _Search]:
        return {}

    @cached_property
    def _words(self) -> _WordModel | None:
        return None if self.lm is None else _WordModel.load(Path(self.lm), self)


class BeamStream:
    """Holds the frames of one part and the words so far; see :class:`~quantasr.speech.decoding.DecodeStream`."""

    def __init__(self, search: _Search) -> None:
        self._search = search
        self._held: list[NDArray[np.float32]] = []
        self._held_frames = 0
        self._frames = 0  # already searched
        self._words: list[WordSpan] = []
        self._glued = False  # the last cut may have been within a word
        self._logprob = 0.0
        self._state: Any = None

    def accept(self, logprobs: NDArray[np.float32]) -> None:
        """Take the next frames, ``[frames, vocab]``."""
        # A copy: a view would keep the whole array alive.
        self._held.append(logprobs.copy())
        self._held_frames += len(logprobs)
        segment = self._search.options.segment_frames
        while self._held_frames >= segment:
            frames = np.concatenate(self._held)
            cut = find_cut(frames[: 2 * segment], self._search.tokenizer, must=self._held_frames >= 2 * segment)
            if cut is None:
                self._held = [frames]
                return
            heard = self._decode(frames[: cut.frame], last=False)
            # Silence between two cuts parts no words that were not parted.
            self._glued = cut.within_word and (heard or self._glued)
            self._held, self._held_frames = [frames[cut.frame :]], len(frames) - cut.frame

    def finish(self) -> Decoded:
        """The result; see :class:`~quantasr.speech.decoding.Decoded`."""
        if self._held_frames:
            self._decode(np.concatenate(self._held), last=True)
        self._held, self._held_frames = [], 0
        return Decoded(
            text=self._search.tokenizer.join(word.text for word in self._words),
            words=tuple(self._words),
            score=self._logprob / self._frames if self._frames else None,
            frames=self._frames,
        )

    def _decode(self, frames: NDArray[np.float32], *, last: bool) -> bool:
        """Search the next part; whether there were words in it."""
        words, logprob, self._state = self._search(frames, self._state, last=last)
        found = [WordSpan(text, start + self._frames, end + self._frames) for text, start, end in words]
        if self._glued and self._words and found and not begins_word(frames, self._search.tokenizer):
            before, after = self._words.pop(), found[0]
            found[0] = WordSpan(before.text + after.text, before.start, after.end)
        self._words += found
        self._frames += len(frames)
        self._logprob += logprob
        return bool(found)


class Cut(NamedTuple):
    """Where frames may be parted, and whether a word may go on across it."""

    frame: int
    within_word: bool


def find_cut(logprobs: NDArray[np.float32], tokenizer: Tokenizer, *, must: bool) -> Cut | None:
    """The middle of the longest pause between words in the last three quarters of ``[frames, vocab]``.

    None when there is none, unless it ``must`` cut, or the vocabulary has nothing that parts words: then the longest
    pause of any kind, or the end.
    """
    ids = logprobs.argmax(axis=1)
    delimiters, starts = tokenizer.delimiter_ids, tokenizer.word_start_ids
    runs = collapse(ids)
    spoken = runs[~np.isin(runs[:, 0], [tokenizer.blank_id, *delimiters])]
    # Pauses lie between the end of one run and the beginning of the next, the edges of the part included.
    begins = np.concatenate([[0], spoken[:, 2]])
    ends = np.concatenate([spoken[:, 1], [len(ids)]])
    is_delimiter = np.concatenate([[0], np.cumsum(np.isin(ids, list(delimiters)))])
    parts_words = is_delimiter[ends] > is_delimiter[begins]
    parts_words[:-1] |= np.isin(spoken[:, 0], list(starts))
    middles = (begins + ends + 1) // 2
    usable = (middles >= len(ids) // 4) & (ends > begins)
    for chosen, within_word in ((usable & parts_words, False), (usable, True)):
        if chosen.any():
            longest = int(np.argmax(np.where(chosen, ends - begins, -1)))
            return Cut(max(1, int(middles[longest])), within_word)
        if not must and (delimiters or starts):
            return None
    return Cut(len(ids), True)


def begins_word(logprobs: NDArray[np.float32], tokenizer: Tokenizer) -> bool:
    """Whether the first token that is not blank parts what follows from what was before."""
    ids = logprobs.argmax(axis=1)
    tokens = ids[ids != tokenizer.blank_id]
    return len(tokens) > 0 and int(tokens[0]) in tokenizer.delimiter_ids | tokenizer.word_start_ids


class _Search:
    """pyctcdecode's search, set up for one vocabulary."""

    def __init__(self, options: BeamDecoder, tokenizer: Tokenizer, words: _WordModel | None) -> None:
        self.options = options
        self.tokenizer = tokenizer
        self._words = words
        self._lock = Lock()  # the word model is told whether a part is the last
        labels = _labels(tokenizer)
        if words is not None:
            words.require_spelling("".join(labels))
        delimiters = tokenizer.delimiter_ids
        self._never = sorted(tokenizer.special_ids - delimiters - {tokenizer.blank_id})
        pyctcdecode = _libraries()
        # Built by hand: pyctcdecode's own way guesses from the labels which is the blank, and takes "_" for one.
        alphabet = pyctcdecode.alphabet.Alphabet(labels, tokenizer.kind == "pieces")
        self._search = pyctcdecode.BeamSearchDecoderCTC(alphabet, words)
        # It keeps language models in a table of the class; ours goes with us.
        weakref.finalize(self, self._search.cleanup)

    def __call__(self, logprobs: NDArray[np.float32], state: Any, *, last: bool) -> tuple[list[WordSpan], float, Any]:
        """``[frames, vocab]``, n-gram state -> words, log-probability of the frames, n-gram state."""
        options = self.options
        logprobs = np.maximum(logprobs[:, : len(self.tokenizer)], -100.0)
        logprobs[:, self._never] = -100.0
        limit = np.inf if options.blank_skip_logp is None else options.blank_skip_logp
        kept = np.flatnonzero(logprobs[:, self.tokenizer.blank_id] <= limit)
        logprobs = logprobs[kept]
        if not len(kept):
            return [], 0.0, state
        with self._lock:
            if self._words is not None:
                self._words.last_part = last
            beams = self._search.decode_beams(
                logprobs,
                beam_width=options.beam_width,
                beam_prune_logp=options.prune_logp,
                token_min_logp=options.min_token_logp,
                prune_history=self._words is not None if options.prune_history is None else options.prune_history,
                hotwords=options.hotwords,
                hotword_weight=options.hotword_weight,
                lm_start_state=state,
            )
        words, logprob, state = _best(beams)
        # Back to the frames as they were before some were left out.
        spans = [WordSpan(text, int(kept[start]), int(kept[end - 1]) + 1) for text, start, end in words]
        return spans, logprob, state


def _best(beams: Sequence[Any]) -> tuple[list[WordSpan], float, Any]:
    """Words, log-probability and n-gram state of the best beam, beams of the same words taken together."""
    alike: dict[tuple[str, ...], list[Any]] = {}
    for beam in beams:
        words = (text.replace(_FILLER, "") for text, _ in beam[2])
        alike.setdefault(tuple(word for word in words if word), []).append(beam)
    best = max(alike.values(), key=lambda same: float(np.logaddexp.reduce([score for *_, score in same])))
    _, state, words, _, _ = best[0]
    spans = (WordSpan(text.replace(_FILLER, ""), start, end) for text, (start, end) in words)
    logprob = float(np.logaddexp.reduce([beam[3] for beam in best]))
    return [span for span in spans if span.text], logprob, state


class _WordModel:
    """A KenLM model and the words it knows, as pyctcdecode asks for them (its ``AbstractLanguageModel``)."""

    def __init__(self, path: Path, model: Any, unigrams: Sequence[str] | None, options: BeamDecoder) -> None:
        self._path = path
        self._model = model
        self._known = sorted(set(unigrams)) if unigrams is not None else None
        self._known_set = frozenset(self._known or ())
        self._options = options
        self.last_part = True
        self.order: int = model.order

    @classmethod
    def load(cls, path: Path, options: BeamDecoder) -> _WordModel:
        """Read an ARPA or KenLM binary file; raises ModelLoadError when it is neither."""
        import kenlm

        config = kenlm.Config()
        config.show_progress = False
        config.arpa_complain = kenlm.ARPALoadComplain.NONE
        try:
            model = kenlm.Model(str(path), config)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ModelLoadError(f"language model {path}: not an ARPA or KenLM binary file: {reason}") from error
        unigrams = options.unigrams if options.unigrams is not None else read_unigrams(path)
        return cls(path, model, unigrams, options)

    def require_spelling(self, letters: str) -> None:
        """Raise ModelLoadError when no known word can be spelled, as with words in another case than the letters."""
        spelled = frozenset(letters)
        if self._known and not any(spelled.issuperset(word) for word in self._known):
            raise ModelLoadError(
                f"language model {self._path}: none of its {len(self._known)} words (such as '{self._known[-1]}') can "
                f"be spelled with the model's tokens; are they in another case or language?"
            )

    def get_start_state(self) -> Any:
        """The state before the first word."""
        import kenlm

        state = kenlm.State()
        if self._options.sentence_start:
            self._model.BeginSentenceWrite(state)
        else:
            self._model.NullContextWrite(state)
        return state

    def score(self, state: Any, word: str, is_last_word: bool = False) -> tuple[float, Any]:
        """Score of a word after a state, and the state after it."""
        import kenlm

        word = word.replace(_FILLER, "")
        if word:
            after = kenlm.State()
            score = self._model.BaseScore(state, word, after)
            unknown = word not in self._model or (bool(self._known) and word not in self._known_set)
        else:
            after, score, unknown = state, 0.0, False
        if is_last_word and self.last_part and self._options.sentence_end:
            score += self._model.BaseScore(after, "</s>", kenlm.State())
        if unknown:
            score += self._options.unk_penalty
        return self._options.alpha * score * LN10 + (self._options.beta if word else 0.0), after

    def score_partial_token(self, partial: str) -> float:
        """Penalty of a word's beginning, 0 when some known word begins so or no words are known."""
        partial = partial.replace(_FILLER, "")
        if self._known is None:
            return 0.0
        at = bisect_left(self._known, partial)
        if at < len(self._known) and self._known[at].startswith(partial):
            return 0.0
        return self._options.unk_penalty * max(1.0, len(partial) / EXPECTED_WORD_LENGTH)


def read_unigrams(path: Path) -> list[str] | None:
    """The words of an ARPA file, plain or gzipped, but for marks; None for KenLM's binary form, which lists none."""
    with path.open("rb") as file:
        magic = file.read(9)
    if magic.startswith(b"mmap lm"):
        return None
    with gzip.open(path) if magic.startswith(b"\x1f\x8b") else path.open("rb") as file:
        return list(_unigram_lines(line.decode("utf-8", "replace") for line in file))


def _unigram_lines(lines: Iterator[str]) -> Iterator[str]:
    inside = False
    for line in lines:
        if line.startswith("\\"):
            if inside:
                return
            inside = line.strip() == "\\1-grams:"
        elif inside and line.strip():
            word = line.split()[1]
            if word not in ("<s>", "</s>", "<unk>", "<UNK>"):
                yield word


def _labels(tokenizer: Tokenizer) -> list[str]:
    """The tokens as pyctcdecode wants them: the blank empty, a delimiter a space."""
    labels = []
    for i, token in enumerate(tokenizer.tokens):
        if i == tokenizer.blank_id:
            label = ""
        elif i in tokenizer.delimiter_ids:
            label = WORD_START + _FILLER if tokenizer.kind == "pieces" else " "
        else:
            label = token.lower() if tokenizer.lowercase else token
        labels.append(label)
    return labels


def _libraries() -> Any:
    """pyctcdecode, with kenlm beside it; imported only here, for it is an extra."""
    try:
        import kenlm  # noqa: F401
        import pyctcdecode
        import pyctcdecode.alphabet
    except ImportError as error:
        raise EngineError(f"beam search needs {error.name}: pip install 'quantasr[lm]'") from error
    return pyctcdecode
