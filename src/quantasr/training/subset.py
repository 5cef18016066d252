"""Parts of a list of utterances, by chance but always the same: whatever the order of the list."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import TrainingError
from quantasr.speech.manifest import Utterance
from quantasr.training.randomness import rank

_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)(%|s|min|h)")
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}


def seconds_asked(amount: str, total: float) -> float:
    """Seconds that ``5%`` (of ``total``), ``90s``, ``10min`` or ``1h`` are; raises TrainingError."""
    found = _AMOUNT.fullmatch(str(amount).replace(" ", ""))
    if found is None or float(found[1]) <= 0:
        raise TrainingError(f"'{amount}' is no amount of speech: write 5%, 90s, 10min or 1h")
    return float(found[1]) * (total / 100 if found[2] == "%" else _SECONDS[found[2]])


def drawn(names: Sequence[str], seconds: NDArray[np.float64], wanted: float, seed: int) -> NDArray[np.int64]:
    """Indices, ascending, of what is drawn by ``seed`` until it lasts ``wanted`` seconds. All ``names`` differ."""
    order = np.array(sorted(range(len(names)), key=lambda i: rank(seed, names[i])), np.int64)
    before = np.concatenate(([0.0], np.cumsum(seconds[order])[:-1])) if len(order) else np.zeros(0)
    return np.sort(order[before < wanted])


def hold_back(
    utterances: Iterable[Utterance], seconds: NDArray[np.float64], amount: str, seed: int
) -> tuple[NDArray[np.int64], bool]:
    """Indices of utterances to be kept back, and whether no speaker of theirs has others.

    Whole speakers are drawn, unless they are unknown or so few that twice as much as wanted would be taken: then whole
    recordings, so that parts of one are never on both sides.
    """
    wanted = seconds_asked(amount, float(seconds.sum()))
    speakers: defaultdict[str, list[int]] = defaultdict(list)
    recordings: defaultdict[str, list[int]] = defaultdict(list)
    names: list[str] = []
    known = True
    for i, utterance in enumerate(utterances):
        names.append(utterance.id)
        known = known and utterance.speaker is not None
        speakers[utterance.speaker or ""].append(i)
        recordings[str(utterance.audio) if utterance.is_file else utterance.id].append(i)
    if known:
        taken = _groups(list(speakers.values()), names, seconds, wanted, seed)
        if seconds[taken].sum() <= 2 * wanted:
            return taken, True
    return _groups(list(recordings.values()), names, seconds, wanted, seed), False


def _groups(
    groups: list[list[int]], names: list[str], seconds: NDArray[np.float64], wanted: float, seed: int
) -> NDArray[np.int64]:
    lengths = np.array([seconds[group].sum() for group in groups])
    # A group goes by the first of its names, which the order of the manifest does not change.
    taken = drawn([min(names[i] for i in group) for group in groups], lengths, wanted, seed)
    return np.array(sorted(i for index in taken for i in groups[index]), np.int64)
