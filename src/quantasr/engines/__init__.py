"""Engines: a graph in, arrays out. One table; each engine is imported when it is used."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

from quantasr.engines.engine import Engine, EngineOptions, ExecutedOp
from quantasr.errors import EngineError

ENGINES: dict[str, str] = {
    "onnxruntime": "quantasr.engines.onnxruntime",
    "openvino": "quantasr.engines.openvino",
}

TORCH = "torch"
TORCH_BACKENDS = ("onednn", "x86", "fbgemm", "qnnpack")
"""PyTorch's own int8: ``torch:`` and one of these names is an engine too, but for a live model instead of a graph."""

# Both engines report their use to web services unless they are told otherwise before they are imported. Recognisers run
# where nothing may leave the machine. OpenVINO reports when it is imported, from a process that it forks, but not when
# this package is missing.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def load_engine(name: str, graph: Path, options: EngineOptions) -> Engine:
    """Load ``graph`` on the engine called ``name``.

    Raises :class:`EngineError` when the engine is unknown or not installed, or cannot load the graph.
    """
    if name not in ENGINES:
        raise EngineError(f"engine {name!r} is unknown: choose one of auto, {', '.join(ENGINES)}")
    try:
        module = import_module(ENGINES[name])
    except ImportError as error:
        raise EngineError(f"engine {name} cannot be imported ({error}): pip install {name}") from None
    engine: Engine = module.load(graph, options)
    return engine


__all__ = ["ENGINES", "TORCH", "TORCH_BACKENDS", "Engine", "EngineOptions", "ExecutedOp", "load_engine"]
