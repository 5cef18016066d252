"""An encoder that runs once for each recording, however often it is asked."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantasr.engines.engine import Engine
from quantasr.speech.parts import Arrays

_ROOM = 1_000_000_000
"""Bytes of outputs that are kept; what comes later is run anew."""


class RememberingEngine:
    """An engine that keeps what it gave for each feed, up to ``room`` bytes; in all else what it was."""

    def __init__(self, engine: Engine, room: int = _ROOM) -> None:
        self._engine, self._room = engine, room
        self._found: dict[bytes, dict[str, NDArray[Any]]] = {}

    def run(self, feed: Arrays) -> dict[str, NDArray[Any]]:
        """See :class:`quantasr.engines.engine.Engine`."""
        key = _digest(feed)
        found = self._found.get(key)
        if found is None:
            found = self._engine.run(feed)
            size = sum(array.nbytes for array in found.values())
            if size > self._room:
                return found
            self._room -= size
            self._found[key] = found
        # What a caller gets is its own to change.
        return {name: array.copy() for name, array in found.items()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def _digest(feed: Arrays) -> bytes:
    found = hashlib.sha256()
    for name in sorted(feed):
        array = np.ascontiguousarray(feed[name])
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.data)
    return found.digest()
