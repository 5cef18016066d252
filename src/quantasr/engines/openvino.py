"""OpenVINO on CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from quantasr.engines.engine import EngineOptions, ExecutedOp
from quantasr.engines.macs import macs_by_node
from quantasr.errors import EngineError

_PRECISIONS = {"u8": "int8", "i8": "int8", "bf16": "bf16", "f32": "fp32", "f16": "fp16"}


def has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware, as OpenVINO sees it."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def load(graph: Path, options: EngineOptions) -> OpenVinoEngine:
    """Compile ``graph`` for this CPU; raises :class:`EngineError` in one line."""
    return OpenVinoEngine(graph, options)


class OpenVinoEngine:
    """A graph compiled by OpenVINO, with dynamic batch and time."""

    name = "openvino"

    def __init__(self, graph: Path, options: EngineOptions) -> None:
        self._graph, self._options = graph, options
        if options.compute == "bf16" and not has_bf16():
            raise EngineError("compute = 'bf16': this CPU has no bf16 instructions; use fp32 or auto")
        self.compute = "fp32" if options.compute == "fp32" or not has_bf16() else "bf16"
        try:
            self._core = ov.Core()
            compiled = self._core.compile_model(self._core.read_model(graph), "CPU", self._properties())
        except RuntimeError as error:
            raise EngineError(f"{graph}: OpenVINO cannot load it: {_last_line(error)}") from None
        self._request = compiled.create_infer_request()
        self._takes_lengths = len(compiled.inputs) > 1

    def _properties(self) -> dict[str, Any]:
        return {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self._options.thread_count,
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[self.compute],
        }

    def _feed(self, features: NDArray[np.float32], lengths: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        return {"features": features, "lengths": lengths} if self._takes_lengths else {"features": features}

    def run(
        self, features: NDArray[np.float32], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """See :class:`quantasr.engines.engine.Engine`."""
        self._request.infer(self._feed(features, lengths))
        # The request's own memory is written again by the next run.
        logprobs = self._request.get_tensor("logprobs").data.astype(np.float32, copy=True)
        counts = self._request.get_tensor("frame_counts").data.copy() if self._takes_lengths else None
        return logprobs, counts

    def executed(self, features: NDArray[np.float32], lengths: NDArray[np.int64]) -> list[ExecutedOp]:
        """See :class:`quantasr.engines.engine.Engine`; read from OpenVINO's runtime model and performance counters."""
        feed = self._feed(features, lengths)
        macs = macs_by_node(self._graph, {name: array.shape for name, array in feed.items()})
        compiled = self._core.compile_model(
            self._core.read_model(self._graph), "CPU", {**self._properties(), "PERF_COUNT": True}
        )
        request = compiled.create_infer_request()
        for _ in range(2):  # the first run makes the kernels
            request.infer(feed)
        seconds = {row.node_name: row.real_time.total_seconds() for row in request.profiling_info}
        ops = []
        for op in compiled.get_runtime_model().get_ordered_ops():
            info = {
                key: str(op.get_rt_info()[key].value)
                for key in ("layerType", "originalLayersNames", "runtimePrecision")
            }
            covers = tuple(name for name in info["originalLayersNames"].split(",") if name)
            if info["layerType"] == "Const":
                continue
            precision = _PRECISIONS.get(info["runtimePrecision"], info["runtimePrecision"])
            count = sum(macs.get(name, 0) for name in covers)
            name = op.get_friendly_name()
            ops.append(ExecutedOp(name, info["layerType"], covers, precision, count, seconds.get(name, 0.0)))
        return ops


def _last_line(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "unknown error"
