"""What a search holds: arrays for numba, and the names of their columns."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

INFINITY = np.float32(np.inf)
STATE, INSIDE, INSIDE_END, OUTWARD, OUTWARD_END, KEY = range(6)
TARGET, TID, WORD = range(3)
GRAPH, ACOUSTIC = range(2)
TOKENS, LINKS, FRAMES, PRUNED, BUCKETS, MARK = range(6)
NUMBERED, FIRST_NUMBER, SEARCHES = range(2, 5)
MOST_NUMBERS = 1 << 30
FIRST_BUCKETS, BUCKETS_OF_TOKEN = 1000, 2
BEAM, LATTICE_BEAM, BEAM_DELTA, PRUNE_DELTA, ACOUSTIC_SCALE = range(5)
MAX_ACTIVE, MIN_ACTIVE, PRUNE_INTERVAL = range(3)
DONE, TABLE_FULL, TOKENS_FULL, BUCKETS_FULL, NO_TOKENS = range(5)


class Work(NamedTuple):
    """What a search holds of one recording.

    ``counts``: tokens, links, frames searched, frames at the last pruning. ``token`` [tokens, 6]: graph state, its two
    ranges of links, the state's number in Kaldi. ``link`` [links, 3]: token that it leads to (-1: pruned),
    transition-id, word. ``frame[f]``: first token of frame ``f``, where 0 is before the first frame. ``dirty[f]``: 1,
    links of the frame are to be pruned. ``order``: tokens of the newest frame, counted from its first, in the order of
    Kaldi's hash table, whose buckets are ``bucket`` [buckets, 3]: mark, first and last token; ``following`` is the next
    token of a token's bucket.
    """

    counts: NDArray[np.int64]
    token: NDArray[np.int32]
    cost: NDArray[np.float32]
    extra: NDArray[np.float32]
    link: NDArray[np.int32]
    link_cost: NDArray[np.float32]
    frame: NDArray[np.int64]
    links_of: NDArray[np.int64]
    dirty: NDArray[np.uint8]
    offset: NDArray[np.float32]
    stack: NDArray[np.int32]
    scratch: NDArray[np.float32]
    beams: NDArray[np.float32]
    limits: NDArray[np.int64]
    order: NDArray[np.int32]
    following: NDArray[np.int32]
    bucket: NDArray[np.int32]
    occupied: NDArray[np.int32]
