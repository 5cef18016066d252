"""Small clean-ups of a traced graph that every engine profits from."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from quantasr.numerics.qtypes import HALF_FROM

_PRODUCTS = {"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"}


def tidy(graph: onnx.ModelProto) -> None:
    """Drop identities of constants and everything that nothing reads, in place."""
    _bypass_identities(graph.graph)
    _drop_unused(graph.graph)


def keep_names(graph: onnx.GraphProto) -> None:
    """Put an Identity behind each matrix product or convolution that gives an output of the graph.

    OpenVINO calls a node that gives an output by the output's name, so nothing would say which layer it was. Engines
    fold the Identity away.
    """
    outputs = {o.name for o in graph.output}
    for node in list(graph.node):
        if node.op_type in _PRODUCTS and node.output[0] in outputs:
            name, node.output[0] = node.output[0], f"{node.output[0]}_before"
            for reader in graph.node:
                reader.input[:] = [node.output[0] if read == name else read for read in reader.input]
            graph.node.append(helper.make_node("Identity", [node.output[0]], [name], name=f"/{name}"))


def _bypass_identities(graph: onnx.GraphProto) -> None:
    alias: dict[str, str] = {}
    outputs = {o.name for o in graph.output}
    kept = []
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name in alias:
                node.input[i] = alias[name]
        if node.op_type == "Identity" and node.output[0] not in outputs:
            alias[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Keep the nodes that the outputs depend on, and the initializers that those read."""
    needed = {o.name for o in graph.output}
    kept = []
    for node in reversed(graph.node):
        if any(name in needed for name in node.output):
            kept.append(node)
            needed.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    # One by one: putting a list back would copy all weights, and fails beyond 2 GB.
    for i in reversed(range(len(graph.initializer))):
        if graph.initializer[i].name not in needed:
            del graph.initializer[i]
    del graph.value_info[:]


# Type and largest value; bfloat16 has the range of float32.
_HALVES = {"fp16": (np.dtype(np.float16), 65504.0), "bf16": (np.dtype(ml_dtypes.bfloat16), 3.38e38)}


def store_halves(graph: onnx.ModelProto, storage: str) -> None:
    """Store large float32 weights as ``fp16`` or ``bf16``, with a Cast to float32 that engines fold away when loading.

    Weights that float16 cannot hold (beyond 65504) stay float32, and so do scales: the simulation has those as they
    are, and engines look for them right beside the integers. Rows of a table are looked up in 16 bits, and the Cast is
    behind that: folded, it would make the whole table float32 again (80 MB of Whisper tiny's embedding).
    """
    dtype, largest = _HALVES[storage]
    casts, renamed = [], {}
    scales = {n.input[1] for n in graph.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")}
    for i, tensor in enumerate(graph.graph.initializer):
        small = int(np.prod(tensor.dims)) < HALF_FROM
        if tensor.data_type != TensorProto.FLOAT or small or tensor.name in scales:
            continue
        array = numpy_helper.to_array(tensor)
        if np.abs(array).max() > largest:
            continue
        name = f"{tensor.name}_{storage}"
        renamed[tensor.name] = f"{tensor.name}_fp32"
        casts.append(
            helper.make_node("Cast", [name], [renamed[tensor.name]], f"{tensor.name}_Cast", to=TensorProto.FLOAT)
        )
        graph.graph.initializer[i].CopyFrom(numpy_helper.from_array(array.astype(dtype), name))
    nodes = []
    for node in graph.graph.node:
        nodes.append(node)
        if node.op_type == "Gather" and node.input[0] in renamed:
            node.input[0], rows, out = f"{node.input[0]}_{storage}", f"{node.output[0]}_{storage}", node.output[0]
            node.output[0] = rows
            nodes.append(helper.make_node("Cast", [rows], [out], f"{node.name}_Cast", to=TensorProto.FLOAT))
        for i, name in enumerate(node.input):
            if name in renamed:
                node.input[i] = renamed[name]
    read = {name for node in nodes for name in node.input}
    del graph.graph.node[:]
    graph.graph.node.extend([cast for cast in casts if cast.output[0] in read] + nodes)
