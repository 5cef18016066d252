"""The multiply-accumulates of a graph, and which kernel of an engine did them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import openvino as ov

from quantasr.engines.engine import ExecutedOp
from quantasr.errors import EngineError

# OpenVINO reads a convolution with a bias as two nodes, X/WithoutBiases and X.
_SPLIT = "/WithoutBiases"

# What engines let a matrix product or convolution do on top, in the same kernel. Shapes stay as they are.
_EPILOGUES = {
    *("Add", "Clamp", "Convert", "Divide", "Elu", "FakeQuantize", "Gelu", "HSwish", "Identity", "Multiply", "PRelu"),
    *("Relu", "Sigmoid", "Softmax", "Subtract", "Swish", "Tanh"),
}


# Recurrent operators of a graph, and which of their inputs hold the weights of input and state.
_RECURRENT = {"LSTMSequence": (4, 5), "GRUSequence": (3, 4), "RNNSequence": (3, 4)}

# What kernels of such operators are called, in ONNX Runtime and OpenVINO, which gives them names of its own.
_RECURRENT_KERNEL = re.compile(r"(?:.*/)?(?:LSTM|GRU|RNN)(?:Sequence)?(?:_\d+)?")


@dataclass(frozen=True)
class Product:
    """A convolution, matrix product or recurrent layer of a graph.

    ``readers`` are the element-wise nodes that work on its result, nearest first: they say which kernel it was fused
    into when an engine names the kernel after one of them.
    """

    macs: int
    readers: tuple[str, ...] = ()
    recurrent: bool = False


def products(graph: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Product]:
    """Every convolution, matrix product and einsum of ``graph`` by its name, for inputs of the given ``shapes``.

    Counted on the graph as it was exported, before any engine fuses it, so that shares of different engines have
    the same denominator. Raises :class:`EngineError` when the shapes do not follow from those of the inputs.
    """
    try:
        model = ov.Core().read_model(graph)
        model.reshape({name: list(shape) for name, shape in shapes.items()})
        macs = {op: count for op in model.get_ordered_ops() if (count := _macs(op)) is not None}
    except RuntimeError as error:
        raise EngineError(f"{graph}: cannot count its multiply-accumulates: {last_line(error)}") from None
    return {
        _name(op): Product(count, _readers(op, macs), op.get_type_name() in _RECURRENT) for op, count in macs.items()
    }


def share_out(kernels: Iterable[tuple[ExecutedOp, Sequence[str]]], found: Mapping[str, Product]) -> list[ExecutedOp]:
    """Give every product to the kernel that did it, once; ``kernels`` come with the names that they go by.

    Names are those of graph nodes; a kernel that cannot multiply has none. A product that no kernel names goes to
    the kernel that names its nearest reader. What is left becomes a kernel of its own, of precision ``unknown``.
    """
    ops = list(kernels)
    covers: list[dict[str, int]] = [{} for _ in ops]
    place: dict[str, int] = {}
    for i, (_, names) in enumerate(ops):
        for name in names:
            place.setdefault(name.removesuffix(_SPLIT), i)
    unknown = []
    loops = [i for i, (op, _) in enumerate(ops) if _RECURRENT_KERNEL.fullmatch(op.name)]
    recurrent = [name for name, product in found.items() if product.recurrent]
    if loops:
        # Both are in the order of execution; an engine may have a kernel for each direction.
        place |= {name: loops[i * len(loops) // len(recurrent)] for i, name in enumerate(recurrent)}
    for name, product in found.items():
        nearest = next((known for known in (name, *product.readers) if known in place), None)
        if nearest is None:
            unknown.append(ExecutedOp(name, "unknown", "unknown", 0.0, {name: product.macs}))
        else:
            covers[place[nearest]][name] = product.macs
    return [replace(op, covers=some) for (op, _), some in zip(ops, covers, strict=True)] + unknown


def last_line(error: Exception) -> str:
    """What an engine has to say: the last line of an error, after lines of where in its code it happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _macs(op: ov.Node) -> int | None:
    """Multiply-accumulates of one node; None when it is no product."""
    kind = op.get_type_name()
    if kind == "MatMul":
        left = _shape(op, 0)
        return _size(op) * left[-2 if op.get_attributes()["transpose_a"] and len(left) > 1 else -1]
    if kind in ("Convolution", "GroupConvolution"):
        # Weights are [out, in, kernel...], or [groups, out / groups, in / groups, kernel...].
        return _size(op) * prod(_shape(op, 1)[2 if kind == "GroupConvolution" else 1 :])
    if kind in ("ConvolutionBackpropData", "GroupConvolutionBackpropData"):
        # Weights are [in, out, kernel...], or [groups, in / groups, out / groups, kernel...].
        return prod(_shape(op, 0)) * prod(_shape(op, 1)[2 if kind.startswith("Group") else 1 :])
    if kind in _RECURRENT:
        batch, steps, _ = _shape(op, 0)
        return batch * steps * sum(prod(_shape(op, port)) for port in _RECURRENT[kind])
    if kind == "Einsum":
        terms = str(op.get_attributes()["equation"]).partition("->")[0].split(",")
        sizes = {label: size for i, term in enumerate(terms) for label, size in zip(term, _shape(op, i), strict=True)}
        return prod(sizes.values())
    return None


def _size(op: ov.Node) -> int:
    return prod(map(int, op.output(0).get_shape()))


def _shape(op: ov.Node, port: int) -> list[int]:
    return [int(size) for size in op.input(port).get_shape()]


def _name(op: ov.Node) -> str:
    name = str(op.get_friendly_name())
    if op.get_type_name() in _RECURRENT and "/" not in name:
        # OpenVINO drops the path of a recurrent node; what reads its output has it still.
        return f"{_scope_behind(op)}/{name}"
    return name.removesuffix(_SPLIT)


def _scope_behind(op: ov.Node) -> str:
    """The path in the name of the nearest node behind ``op`` that has one."""
    wave = [op]
    while wave:
        wave = [target.get_node() for node in wave for out in node.outputs() for target in out.get_target_inputs()]
        named = next((str(node.get_friendly_name()) for node in wave if "/" in node.get_friendly_name()), None)
        if named is not None:
            return named.rpartition("/")[0]
    return ""


def _readers(op: ov.Node, stop: Mapping[ov.Node, int]) -> tuple[str, ...]:
    """Names of the element-wise nodes behind ``op``, nearest first."""
    names: list[str] = []
    wave = [op]
    while wave:
        ahead = [target.get_node() for node in wave for target in node.output(0).get_target_inputs()]
        wave = [node for node in ahead if node.get_type_name() in _EPILOGUES and _name(node) not in names]
        names += [_name(node) for node in wave]
    return tuple(name for name in dict.fromkeys(names) if name != _name(op))
