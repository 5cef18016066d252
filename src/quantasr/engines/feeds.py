"""What a graph is fed with to be timed and looked at: as a recording would feed it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import ArtifactError
from quantasr.speech.parts import Arrays

INTEGERS = "int64"


def part_feed(part: Mapping[str, Any], sizes: Mapping[str, int] | None = None, seed: int = 0) -> Arrays:
    """The inputs of one call of a part while speech is decoded, of noise; integers (tokens, rows) are 0.

    ``part`` is its row in ``artifact.json``: ``inputs`` (name -> ``type``, and ``shape`` whose varying axes are names)
    and ``typical``, the lengths of those axes; ``sizes`` are used first. ``lengths`` are those of the axis ``time``.
    Raises :class:`ArtifactError` for a row of another form.
    """
    random = np.random.default_rng(seed)
    typical = {**part.get("typical", {}), **(sizes or {})}
    feed: dict[str, NDArray[Any]] = {}
    try:
        for name, row in part["inputs"].items():
            shape = [axis if isinstance(axis, int) else typical.get(axis, 1) for axis in row["shape"]]
            if name == "lengths":
                feed[name] = np.full(shape, typical["time"], np.int64)
            elif row["type"] == INTEGERS:
                feed[name] = np.zeros(shape, np.int64)
            else:
                feed[name] = random.normal(size=shape).astype(row["type"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"a part's inputs cannot be read ({error!r}): make the artifact again") from None
    return feed
