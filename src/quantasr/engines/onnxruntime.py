"""ONNX Runtime on CPU."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from quantasr.engines.engine import EngineOptions, ExecutedOp
from quantasr.engines.macs import macs_by_node
from quantasr.errors import EngineError

# Kernels of ONNX Runtime that multiply integers.
_INTEGER_KERNELS = {
    "ConvInteger",
    "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QAttention",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
}


def load(graph: Path, options: EngineOptions) -> OnnxRuntimeEngine:
    """Open a session on ``graph``; raises :class:`EngineError` in one line."""
    return OnnxRuntimeEngine(graph, options)


class OnnxRuntimeEngine:
    """A graph in an ONNX Runtime session; the float rest runs in fp32."""

    name = "onnxruntime"
    compute = "fp32"

    def __init__(self, graph: Path, options: EngineOptions) -> None:
        if options.compute == "bf16":
            raise EngineError("compute = 'bf16': ONNX Runtime's CPU kernels have no bf16; use engine openvino, or fp32")
        self._graph, self._options = graph, options
        self._session = self._open(self._settings())
        self._takes_lengths = len(self._session.get_inputs()) > 1

    def _settings(self) -> Any:
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = self._options.thread_count
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        return settings

    def _open(self, settings: Any) -> Any:
        try:
            return ort.InferenceSession(str(self._graph), settings, providers=["CPUExecutionProvider"])
        except (RuntimeError, ValueError) as error:  # its own exceptions derive from these
            raise EngineError(f"{self._graph}: ONNX Runtime cannot load it: {str(error).splitlines()[0]}") from None

    def _feed(self, features: NDArray[np.float32], lengths: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        return {"features": features, "lengths": lengths} if self._takes_lengths else {"features": features}

    def run(
        self, features: NDArray[np.float32], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """See :class:`quantasr.engines.engine.Engine`."""
        found = self._session.run(None, self._feed(features, lengths))
        return found[0], found[1] if self._takes_lengths else None

    def executed(self, features: NDArray[np.float32], lengths: NDArray[np.int64]) -> list[ExecutedOp]:
        """See :class:`quantasr.engines.engine.Engine`; read from ONNX Runtime's profile of one run."""
        feed = self._feed(features, lengths)
        macs = macs_by_node(self._graph, {name: array.shape for name, array in feed.items()})
        with tempfile.TemporaryDirectory() as folder:
            settings = self._settings()
            settings.enable_profiling = True
            settings.profile_file_prefix = str(Path(folder) / "profile")
            session = self._open(settings)
            session.run(None, feed)
            events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
        ops = []
        for event in events:
            if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
                continue
            name, kind = event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]
            precision = "int8" if kind in _INTEGER_KERNELS else "fp32"
            node = _original(name, macs)
            covers = (node,) if node else ()
            ops.append(ExecutedOp(name, kind, covers, precision, macs.pop(node, 0), event["dur"] * 1e-6))
        return ops


def _original(name: str, macs: dict[str, int]) -> str:
    """The exported node that a fused one stands for: ONNX Runtime keeps its name and appends to it."""
    if name in macs:
        return name
    found = [node for node in macs if name.startswith(node)]
    return max(found, key=len) if found else ""
