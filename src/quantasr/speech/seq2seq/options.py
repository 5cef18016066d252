"""What an attention model says of its search, and what a user may choose instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

from quantasr.errors import ArtifactError, RecipeError
from quantasr.speech.attention import CHUNK_SECONDS
from quantasr.speech.seq2seq.states import StateSpec

WIDEST = 1024
"""Hypotheses side by side: each holds a state of its own, and scores for the whole vocabulary."""

_BEAM_DEFAULTS = {"beam_width": 8, "length_normalization": True, "eos_threshold": 1.5}
"""Of a model that is greedy by itself and is given a wider beam: SpeechBrain's own, but for the width."""


@dataclass(frozen=True)
class SearchOptions:
    """A search, as ``S2SGreedySearcher`` and ``S2SBeamSearcher`` of SpeechBrain have them; validated when it is built.

    ``beam_width`` 0 is the greedy search. It takes ``int(frames * max_decode_ratio)`` steps at most. Of each token's
    log-probs at ``temperature``, ``1 - ctc_weight`` counts, and the scorers' shares are added: ``ctc_weight`` of CTC's
    prefix scores (Watanabe et al., 2017), ``lm_weight`` of a language model's log-probs at ``lm_temperature``,
    ``coverage_weight`` of the penalty for frames whose attention sums up to more than ``coverage_threshold``, and
    ``length_weight`` for each token. Where a weight is 0 the scorer is not asked.

    A hypothesis may only end where the end is more likely than the best token by the factor ``eos_threshold``
    (arXiv 1904.02619); None for no such rule. One whose attention moves by more than ``max_attn_shift`` frames is
    blocked; None for any. ``partial`` names the scorers that only see the best ``beam_width * candidate_scale`` tokens
    of each hypothesis. ``length_normalization`` divides scores by the number of tokens.

    ``max_tokens`` and ``max_seconds`` are what the model has positions for; None where it has no table of them.
    ``chunk_seconds`` is as in :class:`quantasr.speech.attention.AttentionTranscriber`.
    """

    bos: int
    eos: int
    vocabulary: int
    memory: tuple[str, ...]
    states: Mapping[str, Mapping[str, StateSpec]]
    beam_width: int = 0
    min_decode_ratio: float = 0.0
    max_decode_ratio: float = 1.0
    temperature: float = 1.0
    length_normalization: bool = True
    eos_threshold: float | None = None
    max_attn_shift: int | None = None
    ctc_weight: float = 0.0
    ctc_window: int = 0
    blank: int | None = None
    lm_weight: float = 0.0
    lm_temperature: float = 1.0
    coverage_weight: float = 0.0
    coverage_threshold: float = 0.5
    length_weight: float = 0.0
    partial: tuple[str, ...] = ()
    candidate_scale: float = 2.0
    max_tokens: int | None = None
    max_seconds: float | None = None
    attention: bool = False
    chunk_seconds: float = CHUNK_SECONDS

    def __post_init__(self) -> None:
        if not 0 <= self.beam_width <= WIDEST:
            raise RecipeError(f"beam_width is {self.beam_width}; give 0 (greedy) to {WIDEST}, or memory does not do")
        for name in ("min_decode_ratio", "max_decode_ratio", "lm_weight", "coverage_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise RecipeError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        for name in ("temperature", "lm_temperature", "candidate_scale"):
            if not 0 < getattr(self, name) < float("inf"):
                raise RecipeError(f"{name} is {getattr(self, name)}; it must be more than 0")
        if not 0 <= self.ctc_weight < 1:
            raise RecipeError(f"ctc_weight is {self.ctc_weight}; it must be at least 0 and less than 1")
        if self.ctc_weight and self.blank is None:
            raise RecipeError("ctc_weight: the model has no CTC scorer")
        if self.lm_weight and "lm" not in self.states:
            raise RecipeError("lm_weight: the model has no language model")
        if not self.attention and (self.coverage_weight or self.max_attn_shift is not None or self.ctc_window):
            raise RecipeError("coverage_weight and max_attn_shift: the model's decoder does not give its attention")
        if not isfinite(self.length_weight):
            raise RecipeError(f"length_weight is {self.length_weight}; it must be a number")
        if self.length_weight and self.length_normalization and self.beam_width:
            raise RecipeError("length_weight does nothing with length_normalization: set that to False")

    @classmethod
    def of(cls, name: str, decoding: Mapping[str, Any], options: Mapping[str, Any]) -> SearchOptions:
        """What the model says, with the user's ``options`` in its place.

        Raises :class:`RecipeError` for options that there are not, and :class:`ArtifactError` for a ``decoding`` that
        is not one.
        """
        if options.get("decoder", 0) is None:  # what CTC models' transcribers are given
            options = {key: value for key, value in options.items() if key != "decoder"}
        if unknown := sorted(set(options) - set(CHOICES)):
            raise RecipeError(f"{name}: has no option {unknown[0]}: it decodes with {', '.join(CHOICES)}")
        defaults: dict[str, Any] = {}
        if options.get("beam_width", 0) and not decoding.get("beam_width"):
            defaults = _BEAM_DEFAULTS
        if "length_normalization" not in options and options.get("length_weight"):
            defaults = {**defaults, "length_normalization": False}
        known = {field.name for field in fields(cls)}
        try:
            row: dict[str, Any] = {key: value for key, value in decoding.items() if key in known}
            row["memory"], row["partial"] = tuple(row["memory"]), tuple(row.get("partial", ()))
            row["states"] = {
                part: {key: StateSpec.from_dict(spec) for key, spec in specs.items()}
                for part, specs in row["states"].items()
            }
            own = cls(**row)
        except (KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{name}: decoding: {error}; was the artifact written by a newer version?") from error
        if not defaults and not options:
            return own
        try:
            return cls(**{**row, **defaults, **options})
        except TypeError as error:
            raise RecipeError(f"{name}: an option is of the wrong type: {error}") from error

    @property
    def greedy(self) -> bool:
        """Whether there is no beam."""
        return self.beam_width == 0

    def steps(self, frames: int) -> tuple[int, int]:
        """The least and the most steps for so many of the encoder's frames."""
        least, most = int(frames * self.min_decode_ratio), int(frames * self.max_decode_ratio)
        return least, most if self.max_tokens is None else min(most, self.max_tokens)


CHOICES = (
    *("beam_width", "ctc_weight", "lm_weight", "length_weight", "length_normalization", "coverage_weight"),
    *("eos_threshold", "temperature", "lm_temperature", "min_decode_ratio", "max_decode_ratio", "max_attn_shift"),
    "chunk_seconds",
)
"""The options that a user has."""
