"""Give memory back: pages of a weight file that an engine has copied into its own layout."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

_MADV_DONTNEED = 4  # Linux, all architectures


def release_pages(path: Path) -> int:
    """Drop this process's resident pages of a file that is mapped read-only; bytes of the mappings that were dropped.

    Safe at any time: a page that is touched again is read from the file again. Engines map weights stored beside the
    graph and then repack them for their kernels; without this both copies stay in memory for good. Does nothing
    where the system has no ``/proc``.
    """
    maps = Path("/proc/self/maps")
    if sys.platform != "linux" or not maps.is_file():
        return 0
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    released, name = 0, str(path.resolve())
    for line in maps.read_text("utf-8", errors="surrogateescape").splitlines():
        # address range, permissions, offset, device, inode, path (which may hold spaces)
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == name and fields[1].startswith("r-"):
            first, last = (int(value, 16) for value in fields[0].split("-"))
            if libc.madvise(first, last - first, _MADV_DONTNEED) == 0:
                released += last - first
    return released
