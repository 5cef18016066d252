"""Which form a manifest has, and reading it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from quantasr.errors import ManifestError
from quantasr.speech.audio_file import AUDIO_SUFFIXES
from quantasr.speech.manifest.formats import (
    read_commonvoice,
    read_folder,
    read_librispeech,
    read_list,
    read_nemo,
)
from quantasr.speech.manifest.kaldi import FEATURES, WAVES, read_kaldi
from quantasr.speech.manifest.lines import read_lines
from quantasr.speech.manifest.utterance import Utterance

FORMATS: dict[str, Callable[[Path, bool], Iterator[Utterance]]] = {
    "nemo": read_nemo,
    "librispeech": read_librispeech,
    "kaldi": read_kaldi,
    "commonvoice": read_commonvoice,
    "list": read_list,
    "folder": read_folder,
}
"""Reader of each form: (path, trust) -> utterances."""


def read_manifest(
    path: str | Path, *, format: str = "auto", trust: bool = False, limit: int | None = None
) -> list[Utterance]:
    """Read a manifest of any form in :data:`FORMATS`.

    Args:
        path: a file or a folder, as the form has it.
        format: a name of :data:`FORMATS`, or 'auto' to go by what is there.
        trust: run the commands in a Kaldi ``wav.scp``; they can do whatever you can do.
        limit: read this many utterances, the first; what is wrong further on is then not seen.

    Raises:
        ManifestError: the path, the format or the limit is wrong; a line cannot be read, lacks a key or names a
            recording that is not there; ids are repeated; there is no utterance at all.
    """
    if limit is not None and limit < 1:
        raise ManifestError(f"limit is {limit}: give 1 or more utterances")
    return list(islice(stream_manifest(path, format=format, trust=trust), limit))


def stream_manifest(path: str | Path, *, format: str = "auto", trust: bool = False) -> Iterator[Utterance]:
    """The utterances of :func:`read_manifest` one by one, for manifests that are too long to be held."""
    path = Path(path)
    if not path.exists():
        raise ManifestError(f"{path}: no such file or folder: check the path")
    if format == "auto":
        format = detect_format(path)
    if format not in FORMATS:
        raise ManifestError(f"manifest format '{format}' is unknown: choose from auto, {', '.join(FORMATS)}")
    wants_folder, is_folder = format in ("librispeech",), path.is_dir()
    if format not in ("kaldi", "folder") and wants_folder != is_folder:
        raise ManifestError(f"{path}: format '{format}' is a {'folder' if wants_folder else 'file'}: name that")
    yield from distinct(FORMATS[format](path, trust), path, format)


def distinct(utterances: Iterable[Utterance], path: Path, format: str) -> Iterator[Utterance]:
    """``utterances``; raises ManifestError when an id comes again, or when there are none."""
    places: dict[str, str] = {}
    for utterance in utterances:
        if utterance.id in places:
            raise ManifestError(
                f"{utterance.source}: the id '{utterance.id}' is in {places[utterance.id]} already: "
                "take one of them out, or name them apart"
            )
        places[utterance.id] = utterance.source
        yield utterance
    if not places:
        raise ManifestError(f"{path}: holds no utterance (read as '{format}'): fill it, or name another")


def detect_format(path: Path) -> str:
    """The form of what lies at a path, by its name and its first line.

    Raises:
        ManifestError: a folder that holds nothing known.
    """
    if path.is_dir():
        if any((path / name).is_file() for name in (WAVES, FEATURES)):
            return "kaldi"
        if next(path.rglob("*.trans.txt"), None) is not None:
            return "librispeech"
        tables = sorted(p.name for p in (*path.glob("*.tsv"), *path.glob("*.csv")))
        if (path / "clips").is_dir() and tables:
            raise ManifestError(f"{path}: is a Common Voice folder: name one of its tables ({', '.join(tables)})")
        return "folder"
    if path.name in (WAVES, FEATURES):
        return "kaldi"
    suffix = path.suffix.lower()
    if suffix in AUDIO_SUFFIXES:
        return "folder"
    if suffix in (".tsv", ".csv"):
        return "commonvoice"
    if suffix in (".json", ".jsonl", ".ndjson"):
        return "nemo"
    _, first = next(read_lines(path), ("", ""))
    return "nemo" if first.lstrip()[:1] in ("{", "[") else "list"
