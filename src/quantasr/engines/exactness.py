"""Whether an engine's products of 8-bit integers are exact on this CPU, found by running some.

Where a CPU cannot add products of two 8-bit integers in 32 bits (x86-64 without VNNI), engines add pairs of them in 16,
which saturate: 255 · 127 + 255 · 127 does not fit. Integers of which one has 7 bits cannot saturate, so a graph whose
weights have no more is exact everywhere. For others an engine is told, or made, to multiply in another way.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from quantasr import cpu
from quantasr.engines import load_engine
from quantasr.engines.cache import read_cache, remember
from quantasr.engines.engine import EngineOptions
from quantasr.errors import EngineError

INPUT_SHAPE = (16, 256)
PEAK = 200.0
PROBE = Path(__file__).with_name("probe.onnx")
"""Made by ``tests/engines/probe_graph.py``: every output is :data:`PEAK` where products are exact."""

INSTEAD = {
    "onnxruntime": "unsigned weights, whose products are added in 32 bits",
    "openvino": "float products of the same integers",
}
"""What an engine does where its fast products are inexact and the integers do not fit into 7 bits."""

_TOLERANCE = 0.02  # one step of what convolutions give is half a percent; what saturates is off by half

KINDS = ("linear", "dynamic", "convolution", "pointwise", "depthwise", "scores", "context")
"""Kinds of products: layers with static and dynamic inputs, convolutions, the two products of attention."""


@cache
def inexact(engine: str, exact_products: bool = False) -> frozenset[str]:
    """The :data:`KINDS` of products that ``engine`` computes wrongly on this CPU when all integers have 8 bits.

    With ``exact_products`` it is told to be exact, which may cost time (:class:`EngineOptions`). What was found is
    remembered for this CPU and this version of the engine. Raises :class:`EngineError` when it cannot run the probe.
    """
    way = "exact" if exact_products else "fast"
    key = f"products | {engine} {package_version(engine)} | {cpu.this_cpu().key} | {way}"
    row = read_cache().get(key)
    if isinstance(row, Mapping) and isinstance(row.get("inexact"), list) and set(row["inexact"]) <= set(KINDS):
        return frozenset(row["inexact"])
    found = _probe(engine, exact_products)
    remember(key, {"inexact": sorted(found)})
    return found


def needs_care(engine: str, options: EngineOptions) -> bool:
    """Whether ``engine`` must be told to be exact: as ``options`` say, or where it would be wrong on this CPU."""
    return bool(inexact(engine)) if options.exact_products is None else options.exact_products


def products(engine: str, portable: bool) -> str:
    """How ``engine`` multiplies 8-bit integers here, in words; ``portable`` says that none of them can saturate."""
    if engine not in INSTEAD:
        return ""
    if portable:
        return "8-bit inputs × 7-bit weights, which cannot saturate"
    if inexact(engine):
        return f"8-bit inputs × 8-bit weights, which would saturate here: computed as {INSTEAD[engine]}"
    return f"8-bit inputs × 8-bit weights: {cpu.this_cpu().integer_products}"


def _probe(engine: str, exact_products: bool) -> frozenset[str]:
    options = EngineOptions(threads=1, compute="fp32", exact_products=exact_products)
    rows, width = INPUT_SHAPE
    feed = {"x": np.ones((rows, width), np.float32), "keys": np.ones((width, 32), np.float32)}
    outputs = load_engine(engine, PROBE, options).run(feed)
    if set(outputs) != set(KINDS):
        raise EngineError(f"{PROBE}: gives {', '.join(outputs)}, not {', '.join(KINDS)}: install quantasr again")
    return frozenset(kind for kind, found in outputs.items() if np.abs(found - PEAK).max() > _TOLERANCE * PEAK)


def package_version(name: str) -> str:
    """The installed version of a package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
