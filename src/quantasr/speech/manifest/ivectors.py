"""I-vectors that were extracted elsewhere, as Kaldi's ``extract_ivectors_online.sh`` leaves them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from quantasr.errors import KaldiFileError, ManifestError
from quantasr.kaldi.archive import Archive
from quantasr.speech.manifest.utterance import Utterance
from quantasr.speech.prepared import Archived

ONLINE = "ivector_online.scp"
_PERIOD = "ivector_period"
_USUAL_PERIOD = 10


def with_ivectors(
    utterances: Iterable[Utterance], places: Sequence[str | Path], *, period: int | None = None
) -> Iterator[Utterance]:
    """The utterances with their i-vectors, by the utterance's id or else by its speaker's.

    ``places``: folders with ``ivector_online.scp`` and ``ivector_period``, or archives of matrices, a row every
    ``period`` frames (10), or of a vector each: ``scp:FILE``, ``ark:FILE``, or a path. The first that has one counts.

    Raises ManifestError when an utterance has none, and KaldiFileError for what cannot be read.
    """
    if period is not None and period < 1:
        raise ManifestError(f"an i-vector every {period} frames: give 1 or more")
    found = [_open(place, period) for place in places]
    for utterance in utterances:
        keys = [key for key in (utterance.id, utterance.speaker) if key is not None]
        ivectors = next((Archived(a, key, p) for key in keys for a, p in found if key in a), None)
        if ivectors is None:
            who = " nor ".join(f"'{key}'" for key in keys)
            raise ManifestError(f"{', '.join(map(str, places))}: no i-vectors of {who}: extract them, or name others")
        yield replace(utterance, ivectors=ivectors)


def _open(place: str | Path, period: int | None) -> tuple[Archive, int]:
    if Path(place).is_dir():
        period = _period(Path(place) / _PERIOD) if period is None else period
        place = f"scp:{Path(place) / ONLINE}"
    return _matrices_or_vectors(place), _USUAL_PERIOD if period is None else period


def _matrices_or_vectors(where: str | Path) -> Archive:
    """What the first array is decides."""
    try:
        return _readable(Archive(where, "matrix"))
    except KaldiFileError as error:
        try:
            return _readable(Archive(where, "vector"))
        except KaldiFileError:
            raise error from None


def _readable(archive: Archive) -> Archive:
    for key in islice(archive, 1):
        archive[key]
    return archive


def _period(path: Path) -> int:
    if not path.is_file():
        return _USUAL_PERIOD
    try:
        return int(path.read_text("utf-8").split()[0])
    except (ValueError, IndexError) as error:
        raise ManifestError(
            f"{path}: is not a number of frames: write {_USUAL_PERIOD} into it, or what it was"
        ) from error
