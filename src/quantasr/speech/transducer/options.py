"""What a transducer says of its search, and what a user may choose.

``decoding`` of an artifact is one flat JSON-ready dictionary: all keys of :class:`TransducerFacts`, and any of
:class:`TransducerOptions` for which the model has a default of its own. :func:`settings` reads it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from quantasr.errors import ArtifactError, RecipeError

HEADS = ("transducer", "ctc")
MAX_SYMBOLS = 10
"""Tokens of one frame at most, for models that name no number: NeMo's own default."""


@dataclass(frozen=True)
class TransducerFacts:
    """What the parts of one transducer are like.

    ``durations`` are the frames that each of the joiner's last outputs stands for (TDT), empty for RNN-T. ``states``
    describes the decoder's states at the beginning of a recording: name -> ``{"shape": [...], "type": "float32",
    "fill": 0}``, the batch axis left out; the decoder takes each by its name and gives ``next_<name>``.
    """

    durations: tuple[int, ...] = ()
    states: Mapping[str, Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        durations = tuple(int(duration) for duration in self.durations)
        object.__setattr__(self, "durations", durations)
        object.__setattr__(self, "states", {name: dict(row) for name, row in (self.states or {}).items()})
        if durations and (min(durations) < 0 or max(durations) < 1):
            raise ArtifactError(f"transducer: durations are {list(durations)}; none may be below 0, one must be above")
        for name, row in (self.states or {}).items():
            if set(row) != {"shape", "type", "fill"} or row["type"] not in ("float32", "int64"):
                raise ArtifactError(
                    f"transducer: state {name!r} needs a shape, a fill, and float32 or int64 as its type"
                )


@dataclass(frozen=True)
class TransducerOptions:
    """How a transducer's search goes.

    ``head``: which of a hybrid model's two heads is heard. ``beam_width`` 1 is greedy. ``max_symbols`` is how many
    tokens one frame may have: so a search ends even where the model never gives a blank. ``blank_penalty`` nats are
    taken off every blank's log-prob, and ``length_bonus`` nats are given to every token: more of either, fewer
    deletions; in a beam search of an RNN-T only the latter tells, because all its paths have equally many blanks.
    ``score_norm`` lets a beam search rank its hypotheses by log-prob divided by length, as NeMo does.

    Recordings longer than ``chunk_seconds`` are heard in windows that share ``overlap_seconds``; 0 never cuts.
    """

    head: str = "transducer"
    beam_width: int = 1
    max_symbols: int = MAX_SYMBOLS
    blank_penalty: float = 0.0
    length_bonus: float = 0.0
    score_norm: bool = True
    chunk_seconds: float = 30.0
    overlap_seconds: float = 5.0

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise RecipeError(f"head {self.head!r} is unknown: {', '.join(HEADS)}")
        for name in ("beam_width", "max_symbols"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RecipeError(f"{name} is {value!r}; it must be a whole number of at least 1")
        for name in ("blank_penalty", "length_bonus"):
            if not math.isfinite(getattr(self, name)):
                raise RecipeError(f"{name} is {getattr(self, name)}; it must be a finite number of nats")
        if self.head == "ctc" and (self.beam_width > 1 or self.blank_penalty or self.length_bonus):
            raise RecipeError(
                "head 'ctc' is searched greedily here: leave beam_width, blank_penalty and length_bonus out"
            )


def settings(decoding: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[TransducerFacts, TransducerOptions]:
    """The model's facts, and its options with the user's put over them.

    Raises ArtifactError where ``decoding`` is not a transducer's, and RecipeError for an unknown or impossible option.
    """
    facts_keys, option_keys = ({entry.name for entry in fields(kind)} for kind in (TransducerFacts, TransducerOptions))
    strange = sorted(set(decoding) - facts_keys - option_keys)
    if strange:
        raise ArtifactError(
            f"transducer: decoding has an unknown key {strange[0]!r}; was it written by a newer version?"
        )
    for name in options:
        if name not in option_keys:
            near = difflib.get_close_matches(name, sorted(option_keys), 3) or sorted(option_keys)
            raise RecipeError(f"a transducer's search has no option {name!r}; near it: {', '.join(near)}")
    facts = TransducerFacts(**{name: value for name, value in decoding.items() if name in facts_keys})
    own = {name: value for name, value in decoding.items() if name in option_keys}
    try:
        return facts, TransducerOptions(**{**own, **options})
    except TypeError as error:
        raise RecipeError(f"a transducer's search: an option has the wrong type: {error}") from error
