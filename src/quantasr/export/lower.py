"""Turn quantasr's own nodes, left by tracing, into standard ONNX: QuantizeLinear, DequantizeLinear and integers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

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
Layout = tuple[tuple[str, tuple[int, ...]], ...]
"""Changes of a weight's layout, in order: ``transposed`` by a permutation, or ``unsqueezed`` at axes."""

_RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}


def lower(graph: onnx.ModelProto) -> None:
    """Replace every ``quantasr`` node of a traced graph, in place.

    An input quantizer becomes QuantizeLinear, DequantizeLinear (with a Clip before, where fewer bits than the
    storage has are used; one of 9 to 15 bits, which no engine has, rounds in float); a weight becomes an integer
    initializer and a DequantizeLinear, transposed beforehand where the graph would transpose it. Quantizers that read
    the same tensor with the same scale become one.

    What the engines make of it (ONNX Runtime 1.31, OpenVINO 2026.4), as found by reading their executed graphs:

    - 8 bits, static: both multiply integers in linear layers; in convolutions OpenVINO alone (ONNX Runtime needs a
      quantized output for that, and its ConvInteger took four times as long as float).
    - 8 bits, dynamic: ONNX Runtime multiplies integers in linear layers; OpenVINO and convolutions run in float.
    - weight_only, 8 and 4 bits: both have kernels for linear layers that also round the input, unless they
      are told not to (``session.qdq_matmulnbits_accuracy_level``, ``DYNAMIC_QUANTIZATION_GROUP_SIZE``).
    - 2 to 4 bits with quantized inputs, blocks with quantized inputs, 16 bits: correct on both, in float. 2 and 3
      bits are stored as 4, 5 to 7 as 8. They save space, not time.
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
        self.quantized = {n.output[0] for n in graph.node if n.op_type in ("FakeQuantize", "DynamicFakeQuantize")}

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
        elif storage in ("int4", "uint4"):
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
        # OpenVINO drops 16-bit pairs as too fine to matter, and with them what they clip.
        if _RANGES[storage] != (qtype.quant_min, qtype.quant_max) or storage.endswith("16"):
            low = (np.float32(qtype.quant_min) - np.float32(zero_point)) * np.float32(scale)
            high = (np.float32(qtype.quant_max) - np.float32(zero_point)) * np.float32(scale)
            bounds = self.constant(f"{out}_low", np.array(low)), self.constant(f"{out}_high", np.array(high))
            nodes.append(helper.make_node("Clip", [source, *bounds], [f"{out}_clipped"], f"{out}_Clip"))
            source = f"{out}_clipped"
        if 8 < qtype.bits < 16:  # no engine has integers for these; those of 16 bits would be dropped, steps and all
            steps, whole = f"{out}_steps", f"{out}_whole"
            nodes.append(helper.make_node("Div", [source, names[0]], [steps], f"{out}_Div"))
            nodes.append(helper.make_node("Round", [steps], [whole], f"{out}_Round"))
            nodes.append(helper.make_node("Mul", [whole, names[0]], [out], f"{out}_Mul"))
            return nodes
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
        out = node.output[0]
        layout = self.absorb_layout(out)
        base = node.input[0].replace("parametrizations.weight.0.integers", "weight").removeprefix("model.")
        # A layer that is called twice is traced twice; one constant serves both.
        key = (base, layout)
        if key in self.shared:
            self.rename(out, self.shared[key])
            return []
        self.shared[key] = out
        base = "_".join([base, *(change for change, _ in layout)])
        weight = _Weight.of(node, *(self.array(name) for name in node.input)).laid_out(layout)
        names = [
            self.constant(f"{base}_integers", weight.integers, weight.storage),
            self.constant(f"{base}_scale", weight.scale),
            self.constant(f"{base}_zero_point", weight.zero_point, weight.storage),
        ]
        reshaped = weight.padded or (weight.group and self.reads_integers(out))
        first = f"{out}_whole" if reshaped else out
        nodes = [helper.make_node("DequantizeLinear", names, [first], f"{base}_DequantizeLinear", **weight.attributes)]
        if weight.padded:
            # Neither engine reads blocks that do not divide the axis, so the last one is whole until here.
            ends = [[0], [weight.size], [weight.axis]]
            parts = [self.constant(f"{base}_slice_{i}", np.array(v), "int64") for i, v in enumerate(ends)]
            nodes.append(helper.make_node("Slice", [first, *parts], [out], f"{base}_Slice"))
        elif reshaped:
            # ONNX Runtime would fuse this with the quantized input into a kernel that knows no blocks, and fail.
            shape = self.constant(f"{base}_shape", np.array(weight.integers.shape), "int64")
            nodes.append(helper.make_node("Reshape", [first, shape], [out], f"{base}_Reshape"))
        return nodes

    def absorb_layout(self, name: str) -> Layout:
        """Take away what only changes the layout of ``name`` for its one reader, and say what that was."""
        found: list[tuple[str, tuple[int, ...]]] = []
        while len(readers := self.consumers.get(name, [])) == 1 and readers[0].op_type in ("Transpose", "Unsqueeze"):
            (change,) = readers
            if change.op_type == "Transpose":
                found.append(("transposed", tuple(next(a.ints for a in change.attribute if a.name == "perm"))))
            else:
                found.append(("unsqueezed", tuple(self.array(change.input[1]).tolist())))
            self.dead.add(change.output[0])
            self.consumers[name] = []
            self.rename(change.output[0], name)
        return tuple(found)

    def reads_integers(self, name: str) -> bool:
        """Whether something multiplies ``name`` with a quantized input."""
        others = {i for user in self.consumers.get(name, []) for i in user.input if i != name}
        return bool(others & self.quantized)

    def rename(self, old: str, new: str) -> None:
        """Let every reader of ``old`` read ``new``."""
        for user in self.consumers.get(old, []):
            for i, name in enumerate(user.input):
                if name == old:
                    user.input[i] = new
        self.consumers.setdefault(new, []).extend(self.consumers.pop(old, []))
        if old in self.quantized:
            self.quantized.add(new)


@dataclass(frozen=True)
class _Weight:
    """Integers of a weight and their scales, laid out for DequantizeLinear."""

    integers: NDArray[np.generic]
    scale: NDArray[np.generic]
    zero_point: NDArray[np.generic]
    storage: str
    axis: int  # of the scales: of the channels, or of the blocks; -1 where there is one scale
    group: int  # the size of a block; 0 where there are none
    size: int  # of the blocks' axis, without what fills up the last block

    @classmethod
    def of(cls, node: onnx.NodeProto, integers: Any, scale: Any, zero_point: Any) -> _Weight:
        """From a DequantizeWeight node, whose blocks lie on axis 1."""
        attributes = {a.name: a.i for a in node.attribute}
        axis, group, size = attributes["axis"], attributes["group"], integers.shape[-1]
        if group >= size:  # one block: a scale for each channel
            axis, group, scale, zero_point = 0, 0, scale[:, 0], zero_point[:, 0]
        if group:
            axis = 1
            integers = np.pad(integers, ((0, 0), (0, -size % group)))
        return cls(integers, scale, zero_point, _qtype(node).storage, axis, group, size)

    @property
    def padded(self) -> bool:
        """Whether the last block is longer than what is left for it."""
        return bool(self.group and self.size % self.group)

    @property
    def attributes(self) -> dict[str, int]:
        """Those of DequantizeLinear."""
        axis = {"axis": self.axis} if self.axis >= 0 else {}
        return {**axis, "block_size": self.group} if self.group else axis

    def laid_out(self, layout: Layout) -> _Weight:
        """After every change in ``layout``."""
        weight = self
        for change, axes in layout:
            if change == "transposed":
                axis = axes.index(weight.axis) if weight.axis >= 0 else -1
                weight = weight._moved(partial(np.transpose, axes=axes), axis)
            for new in axes if change == "unsqueezed" else ():
                weight = weight._moved(partial(np.expand_dims, axis=new), weight.axis + (weight.axis >= new))
        return weight

    def _moved(self, move: Callable[[NDArray[np.generic]], NDArray[np.generic]], axis: int) -> _Weight:
        weight = replace(self, integers=move(self.integers), axis=axis)
        # Scales of blocks have the weight's axes; others have none, or one.
        return replace(weight, scale=move(self.scale), zero_point=move(self.zero_point)) if self.group else weight


def _qtype(node: onnx.NodeProto) -> QType:
    attributes = {a.name: a.i for a in node.attribute}
    return QType(attributes["bits"], bool(attributes["symmetric"]))


def _pack4(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Two 4-bit integers to a byte, the first in the low half, as ONNX stores INT4."""
    flat = np.asarray(array).reshape(-1).astype(np.int64) & 0xF
    flat = np.append(flat, 0) if flat.size % 2 else flat
    packed: NDArray[np.uint8] = (flat[0::2] | (flat[1::2] << 4)).astype(np.uint8)
    return packed
