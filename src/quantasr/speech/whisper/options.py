"""What a Whisper model says of its search, and what a user may choose.

``decoding`` of an artifact is one flat JSON-ready dictionary: all keys of :class:`WhisperFacts`, and any of
:class:`WhisperOptions` for which the model has a default of its own (``suppress_tokens``, ``begin_suppress_tokens`` and
``max_initial_timestamp_index`` of generation_config.json, mostly). :func:`settings` reads it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from quantasr.errors import ArtifactError, RecipeError
from quantasr.speech.whisper.languages import LANGUAGES

TASKS = ("transcribe", "translate")
ENCODE = ("window", "audio")

_IDS = ("start", "end", "no_timestamps", "no_speech")
_OPTIONAL_IDS = ("prev_sot", "transcribe", "translate")


@dataclass(frozen=True)
class WhisperFacts:
    """Sizes and token ids of one Whisper model.

    ``layers``, ``heads`` and ``head_dim`` are the decoder's; ``vocabulary`` is the length of its logits; ``max_length``
    bounds prompt and text together (448), and ``frames`` is how many the encoder gives for a whole window (1500).
    ``start`` is ``<|startoftranscript|>``, ``end`` is ``<|endoftext|>``, ``no_speech`` is ``<|nospeech|>``;
    ``prev_sot`` opens the text before a window. The time stamps follow ``no_timestamps``. ``languages`` gives the
    token of each code (``en``), and is empty for an English-only model. ``alignment_heads`` are pairs of layer and
    head, as many as the decoder's output ``alignment`` has.
    """

    layers: int
    heads: int
    head_dim: int
    vocabulary: int
    start: int
    end: int
    no_timestamps: int
    no_speech: int
    max_length: int = 448
    frames: int = 1500
    prev_sot: int | None = None
    transcribe: int | None = None
    translate: int | None = None
    languages: Mapping[str, int] = field(default_factory=dict)
    alignment_heads: tuple[tuple[int, int], ...] = ()
    median_filter_width: int = 7

    def __post_init__(self) -> None:
        pairs = tuple((int(layer), int(head)) for layer, head in self.alignment_heads)
        object.__setattr__(self, "alignment_heads", pairs)
        object.__setattr__(self, "languages", dict(self.languages))
        for name in ("layers", "heads", "head_dim", "frames"):
            if getattr(self, name) < 1:
                raise ArtifactError(f"whisper: {name} is {getattr(self, name)}; it must be at least 1")
        if self.max_length < 8:
            raise ArtifactError(f"whisper: max_length is {self.max_length}: too short for a prompt and text")
        ids = {name: getattr(self, name) for name in (*_IDS, *_OPTIONAL_IDS)} | dict(self.languages)
        for name, token in ids.items():
            if token is None and name in _OPTIONAL_IDS:
                continue
            if not isinstance(token, int) or not 0 <= token < self.vocabulary:
                raise ArtifactError(f"whisper: token {name!r} is {token!r}, of a vocabulary of {self.vocabulary}")
        if self.median_filter_width < 1 or self.median_filter_width % 2 == 0:
            raise ArtifactError(f"whisper: median_filter_width is {self.median_filter_width}; it must be odd")

    @property
    def timestamp_begin(self) -> int:
        """The token of 0.00 s; all from there on are times."""
        return self.no_timestamps + 1

    @property
    def is_multilingual(self) -> bool:
        """Whether the prompt names a language and a task."""
        return bool(self.languages)

    def prompt_length(self, path: Any) -> int:
        """How many ids at the beginning of a path are its prompt: those between text and times."""
        count = 0
        while count < len(path) and self.end < path[count] < self.timestamp_begin:
            count += 1
        return count


@dataclass(frozen=True)
class WhisperOptions:
    """How Whisper's search goes.

    ``language`` is a code or an English name; None lets a multilingual model say which it hears. ``timestamps`` lets
    the model write times, which recordings of more than one window always need; ``word_timestamps`` gives words with
    times and probabilities. ``beam_width`` 1 is greedy; hypotheses are ranked by log-probability / length **
    ``length_penalty``. ``suppress_tokens`` are never written, ``begin_suppress_tokens`` not first; the first time is at
    most ``max_initial_timestamp_index`` steps of 20 ms.

    A window is searched at the first of ``temperatures``, and again at the next while its text repeats itself (more
    than ``compression_ratio_threshold``); above 0 tokens are drawn at random, from ``seed`` anew for each recording.
    ``no_speech_threshold``: at this probability of ``<|nospeech|>`` a text below ``logprob_threshold`` is dropped, at a
    higher one also a more probable text (see :mod:`quantasr.speech.whisper.fallback`). A window whose loudest mel band
    stays below ``silence_threshold`` dB (white noise of -76 dBFS), or changes by less than ``steady_threshold`` dB (a
    tone; speech changes by tens), is not heard at all. None switches a gate off.

    ``condition_on_previous_text`` shows each window the text before it. ``encode`` "audio" lets the encoder hear only
    as much as there is, and ``encode_margin`` seconds of silence, without which it goes round in circles (tiny.en on
    LJSpeech: WER 22.3 % with 0.3 s, 13.8 % with 1 s, 7.8 % with 4 s); "window" always 30 s, as in training (7.8 %).
    ``chunk_seconds`` is how much of a long recording is heard at once. ``max_tokens`` bounds the text of a window.
    """

    language: str | None = None
    task: str = "transcribe"
    timestamps: bool = False
    word_timestamps: bool = False
    beam_width: int = 1
    length_penalty: float = 1.0
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    seed: int = 0
    compression_ratio_threshold: float | None = 2.4
    logprob_threshold: float | None = -1.0
    no_speech_threshold: float | None = 0.6
    silence_threshold: float | None = -70.0
    steady_threshold: float | None = 1.0
    condition_on_previous_text: bool = False
    encode: str = "window"
    encode_margin: float = 4.0
    chunk_seconds: float = 30.0
    max_tokens: int | None = None
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    max_initial_timestamp_index: int | None = None

    def __post_init__(self) -> None:
        for name in ("temperatures", "suppress_tokens", "begin_suppress_tokens"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, (int, float)) else tuple(value or ()))
        for name, choices in {"task": TASKS, "encode": ENCODE}.items():
            if getattr(self, name) not in choices:
                raise RecipeError(f"{name} {getattr(self, name)!r} is unknown: {', '.join(choices)}")
        if self.beam_width < 1:
            raise RecipeError(f"beam_width is {self.beam_width}; it must be at least 1")
        if not self.temperatures or min(self.temperatures) < 0:
            raise RecipeError(f"temperatures are {list(self.temperatures)}; give one or more, none below 0")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise RecipeError(f"max_tokens is {self.max_tokens}; it must be at least 1")
        if not 1.0 <= self.chunk_seconds <= 30.0:
            raise RecipeError(f"chunk_seconds is {self.chunk_seconds:g}; Whisper hears 1 to 30 s at once")
        if self.logprob_threshold is not None and self.logprob_threshold >= 0:
            raise RecipeError(f"logprob_threshold is {self.logprob_threshold:g}; it must be below 0")
        if self.no_speech_threshold is not None and not 0 <= self.no_speech_threshold < 1:
            raise RecipeError(f"no_speech_threshold is {self.no_speech_threshold:g}; give 0 or more, but less than 1")
        if self.encode_margin < 0:
            raise RecipeError(f"encode_margin is {self.encode_margin:g} s; it must be 0 or more")


def settings(decoding: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[WhisperFacts, WhisperOptions]:
    """The model's facts, and its options with the user's put over them.

    Raises ArtifactError where ``decoding`` is not Whisper's, and RecipeError for an unknown or impossible option.
    """
    facts_keys, option_keys = ({entry.name for entry in fields(kind)} for kind in (WhisperFacts, WhisperOptions))
    strange = sorted(set(decoding) - facts_keys - option_keys)
    if strange:
        raise ArtifactError(f"whisper: decoding has an unknown key {strange[0]!r}; was it written by a newer version?")
    for name in options:
        if name not in option_keys:
            near = difflib.get_close_matches(name, sorted(option_keys), 3) or sorted(option_keys)
            raise RecipeError(f"Whisper's search has no option {name!r}; near it: {', '.join(near)}")
    try:
        facts = WhisperFacts(**{name: value for name, value in decoding.items() if name in facts_keys})
    except TypeError as error:
        raise ArtifactError(f"whisper: decoding is incomplete: {error}") from error
    own = {name: value for name, value in decoding.items() if name in option_keys}
    try:
        chosen = WhisperOptions(**{**own, **options})
    except TypeError as error:
        raise RecipeError(f"Whisper's search: an option has the wrong type: {error}") from error
    _check_fit(facts, chosen)
    return facts, chosen


def language_code(facts: WhisperFacts, language: str) -> str:
    """The code that the model has for a language's code or English name; raises RecipeError with near ones."""
    asked = language.strip().lower()
    code = next((code for code, name in LANGUAGES.items() if name == asked), asked)
    if code in facts.languages or (not facts.is_multilingual and code == "en"):
        return code
    if not facts.is_multilingual:
        raise RecipeError(f"language {language!r}: this model is English-only")
    known = [name for code in facts.languages for name in (code, LANGUAGES.get(code, code))]
    near = difflib.get_close_matches(asked, known, 4, 0.5) or sorted(facts.languages)[:8]
    raise RecipeError(f"language {language!r}: this model has it not; near it: {', '.join(near)}")


def _check_fit(facts: WhisperFacts, options: WhisperOptions) -> None:
    """Options that need something of the model."""
    if options.language is not None:
        language_code(facts, options.language)
    if options.task == "translate" and facts.translate is None:
        raise RecipeError("task 'translate': this model has no token for it; English-only models only transcribe")
    if options.word_timestamps and not facts.alignment_heads:
        raise RecipeError("word_timestamps: this model names no alignment_heads")
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        outside = [token for token in getattr(options, name) if not 0 <= token < facts.vocabulary]
        if outside:
            raise RecipeError(f"{name}: token {outside[0]} is not among the {facts.vocabulary} of this model")
