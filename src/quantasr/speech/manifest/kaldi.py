"""Reader of Kaldi data folders (https://kaldi-asr.org/doc/data_prep.html)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from quantasr.errors import ManifestError
from quantasr.kaldi.archive import Archive
from quantasr.speech.manifest.ivectors import ONLINE, with_ivectors
from quantasr.speech.manifest.lines import find_audio, read_lines
from quantasr.speech.manifest.utterance import Utterance
from quantasr.speech.prepared import Archived

WAVES, FEATURES = "wav.scp", "feats.scp"


def read_kaldi(path: Path, trust: bool) -> Iterator[Utterance]:
    """A folder with ``wav.scp`` and, where they are there, ``text``, ``segments`` and ``utt2spk``.

    Paths in ``wav.scp`` are relative to the folder or to the working directory. An entry that ends in '|' is a
    command; it is run, by the shell, only with ``trust``. Without ``wav.scp``, or where ``path`` is a ``feats.scp``,
    features that were computed before are read instead of sound. I-vectors are read if an ``ivector_online.scp`` is
    in the folder.
    """
    folder = path.parent if path.name in (WAVES, FEATURES) else path
    computed = path.name == FEATURES or not (folder / WAVES).is_file()
    found = _described(folder, _features(folder) if computed else _sound(folder, trust))
    return with_ivectors(found, [folder]) if (folder / ONLINE).is_file() else found


def _described(folder: Path, found: Iterator[Utterance]) -> Iterator[Utterance]:
    """Utterances with their texts and speakers."""
    texts = _read_table(folder / "text") if (folder / "text").is_file() else None
    speakers = _read_table(folder / "utt2spk") if (folder / "utt2spk").is_file() else {}
    seen = set()
    for utterance in found:
        identity = utterance.id
        if texts is not None and identity not in texts:
            raise ManifestError(
                f"{utterance.source}: '{identity}' has no line in {folder / 'text'}: add it, or take this one out"
            )
        seen.add(identity)
        yield replace(
            utterance,
            text=None if texts is None else texts[identity][0],
            speaker=speakers[identity][0] if identity in speakers else None,
        )
    for identity, (_, place) in (texts or {}).items():
        if identity not in seen:
            raise ManifestError(f"{place}: '{identity}' has no recording: add it, or take the line out")


def _sound(folder: Path, trust: bool) -> Iterator[Utterance]:
    recordings = _read_table(folder / WAVES)
    for identity, recording, start, duration, source in _segments(folder, recordings):
        if recording not in recordings:
            raise ManifestError(
                f"{source}: the recording '{recording}' is not in wav.scp: add it, or take the line out"
            )
        entry, place = recordings[recording]
        audio, command = _audio(entry, folder, place, trust)
        yield Utterance(identity, audio, None, start, duration, source=source, command=command)


def _features(folder: Path) -> Iterator[Utterance]:
    archive = Archive(f"scp:{folder / FEATURES}")
    for identity, (_, source) in _read_table(folder / FEATURES).items():
        yield Utterance(identity, folder / FEATURES, None, source=source, features=Archived(archive, identity))


def _read_table(path: Path) -> dict[str, tuple[str, str]]:
    """A Kaldi table: first word -> (rest of the line, 'file:line')."""
    table: dict[str, tuple[str, str]] = {}
    for source, line in read_lines(path):
        key, _, value = line.strip().partition(" ") if " " in line.strip() else line.strip().partition("\t")
        if key in table:
            raise ManifestError(f"{source}: '{key}' is in {table[key][1]} already: take one of the lines out")
        table[key] = (value.strip(), source)
    return table


def _segments(
    folder: Path, recordings: dict[str, tuple[str, str]]
) -> Iterator[tuple[str, str, float, float | None, str]]:
    """(utterance, recording, start, duration, 'file:line'); each whole recording where there are no segments."""
    if not (folder / "segments").is_file():
        for recording, (_, source) in recordings.items():
            yield recording, recording, 0.0, None, source
        return
    for identity, (rest, source) in _read_table(folder / "segments").items():
        fields = rest.split()
        try:
            recording, start, end = fields[0], float(fields[1]), float(fields[2])
        except (IndexError, ValueError) as error:
            raise ManifestError(f"{source}: is not 'utterance recording start end': mend the line") from error
        if end == -1:  # Kaldi's way to say: to the end of the recording
            yield identity, recording, start, None, source
        elif not 0 <= start < end:
            raise ManifestError(f"{source}: the segment goes from {start} s to {end} s: give start < end")
        else:
            yield identity, recording, start, end - start, source


def _audio(entry: str, folder: Path, source: str, trust: bool) -> tuple[Path, str | None]:
    """The file of a wav.scp entry, or wav.scp itself and the command of the entry."""
    if not entry:
        raise ManifestError(f"{source}: names no recording: add its path")
    if entry.endswith("|"):
        command = entry[:-1].strip()
        if not trust:
            raise ManifestError(
                f"{source}: '{command}' is a command: if you trust who wrote it, allow commands to be run "
                "(trust=True, --trust); otherwise store the recordings as files"
            )
        return folder / WAVES, command
    if re.search(r":\d+$", entry):
        raise ManifestError(f"{source}: '{entry}' points into an archive: extract it, with Kaldi's wav-copy")
    return find_audio(entry, (folder, Path()), source), None
