"""Small ONNX graphs made by hand, whose multiply-accumulates can be counted on paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper


def save(
    path: Path,
    nodes: Sequence[NodeProto],
    features: Sequence[int | str],
    constants: dict[str, NDArray[np.generic]],
    rank: int = 3,
) -> Path:
    """A graph from ``features`` of that shape to ``logprobs`` of that rank."""
    graph = helper.make_graph(
        list(nodes),
        "hand-made",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, list(features))],
        [helper.make_tensor_value_info("logprobs", TensorProto.FLOAT, [f"axis{i}" for i in range(rank)])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def node(kind: str, inputs: str, output: str, **attributes: object) -> NodeProto:
    """A node that is called as its output, as in ``/scope/name``."""
    return helper.make_node(kind, inputs.split(), [output], output, **attributes)


def weight(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)


def quantized(name: str, source: str) -> list[NodeProto]:
    """QuantizeLinear and DequantizeLinear of an activation, with the constants ``scale`` and ``zero``."""
    return [
        node("QuantizeLinear", f"{source} scale zero", f"{name}_q"),
        node("DequantizeLinear", f"{name}_q scale zero", name),
    ]


QUANTIZERS = {"scale": np.float32(0.02), "zero": np.uint8(128), "wscale": np.float32(0.01), "wzero": np.int8(0)}
