"""What every engine can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quantasr import cpu
from quantasr.errors import EngineError
from quantasr.speech.parts import Arrays

COMPUTE = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class EngineOptions:
    """How to run a graph.

    ``threads`` 0 means all cores that this process may use; ``compute`` is the type of the float rest. ``round_up`` is
    the number of time steps to whose multiples an engine may fill up its inputs, where that saves it from making new
    kernels for every length; only for graphs that take ``lengths``, which ignore what is filled in. ``shapes`` are
    those that inputs mostly have, -1 where they vary: an engine may make kernels for just these, and takes others too.
    ``round_inputs`` lets it round the inputs of layers whose weights alone are quantized to 8 bits, a scale for each
    block, where its fast kernels do so. ``exact_products`` has products of integers that this CPU's fast kernels would
    get wrong (:mod:`quantasr.engines.exactness`) computed in another way; None finds out whether that is necessary.
    """

    threads: int = 0
    compute: str = "auto"
    round_up: int = 1
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    round_inputs: bool = False
    exact_products: bool | None = None

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise EngineError(f"threads = {self.threads}: give 1 or more, or 0 for all cores")
        if self.round_up < 1:
            raise EngineError(f"round_up = {self.round_up}: give 1 or more time steps")
        if self.compute not in COMPUTE:
            raise EngineError(f"compute = {self.compute!r}: choose one of {', '.join(COMPUTE)}")

    @property
    def thread_count(self) -> int:
        """The number of threads, resolved."""
        return self.threads or cpu.threads()


@dataclass(frozen=True)
class ExecutedOp:
    """One kernel as the engine ran it.

    ``precision`` is the type that it multiplies in, such as ``int8``, ``bf16`` or ``fp32``; ``seconds`` is the time of
    one run. ``covers`` names the convolutions and matrix products of the graph that it stands for, with the
    multiply-accumulates of each; it is empty for a kernel that does something else.
    """

    name: str
    kind: str
    precision: str
    seconds: float
    covers: Mapping[str, int] = field(default_factory=dict)

    @property
    def macs(self) -> int:
        """Its multiply-accumulates."""
        return sum(self.covers.values())


class Engine(Protocol):
    """A loaded graph."""

    @property
    def name(self) -> str:
        """The engine's name in :data:`quantasr.engines.ENGINES`."""
        ...

    @property
    def compute(self) -> str:
        """The type in which the float rest runs: ``fp32``, ``bf16`` or ``fp16``."""
        ...

    def run(self, feed: Arrays) -> dict[str, NDArray[Any]]:
        """The graph's outputs by name, for its inputs by name; what it has no input for is not read.

        The outputs are the caller's: no later run writes into them. Raises :class:`EngineError` when the graph refuses
        these inputs.
        """
        ...

    def executed(self, feed: Arrays) -> list[ExecutedOp]:
        """Run once and report every kernel that the engine really executed.

        The multiply-accumulates add up to those of the graph: what no kernel can be found for comes last, one entry
        for each, with precision ``unknown``.
        """
        ...


def frame_feed(features: NDArray[np.float32], lengths: NDArray[np.int64] | None = None) -> Arrays:
    """The inputs of graphs that say something of every frame: ``features``, and their ``lengths``, whole by default."""
    return {"features": features, "lengths": np.full(len(features), features.shape[1]) if lengths is None else lengths}


def describe_shapes(feed: Arrays, names: Sequence[str]) -> str:
    """The inputs that a graph was given, for an error: ``features [1, 98, 80]``."""
    return ", ".join(f"{name} {list(feed[name].shape)}" if name in feed else f"no {name}" for name in names)
