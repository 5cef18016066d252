"""Which layers of a quantized graph an engine computes wrongly: each alone, on what reaches it in the graph."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper

PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
_ROUNDERS = ("QuantizeLinear", "DynamicQuantizeLinear")

TOLERANCE = 0.05
"""Largest difference, as a part of the mean magnitude, that a value on the edge between two integers may make."""


class Runs(Protocol):
    """What an engine is for this purpose."""

    def run(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Arrays by name in and out."""
        ...


@dataclass(frozen=True)
class WrongLayer:
    """A product that comes out wrong: the path of its layer, its operator, and the largest difference over the mean."""

    name: str
    kind: str
    error: float


def wrong_layers(graph: Path, feed: Mapping[str, NDArray[Any]], load: Callable[[Path], Runs]) -> list[WrongLayer]:
    """Run every quantized product of ``graph`` alone on the engine that ``load`` gives for a file.

    ``feed`` are inputs of the graph. What is right is ONNX Runtime without any optimization: it rounds, and multiplies
    floats, just as the nodes say.
    """
    model = onnx.load(str(graph))
    made = {name: node for node in model.graph.node for name in node.output}
    layers = [(node, inputs) for node in model.graph.node if (inputs := _rounded_inputs(node, made))]
    values = _literal(model, feed, {name for node, inputs in layers for name in (*inputs, node.output[0])})
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        for node, inputs in layers:
            layer = _alone(model, made, node, inputs, values)
            onnx.save(layer, str(path))
            result = load(path).run({value.name: values[value.name] for value in layer.graph.input})[node.output[0]]
            expected = values[node.output[0]].astype(np.float64)
            error = float(np.abs(result - expected).max() / max(float(np.abs(expected).mean()), 1e-12))
            # A few values may lie between two integers; a wrong product is wrong in many places.
            if error > TOLERANCE and float((np.abs(result - expected) > 1e-3 * np.abs(expected).mean()).mean()) > 0.01:
                found.append(WrongLayer(_path(node.name), node.op_type, error))
    return found


def _path(name: str) -> str:
    """``/model/layers.0/fc1/MatMul`` -> ``model.layers.0.fc1``."""
    return ".".join(name.strip("/").split("/")[:-1]) or name


def _rounded_inputs(node: onnx.NodeProto, made: Mapping[str, onnx.NodeProto]) -> list[str]:
    """The float tensors that are rounded for a product, for each operand; empty where it is none of integers."""
    if node.op_type not in PRODUCTS:
        return []
    found = [name for operand in node.input[:2] for name in _rounded(operand, made)]
    return list(dict.fromkeys(found))


def _rounded(name: str, made: Mapping[str, onnx.NodeProto]) -> Iterator[str]:
    """What is rounded behind ``name``, through whatever moves values."""
    node = made.get(name)
    if node is None:
        return
    if node.op_type in _ROUNDERS:
        clip = made.get(node.input[0])  # of fewer bits than the storage has: part of the rounding
        yield clip.input[0] if clip is not None and clip.op_type == "Clip" else node.input[0]
    elif node.op_type in ("DequantizeLinear", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Slice"):
        yield from _rounded(node.input[0], made)


def _literal(model: onnx.ModelProto, feed: Mapping[str, NDArray[Any]], names: set[str]) -> dict[str, NDArray[Any]]:
    """The tensors called ``names`` in an execution without any optimization."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    given = {value.name for value in whole.graph.input} | {value.name for value in whole.graph.initializer}
    there = {value.name for value in whole.graph.output}
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names - given - there))
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "whole.onnx"
        onnx.save(whole, str(path), save_as_external_data=True, location="whole.data")
        session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        inputs = {value.name: feed[value.name] for value in session.get_inputs()}
        outputs = [value.name for value in session.get_outputs()]
        values = dict(zip(outputs, session.run(outputs, inputs), strict=True))
    return {**{name: np.asarray(array) for name, array in feed.items()}, **values}


def _alone(
    model: onnx.ModelProto,
    made: Mapping[str, onnx.NodeProto],
    node: onnx.NodeProto,
    inputs: Sequence[str],
    values: Mapping[str, NDArray[Any]],
) -> onnx.ModelProto:
    """The nodes from ``inputs`` to what ``node`` gives, as a graph of its own.

    Of the whole graph's inputs it has those that are read: a Reshape may ask one for its shape.
    """
    wanted: dict[int, onnx.NodeProto] = {}
    read: set[str] = set()

    def collect(name: str) -> None:
        read.add(name)
        maker = made.get(name)
        if name in inputs or maker is None or id(maker) in wanted:
            return
        for source in maker.input:
            collect(source)
        wanted[id(maker)] = maker

    collect(node.output[0])
    given = [*inputs, *(value.name for value in model.graph.input if value.name in read - set(inputs))]
    graph = helper.make_graph(
        list(wanted.values()),
        "layer",
        [_info(name, values[name]) for name in given],
        [_info(node.output[0], values[node.output[0]])],
        [tensor for tensor in model.graph.initializer if tensor.name in read],
    )
    found = helper.make_model(graph, opset_imports=list(model.opset_import))
    found.ir_version = model.ir_version
    return found


def _info(name: str, array: NDArray[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
