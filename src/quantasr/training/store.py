"""Utterances on disk instead of in memory, for manifests of any length."""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import TrainingError
from quantasr.speech.manifest import Utterance
from quantasr.training.cuts import CutUtterance

_ARCHIVED = ("features", "ivectors")
_NAMES = tuple(field.name for field in fields(Utterance) if field.name not in _ARCHIVED)


class UtteranceStore(Sequence[Utterance]):
    """Utterances in a temporary file that goes with this object; memory holds some 24 bytes of each.

    Utterances with features or i-vectors stay in memory, because they know their archives.

    Raises:
        TrainingError: the folder for temporary files is full.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as this object is there
        weakref.finalize(self, self._file.close)
        self._ends = array("q", [0])
        self._seconds = array("d")
        self._held: dict[int, Utterance] = {}

    def append(self, utterance: Utterance, seconds: float) -> None:
        """Add an utterance that lasts so long."""
        if utterance.features is not None or utterance.ivectors is not None:
            self._held[len(self)] = utterance
        line = json.dumps(_row(utterance), ensure_ascii=False).encode()
        try:
            self._file.write(line)
        except OSError as error:
            raise TrainingError(
                f"{tempfile.gettempdir()}: cannot hold the list of utterances ({error.strerror}): free space, "
                "or set TMPDIR"
            ) from error
        self._ends.append(self._ends[-1] + len(line))
        self._seconds.append(seconds)

    @property
    def seconds(self) -> NDArray[np.float64]:
        """The length of each, ``[utterances]``."""
        return np.array(self._seconds, np.float64)

    def __len__(self) -> int:
        return len(self._seconds)

    @overload
    def __getitem__(self, index: int) -> Utterance: ...
    @overload
    def __getitem__(self, index: slice) -> list[Utterance]: ...
    def __getitem__(self, index: int | slice) -> Utterance | list[Utterance]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        if index in self._held:
            return self._held[index]
        self._file.flush()
        start, end = self._ends[index], self._ends[index + 1]
        # Not seek and read: threads, and processes that were forked, share the place in the file.
        return _utterance(json.loads(os.pread(self._file.fileno(), end - start, start)))

    def __iter__(self) -> Iterator[Utterance]:
        return (self[i] for i in range(len(self)))


def _row(utterance: Utterance) -> dict[str, Any]:
    row = {name: value for name in _NAMES if (value := getattr(utterance, name)) is not None}
    row["audio"] = str(utterance.audio)
    return row | {"cut": utterance.cut} if isinstance(utterance, CutUtterance) else row


def _utterance(row: dict[str, Any]) -> Utterance:
    row["audio"] = Path(row["audio"])
    row.setdefault("text", None)
    return CutUtterance(**row) if "cut" in row else Utterance(**row)
