"""What a converted model did in one run: its kernels, and where values were quantized and dequantized."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Trace:
    """Events ``(kind, name, size)`` in the order of execution.

    ``kernel``: a layer's path and its multiply-accumulates; ``entry`` and ``exit``: a tensor quantized or dequantized,
    and its elements.
    """

    events: list[tuple[str, str, int]] = field(default_factory=list)

    def count(self, kind: str) -> int:
        """How many events of a kind there were."""
        return sum(event[0] == kind for event in self.events)


_here = threading.local()


def note(kind: str, name: str, size: int) -> None:
    """Record an event, if anybody listens in this thread."""
    trace: Trace | None = getattr(_here, "trace", None)
    if trace is not None:
        trace.events.append((kind, name, size))


@contextmanager
def traced() -> Iterator[Trace]:
    """Listen to what converted layers do in this thread."""
    before = getattr(_here, "trace", None)
    _here.trace = Trace()
    try:
        yield _here.trace
    finally:
        _here.trace = before
