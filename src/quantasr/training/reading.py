"""Manifests of any form, utterance by utterance, and how long each lasts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from quantasr.errors import AudioError, ManifestError
from quantasr.speech.audio import audio_info
from quantasr.speech.manifest import Utterance, stream_manifest
from quantasr.speech.manifest.lines import read_lines
from quantasr.speech.manifest.read import distinct
from quantasr.speech.manifest.utterance import FRAME_SECONDS
from quantasr.training.cuts import is_lhotse, read_lhotse

_DURATIONS = "utt2dur"


def stream_utterances(path: str | Path, *, format: str = "auto", trust: bool = False) -> Iterator[Utterance]:
    """Utterances of any manifest that quantasr reads, Lhotse's too, one by one. Raises ManifestError."""
    path = Path(path)
    if format == "lhotse" or (format == "auto" and is_lhotse(path)):
        return distinct(read_lhotse(path, trust), path, "lhotse")
    return stream_manifest(path, format=format, trust=trust)


def seconds_of(utterance: Utterance) -> float:
    """How long an utterance lasts: as its manifest says, as Kaldi's ``utt2dur`` does, or by the file's header.

    What a command writes, and features, are read once if nothing else tells. Raises AudioError.
    """
    if utterance.duration is not None:
        return utterance.duration
    if utterance.is_file:
        try:
            return audio_info(utterance.audio).duration - utterance.start
        except AudioError as error:
            raise AudioError(f"{error} (listed in {utterance.source})") from error
    known = _kaldi_durations(utterance.audio.parent / _DURATIONS)
    if utterance.id in known:
        return known[utterance.id]
    if utterance.features is not None:
        return len(utterance.features.load()) * FRAME_SECONDS
    rate = 8000
    return len(utterance.load(rate)) / rate


@lru_cache(1)
def _kaldi_durations(path: Path) -> dict[str, float]:
    if not path.is_file():
        return {}
    durations = {}
    for source, line in read_lines(path):
        try:
            name, seconds = line.split()
            durations[name] = float(seconds)
        except ValueError as error:
            raise ManifestError(f"{source}: is not an id and seconds: mend the line") from error
    return durations
