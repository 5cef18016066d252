"""Graphs of one converted model in which only some of its layers are quantized, all from one trace."""

from __future__ import annotations

from collections.abc import Collection

import onnx
import torch
from onnx import numpy_helper

from quantasr.export.graph import finish_quantized
from quantasr.numerics.fake_quantize import DOMAIN
from quantasr.quantize.prepare import Prepared


def alone(traced: onnx.ModelProto, prepared: Prepared, paths: Collection[str]) -> onnx.ModelProto:
    """The graph with the layers and attention products at ``paths`` quantized, and float weights in all others.

    ``traced`` is what :func:`quantasr.export.graph.trace_quantized` made of ``prepared``; it is left as it is. Without
    ``paths`` it is the float graph, norms folded.
    """
    graph = onnx.ModelProto(ir_version=traced.ir_version)
    graph.opset_import.extend(traced.opset_import)
    for part in ("input", "output"):
        getattr(graph.graph, part).extend(getattr(traced.graph, part))
    alias: dict[str, str] = {}
    floats: dict[str, onnx.TensorProto] = {}
    for node in traced.graph.node:
        label = _label(node)
        if label is None or label in paths:
            graph.graph.node.append(node)
        elif node.op_type == "DequantizeWeight":
            if label not in floats:
                floats[label] = _float_weight(prepared, label)
            alias[node.output[0]] = floats[label].name
        else:
            alias[node.output[0]] = node.input[0]
    for node in graph.graph.node:
        for i, name in enumerate(node.input):
            while name in alias:
                name = alias[name]
            node.input[i] = name
    read = {name for node in graph.graph.node for name in node.input}
    graph.graph.initializer.extend(t for t in traced.graph.initializer if t.name in read)
    graph.graph.initializer.extend(floats.values())
    return finish_quantized(graph, prepared)


def labels(traced: onnx.ModelProto) -> set[str]:
    """The paths of the layers and attention products that have a quantizer in a traced graph."""
    return {label for node in traced.graph.node if (label := _label(node)) is not None}


def _label(node: onnx.NodeProto) -> str | None:
    """The path of the layer that a quantizer's node belongs to; None for other nodes."""
    if node.domain != DOMAIN:
        return None
    return next(str(a.s, "utf-8") for a in node.attribute if a.name == "label")


@torch.no_grad()
def _float_weight(prepared: Prepared, path: str) -> onnx.TensorProto:
    """The weight of a layer as it is in :attr:`Phase.FLOAT`."""
    weight: torch.Tensor = prepared.model.module.get_submodule(path).weight  # type: ignore[assignment]
    return numpy_helper.from_array(weight.detach().float().numpy(), f"{path}.float_weight")
