"""OpenVINO on CPU."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from quantasr.engines.engine import EngineOptions, ExecutedOp, describe_shapes
from quantasr.engines.exactness import inexact, needs_care
from quantasr.engines.float_products import leave_float
from quantasr.engines.macs import last_line, products, share_out
from quantasr.engines.signal_stack import own_signal_stack
from quantasr.errors import EngineError
from quantasr.speech.parts import Arrays

_PRECISIONS = {"u8": "int8", "i8": "int8", "bf16": "bf16", "f32": "fp32", "f16": "fp16"}

# Kernels that multiply; a Subgraph is generated code, among it whole attentions.
_PRODUCT_KERNELS = {
    *("Convolution", "Deconvolution", "FullyConnected", "GatherMatmul", "LLMMLP", "MatMul", "MHA", "QKVProjection"),
    *("ScaledDotProductAttention", "Subgraph"),
}


_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


@cache
def compute_types() -> tuple[str, ...]:
    """What this CPU multiplies in hardware, as OpenVINO sees it: ``fp32``, and perhaps ``bf16`` and ``fp16``."""
    found = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "fp32", *(name for name in ("bf16", "fp16") if name.upper() in found)


def load(graph: Path, options: EngineOptions) -> OpenVinoEngine:
    """Compile ``graph`` for this CPU; raises :class:`EngineError` in one line."""
    return OpenVinoEngine(graph, options)


class OpenVinoEngine:
    """A graph compiled by OpenVINO, with dynamic batch and time."""

    name = "openvino"

    def __init__(self, graph: Path, options: EngineOptions) -> None:
        self._graph, self._options = graph, options
        known = compute_types()
        if options.compute not in ("auto", *known):
            name = options.compute
            raise EngineError(
                f"compute = {name!r}: this CPU has no {name} instructions; use {', '.join(known)} or auto"
            )
        self.compute = known[min(1, len(known) - 1)] if options.compute == "auto" else options.compute
        self._inexact = inexact(self.name) if needs_care(self.name, options) else frozenset()
        self._shapes: dict[str, ov.PartialShape] = {}
        self._outputs: list[str] = []
        compiled = self._compile(self._properties(), options.shapes)
        # A graph of any lengths, and before it one of the shapes that inputs mostly have.
        self._any: Any = None if options.shapes else compiled.create_infer_request()
        self._usual: Any = compiled.create_infer_request() if options.shapes else None
        self._lock = Lock()

    def _compile(self, properties: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Any:
        """The graph, its inputs of ``shapes``: fused attention takes a fifth longer where its length may vary."""
        try:
            with own_signal_stack():
                core = ov.Core()
                model = core.read_model(self._graph)
                if self._inexact:
                    leave_float(model, self._inexact)
                self._shapes = {port.get_any_name(): port.get_partial_shape() for port in model.inputs}
                # Of the compiled graph an output may have other names too: those of nodes that did the same.
                self._outputs = [port.get_any_name() for port in model.outputs]
                if shapes:
                    fixed = {name: ov.PartialShape(list(shape)) for name, shape in shapes.items()}
                    model.reshape({**self._shapes, **fixed})
                return core.compile_model(model, "CPU", properties)
        except RuntimeError as error:
            raise EngineError(f"{self._graph}: OpenVINO cannot load it: {last_line(error)}") from None

    def _properties(self) -> dict[str, Any]:
        return {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self._options.thread_count,
            "INFERENCE_PRECISION_HINT": _HINTS[self.compute],
            # Where only weights are quantized it would round the inputs to int8 as well.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32 if self._options.round_inputs else 0,
        }

    def run(self, feed: Arrays) -> dict[str, NDArray[Any]]:
        """See :class:`quantasr.engines.engine.Engine`."""
        try:
            given = self._given(feed)
            # The request's own memory is written again by the next run, so nobody else may run before it is copied.
            with self._lock:
                request = self._request(given)
                # Of 18 MB that an encoder gives, a second copy would be a tenth of its time.
                request.infer(given, share_inputs=True, share_outputs=True)
                return {name: request.get_tensor(name).data.copy() for name in self._outputs}
        except (RuntimeError, KeyError) as error:
            shapes = describe_shapes(feed, list(self._shapes))
            raise EngineError(f"{self._graph}: OpenVINO cannot run it on {shapes}: {last_line(error)}") from None

    def _request(self, given: Arrays) -> Any:
        """The one for these inputs; that for any lengths is made when it is first needed."""
        if self._usual is not None and _fit(given, self._options.shapes):
            return self._usual
        if self._any is None:
            self._any = self._compile(self._properties(), {}).create_infer_request()
        return self._any

    def _given(self, feed: Arrays) -> dict[str, NDArray[Any]]:
        """The graph's inputs, filled up where it takes padding; RuntimeError for shapes that are not its."""
        given = {name: feed[name] for name in self._shapes}
        if "lengths" in given and "features" in given:
            given["features"] = _filled_up(given["features"], self._options.round_up)
        for name, array in given.items():
            if not self._shapes[name].compatible(ov.PartialShape(list(array.shape))):
                # It would read as many values as it expects from wherever they lie.
                raise RuntimeError(f"{name} takes {self._shapes[name]}")
        return given

    def executed(self, feed: Arrays) -> list[ExecutedOp]:
        """See :class:`quantasr.engines.engine.Engine`; read from OpenVINO's runtime model and performance counters."""
        feed = {name: feed[name] for name in self._shapes}
        found = products(self._graph, {name: array.shape for name, array in feed.items()})
        shapes = self._options.shapes if _fit(feed, self._options.shapes) else {}
        compiled = self._compile({**self._properties(), "PERF_COUNT": True}, shapes)
        request = compiled.create_infer_request()
        for _ in range(2):  # the first run makes the kernels
            request.infer(feed)
        seconds = {row.node_name: row.real_time.total_seconds() for row in request.profiling_info}
        kernels = []
        for op in compiled.get_runtime_model().get_ordered_ops():
            info = op.get_rt_info()
            kind, precision = str(info["layerType"].value), _precision(info)
            if kind == "Const":
                continue
            names = str(info["originalLayersNames"].value).split(",") if kind in _PRODUCT_KERNELS else []
            name = op.get_friendly_name()
            kernel = ExecutedOp(name, kind, precision, seconds.get(name, 0.0))
            kernels.append((kernel, names))
        return share_out(kernels, found)


def _fit(feed: Arrays, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return all(
        len(shape) == feed[name].ndim and all(a in (-1, b) for a, b in zip(shape, feed[name].shape, strict=True))
        for name, shape in shapes.items()
    )


def _filled_up(features: NDArray[np.float32], multiple: int) -> NDArray[np.float32]:
    """Zeros behind ``[batch, time, ...]`` up to a multiple of time steps.

    OpenVINO makes kernels for every shape that it has not seen: 60 recordings of 60 lengths took the sample 4.2 s as
    they are, and 0.6 s rounded up to half a second.
    """
    missing = -features.shape[1] % multiple
    return np.pad(features, [(0, 0), (0, missing)] + [(0, 0)] * (features.ndim - 2)) if missing else features


def _precision(info: Any) -> str:
    """The type that a kernel multiplies in, by the end of its implementation's name, as in ``brgemm_avx512_I8``."""
    suffix = str(info["primitiveType"].value).rpartition("_")[2].lower()
    # What OpenVINO calls its runtime precision is that of one of the inputs, for an attention perhaps of the mask.
    return _PRECISIONS.get(suffix) or _PRECISIONS.get(str(info["runtimePrecision"].value), "other")
