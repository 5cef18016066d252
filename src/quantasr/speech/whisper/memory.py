"""How much memory a beam takes, told before it runs."""

from __future__ import annotations

import os
from pathlib import Path

from quantasr.errors import RecipeError
from quantasr.speech.whisper.options import WhisperFacts

_CACHES = 3  # of every beam: those read, those written, and those put in the order of the beams
_SCORES = 6  # rows of scores: logits and what is made of them
_MEMINFO = Path("/proc/meminfo")


def beam_bytes(facts: WhisperFacts, width: int) -> int:
    """Bytes that ``width`` hypotheses as long as they may be take beside the model."""
    cache = 2 * facts.layers * facts.heads * facts.head_dim * facts.max_length
    return 4 * width * (_CACHES * cache + _SCORES * facts.vocabulary)


def available_bytes() -> int:
    """Memory that programs can still take: what Linux estimates, elsewhere all there is."""
    if _MEMINFO.is_file():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def require_memory(facts: WhisperFacts, width: int) -> None:
    """Raise RecipeError where a beam of ``width`` does not fit."""
    needed, available = beam_bytes(facts, width), available_bytes()
    if needed > available:
        fits = available // beam_bytes(facts, 1)
        raise RecipeError(
            f"beam_width {width} takes up to {needed / 2**30:.1f} GiB, and {available / 2**30:.1f} GiB are free: "
            f"give {max(1, fits)} or less"
        )
