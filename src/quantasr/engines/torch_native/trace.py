"""What a converted model did in one run: its kernels, and where values were quantized and dequantized."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    ``kind`` is ``kernel`` (``name`` is the layer's path, ``size`` its multiply-accumulates, ``detail`` the kernel,
    ``precision`` the type that it multiplies in), or ``entry`` or ``exit`` (a tensor of ``size`` elements quantized or
    dequantized).
    """

    kind: str
    name: str
    size: int
    detail: str = ""
    precision: str = "int8"
    seconds: float = 0.0


@dataclass
class Trace:
    """Events in the order of execution."""

    events: list[Event] = field(default_factory=list)

    def count(self, kind: str) -> int:
        """How many events of a kind there were."""
        return sum(event.kind == kind for event in self.events)


_here = threading.local()


def note(event: Event) -> None:
    """Record an event, if anybody listens in this thread."""
    trace: Trace | None = getattr(_here, "trace", None)
    if trace is not None:
        trace.events.append(event)


@contextmanager
def traced() -> Iterator[Trace]:
    """Listen to what converted layers do in this thread."""
    before = getattr(_here, "trace", None)
    _here.trace = Trace()
    try:
        yield _here.trace
    finally:
        _here.trace = before
