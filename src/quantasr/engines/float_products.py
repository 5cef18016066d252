"""Products of integers that a CPU's kernels would get wrong, computed in float in OpenVINO.

The integers stay what they are, and so does what is rounded: float32 holds sums of products of 8-bit integers to about
1e-7 of their size, so the result is that of exact integers. It takes the time of float.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from quantasr.engines.exactness import KINDS
from quantasr.engines.macs import last_line
from quantasr.errors import EngineError
from quantasr.numerics.qtypes import SAFE

_CONVOLUTIONS = {"Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData"}

# What may stand between integers that become real numbers again and the product that reads them.
_MOVES = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Convert", "Slice", "StridedSlice", "Concat", "Split", "Pad"}
_LIMITS = {"u8": (0, 255), "i8": (-128, 127)}


def leave_float(model: ov.Model, inexact: Collection[str]) -> None:
    """Have every product that may saturate multiply floats, in place.

    ``inexact`` are the kinds of products that do (:data:`quantasr.engines.exactness.KINDS`). Products whose second
    operand has 7 bits cannot.
    """
    found: dict[str, ov.Node] = {}
    for op in _saturating(model, inexact):
        found |= {left.get_name(): left for left in _all_rounded(op.input_value(0).get_node())}
    for node in found.values():
        _round_in_float(node)
    if found:
        model.validate_nodes_and_infer_types()


def integers_of(graphs: Iterable[Path]) -> dict[str, Any]:
    """What products of integers need, for ``artifact.json``: whether every CPU gets them right, and which may saturate.

    Raises :class:`EngineError` where a graph cannot be read.
    """
    wide = [name for graph in graphs for name in saturating(graph, KINDS)]
    return {"portable": not wide, **({"wide": wide} if wide else {})}


def saturating(graph: Path, inexact: Collection[str]) -> list[str]:
    """The names of the products of a graph that may saturate; EngineError where the graph cannot be read."""
    try:
        return [op.get_friendly_name() for op in _saturating(ov.Core().read_model(graph), inexact)]
    except RuntimeError as error:
        raise EngineError(f"{graph}: cannot be read: {last_line(error)}") from None


def _saturating(model: ov.Model, inexact: Collection[str]) -> Iterator[ov.Node]:
    """Products of two 8-bit integers, of a kind in ``inexact``, of which neither is known to have 7 bits."""
    for op in model.get_ordered_ops():
        kind = op.get_type_name()
        if (kind != "MatMul" and kind not in _CONVOLUTIONS) or not _kinds(op) & set(inexact):
            continue
        left, right = (op.input_value(i).get_node() for i in range(2))
        constant, rounded = _integers(right), _all_rounded(right)
        if not _is_rounded(left) or (constant is None and not rounded):
            continue
        if not (_fits(constant) if constant is not None else all(_narrow(node) for node in rounded)):
            yield op


def _is_rounded(node: ov.Node) -> bool:
    """Whether ``node`` was 8-bit integers before, by a fixed scale or one of each call.

    Of the latter OpenVINO makes float arithmetic by itself, ONNX Runtime products of integers.
    """
    return any(
        part.get_type_name() == "Convert" and part.get_element_type().get_type_name() in _LIMITS
        for part in _upstream(node)
    ) or bool(_all_rounded(node))


def _kinds(op: ov.Node) -> set[str]:
    """The names that the probe has for such a product."""
    kind = op.get_type_name()
    if kind == "MatMul":
        return {"linear", "dynamic"} if _integers(op.input_value(1).get_node()) is not None else {"scores", "context"}
    weights = op.input_value(1).get_partial_shape()
    if kind == "GroupConvolution" and weights.is_static and tuple(weights.to_shape())[1:3] == (1, 1):
        return {"depthwise"}
    return {"convolution", "pointwise"}


def _integers(node: ov.Node) -> np.ndarray | None:  # type: ignore[type-arg]
    """The constant 8-bit integers that become the real numbers of ``node``; None where it is something else."""
    for part in _upstream(node):
        if part.get_type_name() == "Constant" and part.get_element_type().get_type_name() in _LIMITS:
            return np.asarray(part.data)
    return None


def _upstream(node: ov.Node) -> Iterator[ov.Node]:
    """``node`` and what its first input is made from, as long as that scales or moves."""
    while True:
        yield node
        if node.get_type_name() not in _MOVES | {"Multiply", "Subtract"}:
            return
        node = node.input_value(0).get_node()


def _fits(integers: np.ndarray) -> bool:  # type: ignore[type-arg]
    return integers.size == 0 or (int(integers.max()) <= SAFE and int(integers.min()) >= -SAFE)


def _all_rounded(node: ov.Node) -> list[ov.Node]:
    """The nodes, of those that ``node`` moves, that turn integers of a QuantizeLinear back into real numbers."""
    if _pattern(node) is not None:
        return [node]
    if node.get_type_name() not in _MOVES:
        return []
    return [found for port in node.inputs() for found in _all_rounded(port.get_source_output().get_node())]


_Pattern = tuple[ov.Node, "np.ndarray", "np.ndarray", str]  # type: ignore[type-arg]


def _pattern(node: ov.Node) -> _Pattern | None:
    """FakeQuantize, scale, zero point and type of (integers - zero point) * scale, as ONNX's pair is read."""
    if node.get_type_name() != "Multiply" or node.input_value(1).get_node().get_type_name() != "Constant":
        return None
    scale = np.asarray(node.input_value(1).get_node().data, np.float32)
    zero_point: np.ndarray = np.zeros((), np.float32)  # type: ignore[type-arg]
    before = node.input_value(0).get_node()
    if before.get_type_name() == "Subtract":
        shift = next((n for n in _upstream(before.input_value(1).get_node()) if n.get_type_name() == "Constant"), None)
        if shift is None:
            return None
        zero_point = np.asarray(shift.data).astype(np.float32)
        before = before.input_value(0).get_node()
    if before.get_type_name() != "Convert":
        return None
    integers = before.input_value(0).get_node()
    if integers.get_type_name() != "Convert" or integers.get_element_type().get_type_name() not in _LIMITS:
        return None
    source = integers.input_value(0).get_node()
    if source.get_type_name() != "FakeQuantize":
        return None
    return source, scale, np.asarray(zero_point), integers.get_element_type().get_type_name()


def _narrow(node: ov.Node) -> bool:
    """Whether the integers behind ``node`` are clipped to 7 bits before they are rounded."""
    pattern = _pattern(node)
    assert pattern is not None
    source, scale, _, kind = pattern
    clip = source.input_value(0).get_node()
    if kind != "i8":
        return False
    if clip.get_type_name() == "Clamp":
        high = float(clip.get_attributes()["max"])
    elif clip.get_type_name() == "Minimum":
        bounds = [port.get_source_output().get_node() for port in clip.inputs()]
        constants = [float(np.max(bound.data)) for bound in bounds if bound.get_type_name() == "Constant"]
        high = min(constants, default=np.inf)
    else:
        return False
    return bool(high <= (SAFE + 0.49) * float(np.max(scale)))


def _round_in_float(node: ov.Node) -> None:
    """Round and clip by arithmetic that OpenVINO does not take for integers."""
    pattern = _pattern(node)
    assert pattern is not None
    source, scale, zero_point, kind = pattern
    low, high = _LIMITS[kind]
    zero = float(np.asarray(zero_point).reshape(-1)[0])
    steps = ops.divide(source.input_value(0), ops.constant(scale))
    whole = ops.clamp(ops.round(steps, "half_to_even"), low - zero, high - zero)
    real = ops.multiply(whole, ops.constant(scale))
    real.set_friendly_name(node.get_friendly_name())
    for reader in node.output(0).get_target_inputs():
        reader.replace_source_output(real.output(0))
