"""Ctrl-C and requests to end: the running step is finished and saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stop:
    """Whether this process is ``asked`` to end."""

    def __init__(self) -> None:
        self.before: dict[int, Any] = {}
        self.number: int | None = None
        self._asked: set[int] = set()

    @property
    def asked(self) -> bool:
        return self.number is not None

    def obey(self) -> None:
        """End as the signal would have ended the process at once: as ``KeyboardInterrupt``, or what was set for it."""
        handler = self.before.get(self.number) if self.number is not None else None
        if callable(handler):
            handler(self.number, None)
        raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Twice the same, as Ctrl-C pressed again, is meant for at once. After Ctrl-C torchrun sends SIGTERM as well.
        if number in self._asked:
            self.obey()
        self._asked.add(number)
        self.number = self.number or number


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Note a signal, instead of raising it, for as long as the block lasts; when it comes again it is raised."""
    stop = Stop()
    if threading.current_thread() is threading.main_thread():  # Python gives signals to no other
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            # What the shell has set to be ignored, as by nohup, stays ignored; None is not Python's to put back.
            if handler not in (signal.SIG_IGN, None):
                stop.before[number] = handler
                signal.signal(number, stop._note)
    try:
        yield stop
    finally:
        for number, handler in stop.before.items():
            signal.signal(number, handler)
