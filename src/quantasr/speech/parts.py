"""Recognisers made of several graphs that are called step by step: what a part of one is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
"""Inputs or outputs of a part, by name."""


class Part(Protocol):
    """One graph: an encoder, a decoder (one step of it, with its state going in and out), a joiner.

    In PyTorch or on an engine. What it gives is the caller's: no later call writes into it.
    """

    def __call__(self, feed: Arrays) -> dict[str, NDArray[Any]]:
        """Inputs by name -> outputs by name."""
        ...


Parts: TypeAlias = Mapping[str, Part]
"""The parts of one recogniser by name: ``encoder``, ``decoder``, ``joiner`` and so on."""
