"""Quantizers move up past changes of layout, the values stay, and what has other readers stays where it is."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantasr.export.hoist import hoist

FLOAT = onnx.TypeProto.Tensor(elem_type=TensorProto.FLOAT)
LAYOUTS = {
    "Transpose": ([], {"perm": [0, 2, 1]}),
    "Reshape": ([numpy_helper.from_array(np.array([2, 12]), "shape")], {}),
    "Unsqueeze": ([numpy_helper.from_array(np.array([1]), "axes")], {}),
    "Flatten": ([], {"axis": 1}),
}


def _graph(kinds: list[str], second_reader: bool = False) -> onnx.ModelProto:
    nodes, constants, name = [helper.make_node("Relu", ["x"], ["relu"])], [], "relu"
    for i, kind in enumerate(kinds):
        extra, attributes = LAYOUTS[kind]
        constants += extra
        nodes.append(helper.make_node(kind, [name, *(c.name for c in extra)], [f"laid{i}"], **attributes))
        name = f"laid{i}"
    nodes += [
        helper.make_node("QuantizeLinear", [name, "scale", "zero_point"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["dq"]),
        helper.make_node("Neg", ["dq"], ["y"]),
    ]
    outputs = ["y"]
    if second_reader:
        nodes.append(helper.make_node("Abs", [name], ["z"]))
        outputs.append("z")
    constants += [
        numpy_helper.from_array(np.array(0.02, np.float32), "scale"),
        numpy_helper.from_array(np.array(7, np.uint8), "zero_point"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4])],
        [onnx.ValueInfoProto(name=name, type=onnx.TypeProto(tensor_type=FLOAT)) for name in outputs],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _run(model: onnx.ModelProto) -> list[np.ndarray]:
    x = np.random.default_rng(0).normal(0, 1, (2, 3, 4)).astype(np.float32)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})


@pytest.mark.parametrize("kinds", [["Transpose"], ["Reshape"], ["Unsqueeze"], ["Transpose", "Flatten"]])
def test_it_moves_to_the_operation_that_makes_the_values(kinds: list[str]) -> None:
    model = _graph(kinds)
    before = _run(model)
    assert hoist(model.graph) == len(kinds)
    assert [node.op_type for node in model.graph.node] == ["Relu", "QuantizeLinear", "DequantizeLinear", *kinds, "Neg"]
    np.testing.assert_array_equal(_run(model)[0], before[0])


def test_what_others_read_is_not_rounded() -> None:
    model = _graph(["Transpose"], second_reader=True)
    before = _run(model)
    assert hoist(model.graph) == 0
    for found, expected in zip(_run(model), before, strict=True):
        np.testing.assert_array_equal(found, expected)
