"""Other quantizers, at their defaults, as graphs for the same engines."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Features = Sequence[NDArray[np.float32]]


def nncf_int8(float_graph: Path, features: Features, output: Path, **options: Any) -> Path:
    """NNCF's post-training quantization of a graph with one input, as OpenVINO IR."""
    import nncf
    import openvino as ov

    nncf.set_log_level(logging.ERROR)
    model = ov.Core().read_model(float_graph)
    quantized = nncf.quantize(model, nncf.Dataset(list(features), lambda x: {"features": x}), **options)
    ov.save_model(quantized, output)
    return output


def onnxruntime_dynamic(float_graph: Path, output: Path) -> Path:
    """ONNX Runtime's dynamic quantization of matrix products (signed weights, which is the fast way)."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(float_graph, output, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
    return output


def onnxruntime_static(float_graph: Path, features: Features, output: Path) -> Path:
    """ONNX Runtime's static QDQ quantization at its defaults."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._rows = iter([{"features": x} for x in features])

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self._rows, None)

    quantize_static(float_graph, output, Reader())
    return output
