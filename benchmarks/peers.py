"""Other quantizers, at their defaults, as graphs for the same engines."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

Inputs = Sequence[dict[str, NDArray[Any]]]
"""What to calibrate on: a graph's inputs by their names."""


def nncf_int8(float_graph: Path, inputs: Inputs, output: Path, **options: Any) -> Path:
    """NNCF's post-training quantization of a graph, as OpenVINO IR."""
    import nncf
    import openvino as ov

    nncf.set_log_level(logging.ERROR)
    model = ov.Core().read_model(float_graph)
    with redirect_stdout(StringIO()):  # a progress bar for every branch of the graph
        quantized = nncf.quantize(model, nncf.Dataset(list(inputs)), **options)
    ov.save_model(quantized, output)
    return output


def onnxruntime_dynamic(float_graph: Path, output: Path) -> Path:
    """ONNX Runtime's dynamic quantization of matrix products (signed weights, which is the fast way)."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(float_graph, output, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
    return output


def onnxruntime_static(float_graph: Path, inputs: Inputs, output: Path) -> Path:
    """ONNX Runtime's static QDQ quantization at its defaults."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._rows = iter(inputs)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self._rows, None)

    quantize_static(float_graph, output, Reader())
    return output
