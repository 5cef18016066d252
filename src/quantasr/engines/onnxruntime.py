"""ONNX Runtime on CPU."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as _native

from quantasr.engines.engine import EngineOptions, ExecutedOp, describe_shapes
from quantasr.engines.exactness import inexact, needs_care
from quantasr.errors import EngineError
from quantasr.speech.parts import Arrays

_BLOCKS = "MatMulNBits"

# Kernels of ONNX Runtime that multiply integers, and those that multiply floats.
_INTEGER_KERNELS = {
    *("ConvInteger", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat"),
    *("QAttention", "QGemm", "QLinearConv", "QLinearMatMul"),
}
_FLOAT_KERNELS = {
    *("Attention", "Conv", "ConvTranspose", "Einsum", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "MatMul"),
    *(_BLOCKS, "MultiHeadAttention", "NhwcFusedConv", "TransposeMatMul"),
}

# Its exceptions have no base of their own.
_ERRORS: tuple[type[Exception], ...] = (
    *(kind for kind in vars(_native).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    KeyError,
    RuntimeError,
    ValueError,
)
_FATAL = 4  # everything less comes to us as an exception, and would be on standard error a second time
ort.set_default_logger_severity(_FATAL)


def load(graph: Path, options: EngineOptions) -> OnnxRuntimeEngine:
    """Open a session on ``graph``; raises :class:`EngineError` in one line."""
    return OnnxRuntimeEngine(graph, options)


class OnnxRuntimeEngine:
    """A graph in an ONNX Runtime session; the float rest runs in fp32."""

    name = "onnxruntime"
    compute = "fp32"

    def __init__(self, graph: Path, options: EngineOptions) -> None:
        if options.compute in ("bf16", "fp16"):
            raise EngineError(
                f"compute = {options.compute!r}: ONNX Runtime's CPU kernels have none; use engine openvino, or fp32"
            )
        self._graph, self._options = graph, options
        self._exact = needs_care(self.name, options)
        if self._exact and options.exact_products is None and (wrong := inexact(self.name, exact_products=True)):
            self._refuse(wrong)
        self._session = self._open(self._settings())
        self._inputs = [node.name for node in self._session.get_inputs()]
        self._outputs = [node.name for node in self._session.get_outputs()]

    def _refuse(self, wrong: Collection[str]) -> None:
        """Raise :class:`EngineError` if the graph has products that not even the exact kernels compute."""
        from quantasr.engines.float_products import saturating

        if found := saturating(self._graph, wrong):
            raise EngineError(
                f"{self._graph}: {found[0]} multiplies activations of 8 bits, which ONNX Runtime computes wrongly on "
                "this CPU: use engine openvino, or quantize again with reduce_range = true"
            )

    def _settings(self) -> Any:
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = self._options.thread_count
        settings.inter_op_num_threads = 1
        settings.log_severity_level = _FATAL
        # Threads that go on spinning when a run is over take the cores from whoever works next: the decoder, or the
        # other system in a comparison, which then took twice its time. A run itself is as fast.
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        # Its kernel for quantized weights alone rounds the inputs to int8 as well, in blocks, unless it is told not to.
        level = "4" if self._options.round_inputs else "1"
        settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
        if self._exact:
            # Weights that may saturate become unsigned when the graph is loaded: products of unsigned integers have
            # kernels that add in 32 bits, at three quarters of the speed. Weights of 7 bits stay what they are.
            settings.add_session_config_entry("session.x64quantprecision", "1")
        return settings

    def _open(self, settings: Any) -> Any:
        try:
            return ort.InferenceSession(str(self._graph), settings, providers=["CPUExecutionProvider"])
        except _ERRORS as error:
            if self._exact and self._loads_inexact():
                # As where two products share one weight.
                raise EngineError(
                    f"{self._graph}: ONNX Runtime cannot make its 8-bit weights exact on this CPU: use engine "
                    "openvino, or quantize again with reduce_range = true"
                ) from None
            raise EngineError(f"{self._graph}: ONNX Runtime cannot load it: {str(error).splitlines()[0]}") from None

    def _loads_inexact(self) -> bool:
        """Whether the graph loads where nothing need be exact."""
        try:
            load(self._graph, replace(self._options, exact_products=False))
        except EngineError:
            return False
        return True

    def run(self, feed: Arrays) -> dict[str, NDArray[Any]]:
        """See :class:`quantasr.engines.engine.Engine`."""
        try:
            found = self._session.run(self._outputs, {name: feed[name] for name in self._inputs})
        except _ERRORS as error:
            shapes = describe_shapes(feed, self._inputs)
            raise EngineError(
                f"{self._graph}: ONNX Runtime cannot run it on {shapes}: {str(error).splitlines()[0]}"
            ) from None
        return dict(zip(self._outputs, found, strict=True))

    def executed(self, feed: Arrays) -> list[ExecutedOp]:
        """See :class:`quantasr.engines.engine.Engine`; read from ONNX Runtime's profile of one run."""
        # Here, because it brings OpenVINO with it, which nothing else of this engine needs.
        from quantasr.engines.macs import products, share_out

        feed = {name: feed[name] for name in self._inputs}
        found = products(self._graph, {name: array.shape for name, array in feed.items()})
        kernels = []
        for event in self._profile(feed):
            name, kind = event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]
            integer = kind in _INTEGER_KERNELS or (kind == _BLOCKS and self._options.round_inputs)
            precision = "int8" if integer else "fp32"
            names = [_original(name, found)] if kind in _INTEGER_KERNELS | _FLOAT_KERNELS else []
            kernels.append((ExecutedOp(name, kind, precision, event["dur"] * 1e-6), names))
        return share_out(kernels, found)

    def _profile(self, feed: Arrays) -> list[dict[str, Any]]:
        """The kernels of one run, in a session of its own."""
        with tempfile.TemporaryDirectory() as folder:
            settings = self._settings()
            settings.enable_profiling = True
            settings.profile_file_prefix = str(Path(folder) / "profile")
            session = self._open(settings)
            session.run(None, dict(feed))
            events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
        return [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]


def _original(name: str, nodes: Collection[str]) -> str:
    """The exported node that a kernel stands for: ONNX Runtime keeps its name, and may put something on either side.

    A convolution that it has fused with an activation it may call by the activation's output.
    """
    name = name.removeprefix("fused ")
    found = [node for node in nodes if name.startswith(node) and name[len(node) :][:1] in ("", "/", "_", " ")]
    activation, output, _ = name.partition("_output_0")
    return max(found, key=len, default=activation if output else "")
