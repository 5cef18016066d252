"""Fingerprints of recordings: enough to recognise calibration speech later, without keeping it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from quantasr.errors import ManifestError
from quantasr.speech.manifest.utterance import Utterance


def fingerprints(utterances: Iterable[Utterance]) -> list[dict[str, Any]]:
    """A row for each utterance: SHA-256 of its audio file, command or features, and the segment in seconds.

    Its duration is None where it lasts to the end.
    """
    digests: dict[str | Path, str] = {}
    rows = []
    for utterance in utterances:
        recording = utterance.command or (utterance.features.name if utterance.features else utterance.audio)
        if recording not in digests:
            digests[recording] = _digest(utterance)
        rows.append(
            {
                "id": utterance.id,
                "sha256": digests[recording],
                "start": utterance.start,
                "duration": utterance.duration,
            }
        )
    return rows


def check_not_among(known: Sequence[dict[str, Any]], utterances: Sequence[Utterance], what: str) -> None:
    """Raise :class:`ManifestError` when an utterance overlaps a ``known`` fingerprint; ``what`` names those."""
    by_digest: dict[str, list[dict[str, Any]]] = {}
    for row in known:
        by_digest.setdefault(row["sha256"], []).append(row)
    shared = [
        new["id"]
        for new in fingerprints(utterances)
        if any(_overlap(old, new) for old in by_digest.get(new["sha256"], []))
    ]
    if shared:
        raise ManifestError(
            f"{len(shared)} of {len(utterances)} utterances (first: {shared[0]}) are among the {what}: "
            "figures on them would flatter; evaluate on other speech"
        )


def _overlap(left: dict[str, Any], right: dict[str, Any]) -> bool:
    ends = [row["start"] + (row["duration"] if row["duration"] is not None else float("inf")) for row in (left, right)]
    return bool(left["start"] < ends[1] and right["start"] < ends[0])


def _digest(utterance: Utterance) -> str:
    if utterance.features is not None:
        return hashlib.sha256(utterance.features.load().tobytes()).hexdigest()
    if utterance.command is not None:
        # What a command writes is not worth running it for; the same command is the same recording.
        return hashlib.sha256(utterance.command.encode()).hexdigest()
    try:
        with utterance.audio.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ManifestError(f"{utterance.source}: cannot read {utterance.audio}: {error.strerror}") from None
