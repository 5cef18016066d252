"""How many multiply-accumulates each node of a graph takes, for inputs of a given shape."""

from __future__ import annotations

from math import prod
from pathlib import Path

import openvino as ov


def macs_by_node(graph: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """``{node name: multiply-accumulates}`` of the convolutions and matrix products in ``graph``.

    Counted on the graph as it was exported, before any engine fuses it, so that shares of different engines have
    the same denominator.
    """
    core = ov.Core()
    model = core.read_model(graph)
    model.reshape({name: list(shape) for name, shape in shapes.items()})
    macs: dict[str, int] = {}
    for op in model.get_ordered_ops():
        kind = op.get_type_name()
        if kind == "MatMul":
            left = op.input(0).get_partial_shape()
            inner = left[-2] if op.get_attributes().get("transpose_a") else left[-1]
            macs[op.get_friendly_name()] = _size(op.output(0)) * inner.get_length()
        elif kind in ("Convolution", "GroupConvolution"):
            weight = op.input(1).get_partial_shape().to_shape()
            # Weights are [out, in, kernel...], or [groups, out / groups, in / groups, kernel...].
            per_output = prod(weight[2:] if kind == "GroupConvolution" else weight[1:])
            macs[op.get_friendly_name()] = _size(op.output(0)) * per_output
    return macs


def _size(output: ov.Output) -> int:
    return prod(output.get_partial_shape().to_shape())
