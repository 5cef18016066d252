"""What a graph is fed with to be timed and looked at: as a recording would feed it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantasr.artifact import Artifact
from quantasr.engines.engine import EngineOptions
from quantasr.errors import ArtifactError
from quantasr.speech.parts import Arrays

INTEGERS = "int64"
TIME = "time"
"""The axis of features; ``typical`` where they always have one length."""


def options_for(artifact: Artifact, threads: int = 0, compute: str | None = None) -> EngineOptions:
    """How to run ``artifact``: ``compute`` defaults to its recipe's.

    Where its integers are right on every CPU, no engine needs to find out or to take care.
    """
    exact = False if artifact.portable else None
    return EngineOptions(threads, compute or artifact.compute, artifact.round_up, exact_products=exact)


def for_part(options: EngineOptions, artifact: Artifact, part: str) -> EngineOptions:
    """``options`` with what only this part of ``artifact`` has: lengths that its input always has, rounded inputs.

    Raises :class:`ArtifactError` for a row of another form.
    """
    round_inputs = artifact.recipe.get("weight_only_inputs") == "int8"
    row = artifact.parts.get(part)
    return replace(options, round_inputs=round_inputs, shapes={} if row is None else fixed_shapes(row))


def fixed_shapes(part: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of a part's ``features`` where they always have one length: windows of 30 s.

    Raises :class:`ArtifactError` for a row of another form.
    """
    time = part.get("typical", {}).get(TIME)
    if time is None or "features" not in part["inputs"]:
        return {}
    try:
        shape = part["inputs"]["features"]["shape"]
        return {"features": tuple(axis if isinstance(axis, int) else part["typical"].get(axis, 1) for axis in shape)}
    except (KeyError, TypeError) as error:
        raise _unreadable(error) from None


def shortest_feed(part: Mapping[str, Any]) -> Arrays:
    """As :func:`part_feed`, as little as there can be."""
    return part_feed(part, {axis: 2 for axis in part["typical"] if axis != TIME})


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
        raise _unreadable(error) from None
    return feed


def _unreadable(error: Exception) -> ArtifactError:
    return ArtifactError(f"a part's inputs cannot be read ({error!r}): make the artifact again")
