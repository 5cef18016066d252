"""I-vectors that were extracted elsewhere, as Kaldi's ``extract_ivectors_online.sh`` leaves them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from quantasr.errors import KaldiFileError, ManifestError
from quantasr.kaldi.archive import Archive
from quantasr.speech.manifest.utterance import Utterance
from quantasr.speech.prepared import Archived

ONLINE = "ivector_online.scp"
_PERIOD = "ivector_period"
_USUAL_PERIOD = 10


def with_ivectors(
    utterances: Iterable[Utterance], where: str | Path, *, period: int | None = None
) -> Iterator[Utterance]:
    """The utterances with their i-vectors, by the utterance's id or else by its speaker's.

    ``where``: a folder with ``ivector_online.scp`` and ``ivector_period``, or an archive of matrices, a row every
    ``period`` frames (10), or of a vector each: ``scp:FILE``, ``ark:FILE``, or a path.

    Raises ManifestError when an utterance has none, and KaldiFileError for what cannot be read.
    """
    folder = Path(where)
    if folder.is_dir():
        where = f"scp:{folder / ONLINE}"
        period = _period(folder / _PERIOD) if period is None else period
    period = _USUAL_PERIOD if period is None else period
    if period < 1:
        raise ManifestError(f"an i-vector every {period} frames: give 1 or more")
    archive = _matrices_or_vectors(where)
    for utterance in utterances:
        key = next((key for key in (utterance.id, utterance.speaker) if key is not None and key in archive), None)
        if key is None:
            speaker = f", nor his speaker '{utterance.speaker}'" if utterance.speaker else ""
            raise ManifestError(f"{archive.path}: has no i-vectors for '{utterance.id}'{speaker}: extract them")
        yield replace(utterance, ivectors=Archived(archive, key, period))


def _matrices_or_vectors(where: str | Path) -> Archive:
    try:
        archive = Archive(where, "matrix")
        for key in archive:
            archive[key]
            break
        return archive
    except KaldiFileError as error:
        try:
            archive = Archive(where, "vector")
            for key in archive:
                archive[key]
                break
            return archive
        except KaldiFileError:
            raise error from None


def _period(path: Path) -> int:
    if not path.is_file():
        return _USUAL_PERIOD
    try:
        return int(path.read_text("utf-8"))
    except ValueError as error:
        raise ManifestError(
            f"{path}: is not a number of frames: write {_USUAL_PERIOD} into it, or what it was"
        ) from error
