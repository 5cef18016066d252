"""Readers of NeMo, LibriSpeech and Common Voice manifests, and of plain recordings."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from quantasr.errors import ManifestError
from quantasr.speech.audio_file import AUDIO_SUFFIXES
from quantasr.speech.manifest.lines import find_audio, read_lines
from quantasr.speech.manifest.utterance import Utterance


def read_nemo(path: Path, trust: bool) -> Iterator[Utterance]:
    """NeMo's JSON lines: ``audio_filepath`` (absolute, or relative to the manifest), ``duration``, ``text``,
    ``offset``; also ``id``, ``speaker`` and ``lang`` where they are there."""
    for source, line in read_lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ManifestError(f"{source}: is not JSON ({error.msg}): write one JSON object a line") from error
        if not isinstance(row, dict):
            raise ManifestError(f"{source}: is not a JSON object: write one JSON object a line")
        name = _text(row, "audio_filepath", source)
        if not name:
            raise ManifestError(f"{source}: lacks the key 'audio_filepath': add it, with the recording's path")
        start = _seconds(row, "offset", source) or 0.0
        # Several segments of one recording are told apart by their start.
        identity = _text(row, "id", source) or str(PurePath(name).with_suffix("")) + (f"@{start:g}" if start else "")
        yield Utterance(
            id=identity,
            audio=find_audio(name, (path.parent,), source),
            text=_text(row, "text", source),
            start=start,
            duration=_seconds(row, "duration", source),
            speaker=_label(row, "speaker"),
            language=_label(row, "lang"),
            source=source,
        )


def read_librispeech(path: Path, trust: bool) -> Iterator[Utterance]:
    """A LibriSpeech tree: ``<speaker>-<chapter>.trans.txt`` with 'id TEXT' lines, recordings beside it."""
    for transcript in sorted(path.rglob("*.trans.txt")):
        for source, line in read_lines(transcript):
            identity, _, text = line.strip().partition(" ")
            # The corpus has .flac; copies of it have other things.
            names = [f"{identity}{suffix}" for suffix in (".flac", ".wav", ".mp3", ".ogg")]
            there = [name for name in names if (transcript.parent / name).is_file()]
            audio = find_audio(there[0] if there else names[0], (transcript.parent,), source)
            yield Utterance(identity, audio, text.strip(), speaker=identity.partition("-")[0], source=source)


def read_commonvoice(path: Path, trust: bool) -> Iterator[Utterance]:
    """Common Voice's table with the columns ``path`` and ``sentence``; recordings in ``clips/`` or beside it.

    In a .tsv quotation marks are part of the sentence, as the corpus writes them; a .csv is quoted as usual.
    """
    is_csv = path.suffix.lower() == ".csv"
    lines = _Numbered(path)
    rows = csv.reader(lines, **({} if is_csv else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}))  # type: ignore[arg-type]
    header: list[str] | None = None
    try:
        for row in rows:
            if header is None:
                header = row
                missing = [column for column in ("path", "sentence") if column not in header]
                if missing:
                    raise ManifestError(f"{lines.source}: lacks the column '{missing[0]}': add it")
                continue
            if len(row) != len(header):
                raise ManifestError(
                    f"{lines.source}: has {len(row)} fields where the first line names {len(header)}: mend the line"
                )
            fields = dict(zip(header, row, strict=True))
            name = fields["path"] if PurePath(fields["path"]).suffix else fields["path"] + ".mp3"
            yield Utterance(
                id=str(PurePath(name).with_suffix("")),
                audio=find_audio(name, (path.parent / "clips", path.parent), lines.source),
                text=fields["sentence"],
                speaker=fields.get("client_id") or None,
                language=fields.get("locale") or None,
                source=lines.source,
            )
    except csv.Error as error:
        raise ManifestError(f"{lines.source}: is not a table ({error}): mend its quotation marks") from error


def read_list(path: Path, trust: bool) -> Iterator[Utterance]:
    """A text file with a recording's path a line, relative to the list; no texts, so for calibration."""
    for source, line in read_lines(path):
        name = line.strip()
        audio = find_audio(name, (path.parent,), source)
        yield Utterance(str(PurePath(name).with_suffix("")), audio, None, source=source)


def read_folder(path: Path, trust: bool) -> Iterator[Utterance]:
    """One recording, or every recording in a folder and those below it; no texts, so for calibration."""
    if path.is_file():
        yield Utterance(path.stem, path, None, source=str(path))
        return
    for audio in sorted(path.rglob("*")):
        if audio.suffix.lower() in AUDIO_SUFFIXES and audio.is_file():
            yield Utterance(audio.relative_to(path).with_suffix("").as_posix(), audio, None, source=str(audio))


class _Numbered:
    """Lines for the csv module, which asks for them one by one; ``source`` is the place of the latest."""

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        self._lines = read_lines(path)

    def __iter__(self) -> _Numbered:
        return self

    def __next__(self) -> str:
        self.source, line = next(self._lines)
        return line + "\n"


def _text(row: dict[str, Any], key: str, source: str) -> str | None:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise ManifestError(f"{source}: '{key}' is {json.dumps(value)}: give a string")
    return value


def _label(row: dict[str, Any], key: str) -> str | None:
    value = row.get(key)
    return None if value is None else str(value)


def _seconds(row: dict[str, Any], key: str, source: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ManifestError(f"{source}: '{key}' is {json.dumps(value)}: give seconds as a number")
    return float(value)
