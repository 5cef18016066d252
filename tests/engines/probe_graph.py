"""The graph that tells whether an engine's integer products are exact on a CPU (:mod:`quantasr.engines.exactness`)."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from quantasr.engines.exactness import INPUT_SHAPE, PEAK

_OPSET = 21
_CHANNELS = 32


def probe_graph() -> onnx.ModelProto:
    """Products of the largest integers that there are: one output for each kind of product.

    The input is ``x`` ``[rows, width]``, all ones. Every output is ``PEAK`` everywhere if each product of two integers
    is added in full; sums of two products in 16 bits halve it.
    """
    rows, width = INPUT_SHAPE
    graph = _Graph()
    u8 = graph.quantized("x", 1 / 255, np.uint8)
    graph.node("MatMul", [u8, graph.weight("linear", [width, _CHANNELS], 1 / width)], "linear")
    graph.node("DynamicQuantizeLinear", ["x"], "x_dynamic", "x_scale", "x_zero_point")
    graph.node("DequantizeLinear", ["x_dynamic", "x_scale", "x_zero_point"], "x_again")
    graph.node("MatMul", ["x_again", graph.weight("dynamic", [width, _CHANNELS], 1 / width)], "dynamic")
    # [rows, width] -> [1, width, 1, rows]: channels, and time
    graph.node("Transpose", ["x"], "turned", perm=[1, 0])
    graph.node("Reshape", ["turned", graph.constant("image", np.array([1, width, 1, rows]))], "frames")
    image = graph.quantized("frames", 1 / 255, np.uint8)
    for name, kernel, groups in (("convolution", 3, 1), ("pointwise", 1, 1), ("depthwise", 3, width)):
        out = width if groups > 1 else _CHANNELS
        terms = width // groups * kernel
        weight = graph.weight(name, [out, width // groups, 1, kernel], 1 / terms, axis=0)
        graph.node("Conv", [image, weight], f"{name}_float", group=groups)
        # ONNX Runtime multiplies integers only where what a convolution gives is rounded too.
        graph.node("Identity", [graph.quantized(f"{name}_float", PEAK / 200, np.uint8)], name)
    scores, context = graph.quantized("x", 1 / 127, np.int8), u8
    keys = graph.quantized("keys", 1 / 127, np.int8)
    for name, left in (("scores", scores), ("context", context)):
        graph.node("MatMul", [left, keys], f"{name}_sum")
        graph.node("Mul", [f"{name}_sum", graph.constant(f"{name}_share", np.float32(PEAK / width))], name)
    outputs = ("linear", "dynamic", "convolution", "pointwise", "depthwise", "scores", "context")
    return graph.model([("x", [rows, width]), ("keys", [width, _CHANNELS])], outputs)


class _Graph:
    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._known: dict[tuple[object, ...], str] = {}

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:  # type: ignore[type-arg]
        self._constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def node(self, kind: str, inputs: list[str], *outputs: str, **attributes: object) -> str:
        self._nodes.append(helper.make_node(kind, inputs, list(outputs), f"/{outputs[0]}", **attributes))
        return outputs[0]

    def quantized(self, name: str, scale: float, kind: type[np.generic]) -> str:
        """``name`` rounded to integers whose largest is 1.0, and back."""
        key = (name, kind)
        if key not in self._known:
            base = f"{name}_{np.dtype(kind).name}"
            pair = [
                self.constant(f"{base}_scale", np.float32(scale)),
                self.constant(f"{base}_zero", np.zeros((), kind)),
            ]
            self.node("QuantizeLinear", [name, *pair], f"{base}_q")
            self._known[key] = self.node("DequantizeLinear", [f"{base}_q", *pair], base)
        return self._known[key]

    def weight(self, name: str, shape: list[int], share: float, axis: int = 1) -> str:
        """Integers of 127 everywhere, which sum up to ``PEAK``."""
        channels = shape[axis]
        names = [
            self.constant(f"{name}_integers", np.full(shape, 127, np.int8)),
            self.constant(f"{name}_scale", np.full(channels, PEAK * share / 127, np.float32)),
            self.constant(f"{name}_zero", np.zeros(channels, np.int8)),
        ]
        return self.node("DequantizeLinear", names, f"{name}_weight", axis=axis)

    def model(self, inputs: list[tuple[str, list[int]]], outputs: tuple[str, ...]) -> onnx.ModelProto:
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs]
        found = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self._nodes, "probe", values, found, list(self._constants.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
        model.ir_version = 10
        return model
