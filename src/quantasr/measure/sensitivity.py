"""What quantizing one part of a model at a time does: the result of ``quantasr.sensitivity``, and its advice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from quantasr.measure.latency import Ratio
from quantasr.speech.scoring import PairedComparison

if TYPE_CHECKING:
    from quantasr.recipes import Recipe

MAX_KL = 0.001
"""KL divergence per frame, in nats, above which a part is left float.

The sample's first convolutions are at 0.008, and cost it 0.3 points of WER; no other part of it reaches 0.0002.
"""

RULE = (
    "A part is left float if its KL divergence is above the limit (--max-kl), if the 95 % interval of its WER "
    "difference lies above zero, if it is slower in int8 (the middle half of its time ratios lies above 1), if the "
    "engine has no int8 for it, or if nothing that was compared depends on it. Otherwise it is quantized."
)
"""How the advice is decided, for the people who read it."""


@dataclass(frozen=True)
class Harm:
    """The quantized model against the float one, on the same recordings.

    ``kl`` is the mean over all ``frames`` (tokens, for attention models) of the KL divergence of the quantized from the
    float distribution, in nats; ``same_argmax`` the share of frames with the same best token. ``wer`` compares the
    texts, where there are references.
    """

    frames: int
    kl: float
    same_argmax: float
    wer: PairedComparison | None = None

    @property
    def unseen(self) -> bool:
        """Whether nothing that was compared depends on it, as log-probs of a decoder on what only its search asks."""
        return self.kl == 0 and self.wer is None

    @property
    def worse(self) -> bool:
        """Whether the error rate has risen for certain: its interval lies above zero."""
        return self.wer is not None and self.wer.interval[0] > 0

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        wer = None if self.wer is None else self.wer.to_dict()
        return {"frames": self.frames, "kl": self.kl, "same_argmax": self.same_argmax, "wer": wer}


@dataclass(frozen=True)
class Part:
    """One group of layers, alone in int8, or several together.

    ``macs`` is its share of all multiply-accumulates. ``time`` is the whole model's time with it in int8 ÷ float; None
    where it was not measured; ``why_no_time`` then says why the engine has no int8 for it, or is empty.
    """

    name: str
    layers: tuple[str, ...]
    parameters: int
    macs: float
    harm: Harm
    time: Ratio | None = None
    why_no_time: str = ""
    max_kl: float = MAX_KL

    @property
    def faster(self) -> bool:
        """Whether it gains time beyond noise."""
        return self.time is not None and self.time.high < 1

    @property
    def slower(self) -> bool:
        """Whether it loses time beyond noise."""
        return self.time is not None and self.time.low > 1

    @property
    def leave_float(self) -> bool:
        """What :data:`RULE` says."""
        harmful = self.harm.kl > self.max_kl or self.harm.worse or self.harm.unseen
        return harmful or self.slower or bool(self.why_no_time)

    @property
    def gain(self) -> str:
        """What it does to time, in words; empty where that was not measured."""
        if self.time is None:
            return ""
        change = f"{100 * abs(1 - self.time.median):.1f} %"
        if self.faster:
            return f"saves {change} of time"
        if self.slower:
            return f"takes {change} more time"
        return "no change within noise"

    @property
    def advice(self) -> str:
        """What to do with it, and the figures that say so."""
        costs = []
        if self.harm.worse and self.harm.wer is not None:
            costs.append(f"costs {100 * self.harm.wer.difference:.2f} points of WER")
        if self.harm.kl > self.max_kl:
            costs.append(f"KL {self.harm.kl:.2g} > {self.max_kl:g}")
        if self.harm.unseen:
            costs.append("only WER can show what it does")
        words = ", ".join(word for word in (*costs, self.why_no_time or self.gain) if word)
        return f"{'leave float' if self.leave_float else 'quantize'}{': ' if words else ''}{words}"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "name": self.name,
            "layers": list(self.layers),
            "parameters": self.parameters,
            "share_of_macs": round(self.macs, 6),
            **self.harm.to_dict(),
            "time": None if self.time is None else self.time.to_dict(),
            "why_no_time": self.why_no_time,
        }


@dataclass(frozen=True)
class Sensitivity:
    """Every part of a model, most harmful first, and sums of them.

    ``totals`` are parts together: ``everything``, the recipe's choice, and what the advice would quantize. ``left_out``
    says why a layer was not measured. ``engine`` and ``compute`` are what was timed, on ``audio_seconds``; empty where
    nothing was. ``recipe`` follows the advice; None where that leaves everything float. ``notes`` are what the reader
    should know; ``failures`` the recordings that could not be read.
    """

    model: str
    by: str
    parts: tuple[Part, ...]
    totals: tuple[Part, ...]
    utterances: int
    engine: str = ""
    compute: str = ""
    audio_seconds: float = 0.0
    max_kl: float = MAX_KL
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)
    recipe: Recipe | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "model": self.model,
            "by": self.by,
            "engine": self.engine,
            "compute": self.compute,
            "audio_seconds": round(self.audio_seconds, 3),
            "utterances": self.utterances,
            "max_kl": self.max_kl,
            "groups": [{**p.to_dict(), "leave_float": p.leave_float, "advice": p.advice} for p in self.parts],
            "totals": [part.to_dict() for part in self.totals],
            "left_out": dict(self.left_out),
            "notes": list(self.notes),
            "failures": dict(self.failures),
            "recipe": None if self.recipe is None else self.recipe.to_dict(),
        }
