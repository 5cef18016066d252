"""Turn quantasr's own nodes, left by tracing, into standard ONNX: QuantizeLinear, DequantizeLinear and integers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from quantasr.numerics.qtypes import QType

_TYPES = {
    "int4": TensorProto.INT4,
    "uint4": TensorProto.UINT4,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int16": TensorProto.INT16,
    "uint16": TensorProto.UINT16,
}
_RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}


def lower(graph: onnx.ModelProto) -> None:
    """Replace every ``quantasr`` node of a traced graph, in place.

    An input quantizer becomes QuantizeLinear, DequantizeLinear (with a Clip before, where fewer bits than the
    storage has are used); a weight becomes an integer initializer and a DequantizeLinear, transposed beforehand
    where the graph would transpose it. Quantizers that read the same tensor with the same scale become one.
    """
    _Lowering(graph.graph).run()


class _Lowering:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.values = {t.name: t for t in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.values[node.output[0]] = node.attribute[0].t
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self.shared: dict[tuple[object, ...], str] = {}
        self.dead: set[str] = set()

    def run(self) -> None:
        nodes: list[onnx.NodeProto] = []
        for node in self.graph.node:
            if node.domain != "quantasr":
                nodes.append(node)
            elif node.op_type == "FakeQuantize":
                nodes.extend(self.input(node))
            elif node.op_type == "DynamicFakeQuantize":
                nodes.extend(self.dynamic_input(node))
            else:
                nodes.extend(self.weight(node))
        del self.graph.node[:]
        self.graph.node.extend(node for node in nodes if node.output[0] not in self.dead)

    def array(self, name: str) -> NDArray[np.generic]:
        """The constant called ``name``."""
        return np.asarray(numpy_helper.to_array(self.values[name]))

    def constant(self, name: str, array: NDArray[np.generic], storage: str = "float32") -> str:
        """Add an initializer of a storage type; its name."""
        if storage == "float32":
            self.graph.initializer.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
        elif storage.endswith("4"):
            raw = _pack4(array)
            self.graph.initializer.append(
                helper.make_tensor(name, _TYPES[storage], array.shape, raw.tobytes(), raw=True)
            )
        else:
            self.graph.initializer.append(numpy_helper.from_array(np.asarray(array, storage), name))
        return name

    def input(self, node: onnx.NodeProto) -> Iterable[onnx.NodeProto]:
        qtype = _qtype(node)
        scale, zero_point = self.array(node.input[1]), self.array(node.input[2])
        key = (node.input[0], float(scale), int(zero_point), qtype)
        out = node.output[0]
        if key in self.shared:
            self.rename(out, self.shared[key])
            return []
        self.shared[key] = out
        storage = f"{'' if qtype.signed else 'u'}int{16 if qtype.bits > 8 else 8}"
        names = self.constant(f"{out}_scale", scale), self.constant(f"{out}_zero_point", zero_point, storage)
        nodes, source = [], node.input[0]
        if _RANGES[storage] != (qtype.quant_min, qtype.quant_max):
            low = (np.float32(qtype.quant_min) - np.float32(zero_point)) * np.float32(scale)
            high = (np.float32(qtype.quant_max) - np.float32(zero_point)) * np.float32(scale)
            bounds = self.constant(f"{out}_low", np.array(low)), self.constant(f"{out}_high", np.array(high))
            nodes.append(helper.make_node("Clip", [source, *bounds], [f"{out}_clipped"], f"{out}_Clip"))
            source = f"{out}_clipped"
        nodes.append(helper.make_node("QuantizeLinear", [source, *names], [f"{out}_q"], f"{out}_QuantizeLinear"))
        nodes.append(helper.make_node("DequantizeLinear", [f"{out}_q", *names], [out], f"{out}_DequantizeLinear"))
        return nodes

    def dynamic_input(self, node: onnx.NodeProto) -> Iterable[onnx.NodeProto]:
        out, key = node.output[0], (node.input[0], "dynamic")
        if key in self.shared:
            self.rename(out, self.shared[key])
            return []
        self.shared[key] = out
        parts = [f"{out}_q", f"{out}_scale", f"{out}_zero_point"]
        return [
            helper.make_node("DynamicQuantizeLinear", [node.input[0]], parts, f"{out}_DynamicQuantizeLinear"),
            helper.make_node("DequantizeLinear", parts, [out], f"{out}_DequantizeLinear"),
        ]

    def weight(self, node: onnx.NodeProto) -> Iterable[onnx.NodeProto]:
        qtype, attributes = _qtype(node), {a.name: a.i for a in node.attribute}
        integers, scale, zero_point = (self.array(name) for name in node.input)
        axis, group, out = attributes["axis"], attributes["group"], node.output[0]
        base = node.input[0].replace("parametrizations.weight.0.integers", "weight").removeprefix("model.")
        for user in self.consumers.get(out, []):
            if user.op_type == "Transpose" and len(self.consumers[out]) == 1:
                order = list(next(a.ints for a in user.attribute if a.name == "perm"))
                integers = integers.transpose(order)
                axis = order.index(axis) if axis >= 0 else axis
                if group:
                    scale, zero_point = scale.transpose(order), zero_point.transpose(order)
                # The transposition is done; whoever read its result reads ours.
                self.dead.add(user.output[0])
                self.rename(user.output[0], out)
            elif user.op_type == "Unsqueeze" and len(self.consumers[out]) == 1 and not group:
                (new,) = self.array(user.input[1]).tolist()
                integers = np.expand_dims(integers, new)
                axis += axis >= new
                self.dead.add(user.output[0])
                self.rename(user.output[0], out)
        group_axis = 0 if group and scale.shape[0] < integers.shape[0] else 1
        names = [
            self.constant(f"{base}_integers", integers, qtype.storage),
            self.constant(f"{base}_scale", scale),
            self.constant(f"{base}_zero_point", zero_point, qtype.storage),
        ]
        extra = {"axis": group_axis, "block_size": group} if group else {"axis": axis} if axis >= 0 else {}
        return [helper.make_node("DequantizeLinear", names, [out], f"{base}_DequantizeLinear", **extra)]

    def rename(self, old: str, new: str) -> None:
        """Let every reader of ``old`` read ``new``."""
        for user in self.consumers.get(old, []):
            for i, name in enumerate(user.input):
                if name == old:
                    user.input[i] = new
        self.consumers.setdefault(new, []).extend(self.consumers.pop(old, []))


def _qtype(node: onnx.NodeProto) -> QType:
    attributes = {a.name: a.i for a in node.attribute}
    return QType(attributes["bits"], bool(attributes["symmetric"]))


def _pack4(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Two 4-bit integers to a byte, the first in the low half, as ONNX stores INT4."""
    flat = np.asarray(array).reshape(-1).astype(np.int64) & 0xF
    flat = np.append(flat, 0) if flat.size % 2 else flat
    packed: NDArray[np.uint8] = (flat[0::2] | (flat[1::2] << 4)).astype(np.uint8)
    return packed
