"""What became of the utterances of a manifest before training."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

_NAMED = 10  # characters or words that a line names


@dataclass
class DataReport:
    """How many utterances are trained on, how many are not, and why.

    ``skipped`` counts by reason, ``examples`` is the first id of each. ``unknown``: characters that the vocabulary
    lacks, with how often they come; ``details`` are other things that are lacking, by the reason.
    """

    manifest: str
    kept: int = 0
    seconds: float = 0.0
    listed: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    unknown: Counter[str] = field(default_factory=Counter)
    details: dict[str, Counter[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def skip(self, reason: str, id: str) -> None:
        """Count an utterance that is not trained on."""
        self.skipped[reason] += 1
        self.examples.setdefault(reason, id)

    def lines(self) -> list[str]:
        """What to tell: one line of what is kept, and one for each reason why others are not."""
        length = lasting(self.seconds)
        found = [f"training on {self.kept} of {self.listed} utterances of {self.manifest} ({length})"]
        for reason, count in self.skipped.most_common():
            what = f": {_named(self.details[reason])}" if self.details.get(reason) else ""
            found.append(f"skipped: {_utterances(count)} {reason}{what} (first: {self.examples[reason]})")
        if self.unknown:
            found.append(f"the vocabulary lacks {_named(self.unknown)}: normalize the texts, or give a vocabulary")
        return [*found, *self.notes]


def lasting(seconds: float) -> str:
    """``2.4 min``, or ``10.0 h``."""
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _named(counted: Counter[str]) -> str:
    """``'é' 8 times, '-' 5 times``, the most frequent first."""
    named = [f"{what!r} {_times(count)}" for what, count in counted.most_common(_NAMED)]
    more = len(counted) - len(named)
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _utterances(count: int) -> str:
    return f"{count} utterance" + ("s" if count > 1 else "")
