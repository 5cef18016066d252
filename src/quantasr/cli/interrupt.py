"""Ctrl-C and requests to end, turned into one exception that lets everything be cleaned up."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupted(KeyboardInterrupt):
    """The process is asked to end; ``exit_code`` is 128 and the signal's number, as shells have it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.exit_code = 128 + number


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise :class:`Interrupted` on Ctrl-C and on requests to end.

    A second one is ignored while the first is cleaned up after, and after the block: the process is about to end
    then, and its engines' threads must not be torn down half way.
    """
    before = {}
    for number in _SIGNALS:
        # What the shell has set to be ignored, as for jobs in the background and by nohup, stays ignored.
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            before[number] = signal.signal(number, _stop)
    after: object = None
    try:
        yield
    except KeyboardInterrupt:
        after = signal.SIG_IGN
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if after is None else signal.SIG_IGN)


def _stop(number: int, frame: FrameType | None) -> None:
    error = sys.exception()
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return
        error = error.__context__
    raise Interrupted(number)
