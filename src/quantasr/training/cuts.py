"""Lhotse's manifests of cuts, and of recordings with supervisions, as utterances."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quantasr.errors import AudioError, ManifestError, MissingExtraError
from quantasr.speech.manifest.lines import find_audio
from quantasr.speech.manifest.utterance import Utterance
from quantasr.speech.transcript import Waveform

_SUFFIXES = (".jsonl", ".jsonl.gz")
_RECORDINGS, _SUPERVISIONS = "recordings", "supervisions"
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, AssertionError)


@dataclass(frozen=True)
class CutUtterance(Utterance):
    """An utterance whose samples only Lhotse can make: mixed, transformed, or of several channels.

    ``cut`` is its line of the manifest; ``audio`` the first of its recordings.
    """

    cut: dict[str, Any] = field(default_factory=dict)

    @property
    def is_file(self) -> bool:
        """The file has more, or other, than is heard."""
        return False

    def load(self, sample_rate: int) -> Waveform:
        """Its samples, mono ``[time]``, channels averaged."""
        from lhotse.audio.utils import AudioLoadingError, DurationMismatchError

        # A copy, because Lhotse takes the row apart.
        cut = _deserialize(json.loads(json.dumps(self.cut)), self.source)
        try:
            samples = cut.resample(sample_rate).load_audio()
        except (AudioLoadingError, DurationMismatchError, OSError, *_MALFORMED) as error:
            reason = str(error).strip().splitlines()
            raise AudioError(
                f"{self.source}: cut '{self.id}' cannot be read: {reason[0] if reason else error!r}"
            ) from error
        wave = np.asarray(samples, np.float32)
        return np.ascontiguousarray(wave.mean(axis=0) if wave.ndim == 2 else wave)

    def stream(self, sample_rate: int, block_seconds: float) -> Iterator[Waveform]:
        """Its samples in blocks."""
        wave, size = self.load(sample_rate), max(1, round(block_seconds * sample_rate))
        for start in range(0, len(wave), size):
            yield wave[start : start + size]


def is_lhotse(path: Path) -> bool:
    """Whether a file is a manifest of Lhotse's: cuts, or recordings."""
    if not path.is_file() or not path.name.endswith(_SUFFIXES):
        return False
    row = next((row for row, _ in _rows(path)), None)
    return row is not None and (_is_cut(row) or _is_recording(row))


def read_lhotse(path: Path, trust: bool = False) -> Iterator[Utterance]:
    """Cuts line by line, each an utterance; cuts with several supervisions are parted into one each.

    Of a manifest of recordings, each supervision of the one beside it (``recordings`` in the name is ``supervisions``
    there) is an utterance; the lines of the recordings are held in memory. Recordings that a command writes or that
    come from the net are read only with ``trust``.

    Raises:
        ManifestError: a line is not what Lhotse writes, or names no recording.
        MissingExtraError: Lhotse is not installed.
    """
    first = next((row for row, _ in _rows(path)), {})
    if _is_recording(first):
        yield from _supervised(path, trust)
        return
    for row, source in _rows(path):
        if not _is_cut(row):
            raise ManifestError(f"{source}: is not a cut: write all lines with Lhotse's CutSet.to_file")
        yield from _utterances(row, source, path, trust)


def _utterances(row: dict[str, Any], source: str, path: Path, trust: bool) -> Iterator[Utterance]:
    cut = _deserialize(row, source)
    parts = [cut] if len(cut.supervisions) <= 1 else cut.trim_to_supervisions(keep_overlapping=False)
    for part in parts:
        yield _utterance(part, source, path, trust)


def _utterance(cut: Any, source: str, path: Path, trust: bool) -> Utterance:
    said = cut.supervisions[0] if cut.supervisions else None
    recordings = _recordings(cut)
    sources = [place for recording in recordings for place in recording.sources]
    if not sources:
        raise ManifestError(f"{source}: cut '{cut.id}' has no recording: give cuts with sound, not features alone")
    for place in sources:
        if place.type != "file" and not trust:
            raise ManifestError(
                f"{source}: the recording of cut '{cut.id}' comes from a {place.type}: allow that with --trust, "
                "or store it as a file"
            )
    files = [place.source for place in sources if place.type == "file"]
    audio = find_audio(str(files[0]), (Path(), path.parent), source) if files else path
    fields: dict[str, Any] = {
        "id": cut.id,
        "audio": audio,
        "text": None if said is None else said.text,
        "start": float(getattr(cut, "start", 0.0)),
        "duration": float(cut.duration),
        "speaker": None if said is None or said.speaker is None else str(said.speaker),
        "language": None if said is None else said.language,
        "source": source,
    }
    return Utterance(**fields) if _is_plain(cut) else CutUtterance(**fields, cut=cut.to_dict())


def _is_plain(cut: Any) -> bool:
    """Whether a cut is a part of a mono file, as it lies there."""
    if type(cut).__name__ != "MonoCut":
        return False
    recording = cut.recording
    one = len(recording.sources) == 1 and recording.sources[0].type == "file"
    return one and not recording.transforms and recording.num_channels == 1


def _recordings(cut: Any) -> list[Any]:
    cuts = [track.cut for track in cut.tracks] if hasattr(cut, "tracks") else [cut]
    return [each.recording for each in cuts if getattr(each, "recording", None) is not None]


def _supervised(path: Path, trust: bool) -> Iterator[Utterance]:
    beside = path.with_name(path.name.replace(_RECORDINGS, _SUPERVISIONS))
    if beside == path or not beside.is_file():
        raise ManifestError(
            f"{path}: holds recordings, and there is no {beside.name if beside != path else 'supervisions file'} "
            "beside it: write it there, or make cuts of both"
        )
    recordings = {row["id"]: json.dumps(row) for row, _ in _rows(path) if _is_recording(row)}
    for row, source in _rows(beside):
        try:
            recording = json.loads(recordings[row["recording_id"]])
            channel = row.get("channel", 0)
            several = isinstance(channel, list)
            cut = {
                "id": row["id"],
                "start": row["start"],
                "duration": row["duration"],
                "channel": channel,
                "supervisions": [{**row, "start": 0.0}],
                "recording": recording,
                "type": "MultiCut" if several else "MonoCut",
            }
        except KeyError as error:
            raise ManifestError(f"{source}: lacks {error}, or {path.name} does: add it") from error
        yield from _utterances(cut, source, path, trust)


def _deserialize(row: dict[str, Any], source: str) -> Any:
    """The cut of a row, which is taken apart."""
    try:
        from lhotse.serialization import deserialize_item
    except ImportError as error:
        raise MissingExtraError("Lhotse's manifests need Lhotse: pip install 'quantasr[train]'") from error
    try:
        return deserialize_item(row)
    except _MALFORMED as error:
        raise ManifestError(f"{source}: is not a cut that Lhotse reads ({error!r}): write it with Lhotse") from error


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ManifestError(f"{path}:{number}: is not a JSON object: write it with Lhotse")
                yield row, f"{path}:{number}"
    except json.JSONDecodeError as error:
        raise ManifestError(f"{path}:{number}: is not JSON ({error.msg}): write one JSON object a line") from error
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}:{number + 1}: cannot be read ({error}): copy the file again") from error


def _is_cut(row: dict[str, Any]) -> bool:
    return str(row.get("type", "")).endswith("Cut") and "id" in row


def _is_recording(row: dict[str, Any]) -> bool:
    return "sources" in row and "sampling_rate" in row
