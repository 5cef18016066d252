"""Writing a manifest in NeMo's form."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from quantasr.errors import ManifestError
from quantasr.speech.audio import audio_info
from quantasr.speech.manifest.utterance import Utterance


def write_manifest(utterances: Iterable[Utterance], path: str | Path) -> None:
    """Write utterances as NeMo JSON lines, all of them or nothing.

    Recordings in the manifest's folder or below it are named relative to it, so that the folder can be moved;
    a missing duration is looked up, because NeMo needs it.

    Raises:
        ManifestError: an utterance comes from a command, which NeMo's form cannot hold, or there is none, or
            the file cannot be written.
        AudioError: a duration is looked up in a recording that cannot be read.
    """
    path = Path(path)
    folder = path.parent.resolve()
    rows = [_row(utterance, folder) for utterance in utterances]
    if not rows:
        raise ManifestError(f"{path}: there is no utterance to write: give some")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ManifestError(f"{path}: cannot be written ({error.strerror}): check the folder and the disk") from error
    finally:
        temporary.unlink(missing_ok=True)


def _row(utterance: Utterance, folder: Path) -> dict[str, Any]:
    if not utterance.is_file:
        raise ManifestError(
            f"{utterance.source or utterance.id}: comes from a command or as features, which a NeMo manifest "
            "cannot hold: store the recording as a file first"
        )
    audio = utterance.audio.resolve()
    duration = utterance.duration
    if duration is None:
        duration = round(audio_info(audio).duration - utterance.start, 6)
    row: dict[str, Any] = {
        "audio_filepath": audio.relative_to(folder).as_posix() if audio.is_relative_to(folder) else str(audio),
        "duration": duration,
    }
    if utterance.start:
        row["offset"] = utterance.start
    optional = {"text": utterance.text, "id": utterance.id, "speaker": utterance.speaker, "lang": utterance.language}
    return row | {key: value for key, value in optional.items() if value is not None}
