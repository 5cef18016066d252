"""Long recordings: the encodings of overlapping windows put together to one sequence of frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from quantasr.speech.long_form import EDGE_SHARE
from quantasr.speech.transducer.network import Floats

_AROUND = 3
"""Frames to each side on which two windows should agree about a seam."""


def spliced(windows: Iterable[tuple[int, Floats]]) -> Iterator[Floats]:
    """(first frame, encodings ``[frames, H]``) of the windows in order -> the frames of the whole, in pieces.

    The search goes on over a seam as if nothing had been there: no texts are joined. At most two windows are held.
    """
    held: Floats | None = None
    held_start = 0
    for start, encoded in windows:
        if held is None:
            held, held_start = encoded, start
            continue
        shared = held_start + len(held) - start
        if shared < 1:
            raise ValueError(f"windows do not overlap: one ends at frame {start + shared}, the next is at {start}")
        seam = find_seam(held[-shared:], encoded[:shared])
        yield held[: len(held) - shared + seam]
        held, held_start = encoded[seam:], start + seam
    if held is not None:
        yield held


def find_seam(left: Floats, right: Floats) -> int:
    """The frame of an overlap from which ``right`` replaces ``left``; both ``[frames, H]``, of the same frames.

    Where both windows hear the same, they would say the same: it is the frame around which their encodings differ
    least, away from the ends, which lack context.
    """
    apart = np.square(left - right).sum(-1) / (np.square(left).sum(-1) + np.square(right).sum(-1) + 1e-9)
    width = min(2 * _AROUND + 1, len(apart))
    around = np.convolve(apart, np.ones(width) / width, mode="same")
    edge = max(1, int(len(apart) * EDGE_SHARE))
    inner = around[edge : max(len(apart) - edge, edge + 1)]
    return edge + int(inner.argmin()) if len(inner) else 0
