"""Take back the stack for signals that OpenVINO leaves behind."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """``stack_t`` of Linux (sigaltstack(2))."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def own_signal_stack() -> Iterator[None]:
    """Leave this thread with the stack for signals that it had before.

    OpenVINO 2026.4 gives the thread that loads a graph a stack of its own, and puts back what was there before when the
    graph goes. Two graphs that go in the order in which they came leave the stack of the first, which is freed by then:
    the next Ctrl-C is a segmentation fault. Only Linux has it.
    """
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _Stack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)
