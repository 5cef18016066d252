"""A window's text cut at its time stamps, and where the next window begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantasr.speech.whisper.options import WhisperFacts

TIME_STEP = 0.02
"""Seconds between two time stamps, and between two frames of the encoder."""

ROWS_PER_STEP = 2
"""Rows of features in a time step."""


@dataclass(frozen=True)
class Segment:
    """Tokens between two time stamps, these included, and the times, in seconds from the recording's start."""

    tokens: tuple[int, ...]
    start: float
    end: float


def cut(tokens: Sequence[int], facts: WhisperFacts, *, offset: float, rows: int) -> tuple[list[Segment], int]:
    """Segments of a window that began at ``offset`` seconds and had ``rows`` rows, and how many rows to go on by.

    As transformers' ``generate`` does it: what follows the last pair of time stamps is heard again in the next window,
    unless a single one ends the text: then there is no more speech.
    """
    begin = facts.timestamp_begin
    is_time = [token >= begin for token in tokens]
    pairs = [i + 1 for i in range(len(tokens) - 1) if is_time[i] and is_time[i + 1]]
    single = is_time[-2:] == [False, True]
    if not pairs:
        times = [token for token in tokens if token >= begin]
        length = (times[-1] - begin) * TIME_STEP if times and times[-1] != begin else rows / ROWS_PER_STEP * TIME_STEP
        return [Segment(tuple(tokens), offset, offset + length)], rows
    ends = [*pairs, len(tokens)] if single else [*pairs[:-1], pairs[-1] + 1]
    segments, start = [], 0
    for i, end in enumerate(ends):
        part = tuple(tokens[start:end])
        # Where no single time stamp ends the text, the last segment holds the pair's second one too.
        last = part[-1] if single or i < len(ends) - 1 else part[-2]
        segments.append(Segment(part, offset + (part[0] - begin) * TIME_STEP, offset + (last - begin) * TIME_STEP))
        start = end
    if single:
        return segments, rows
    return segments, (tokens[ends[-1] - 2] - begin) * ROWS_PER_STEP


def read_before(segments: Sequence[Segment], facts: WhisperFacts) -> list[int]:
    """What the next window is shown of ``segments``: all their tokens, of a pair of last time stamps the first."""
    found: list[int] = []
    for segment in segments:
        tokens = segment.tokens
        doubled = len(tokens) > 2 and tokens[-2] >= facts.timestamp_begin
        found += tokens[:-1] if doubled else tokens
    return found
