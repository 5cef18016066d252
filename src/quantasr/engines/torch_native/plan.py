"""Decide what each layer gives: int8 where all that read it can use that, so that regions are as large as can be."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from quantasr.engines.torch_native.backends import Backend
from quantasr.engines.torch_native.dynamic import DynamicLayer
from quantasr.engines.torch_native.flow import Node
from quantasr.engines.torch_native.kernels import Layer, Output
from quantasr.engines.torch_native.tensors import QParams, Sum

Ranges = Callable[[str, bool], QParams]
"""The format for the output of a node by its name, and whether a ReLU is fused into it."""


@dataclass
class Plan:
    """The layers that run in int8 on a backend, in the order in which they were first called; and the dynamic ones."""

    backend: Backend
    layers: dict[str, Layer] = field(default_factory=dict)
    sums: dict[str, Sum] = field(default_factory=dict)
    dynamic: dict[str, DynamicLayer] = field(default_factory=dict)

    def quantized(self, name: str) -> bool:
        """Whether the node ``name`` gives int8."""
        return name in self.sums or (name in self.layers and self.layers[name].output.quantized)


def needs_range(node: Node, nodes: Mapping[str, Node], backend: Backend) -> bool:
    """Whether the output's own range may be needed to make a plan."""
    readers = set(node.readers)
    summed = any(reader in nodes and not nodes[reader].is_layer for reader in readers)
    return not backend.float_output or len(readers - {""}) > 1 or summed


def make_plan(
    nodes: Mapping[str, Node],
    inputs: Mapping[str, QParams],
    backend: Backend,
    ranges: Ranges,
    skip: Collection[str] = (),
) -> Plan:
    """Plan the layers ``inputs`` but those in ``skip``, whose inputs have the given formats.

    A node gives int8 if everything that reads it is a planned layer, or a sum that gives int8 itself and whose other
    operand is int8 too. Where all readers are layers that round their input with one scale, the output is rounded with
    just that, once.
    """
    layers = {n: nodes[n] for n in inputs if n not in skip and n in nodes and nodes[n].geometry is not None}
    quantized = _quantized(nodes, layers)
    plan = Plan(backend)

    def params(name: str) -> QParams:
        node = nodes[name]
        wanted = {inputs[reader] for reader in node.readers if reader in layers}
        # Behind a ReLU of its own a layer has seen no negative values, which another reader may need.
        alike = node.relu or "relu" not in node.direct or all(reader in layers for reader in node.readers)
        if len(wanted) == 1 and alike:
            return next(iter(wanted))
        return ranges(name, node.relu)

    def into(name: str) -> Sum | None:
        sums = [reader for reader in nodes[name].readers if reader in quantized and not nodes[reader].is_layer]
        if not sums:
            return None
        total = sums[0]
        if total not in plan.sums:
            plan.sums[total] = Sum(total, params(total), nodes[total].relu, into(total))
        return plan.sums[total]

    for name, node in layers.items():
        assert node.geometry is not None
        if name in quantized:
            output = Output(True, params(name), node.relu, into(name))
        else:
            rounded = None if backend.float_output else ranges(name, node.relu)
            output = Output(False, rounded, node.relu, contiguous=node.laid_out)
        plan.layers[name] = Layer(name, node.geometry, inputs[name], output, node.shape)
    return plan


def _quantized(nodes: Mapping[str, Node], layers: Collection[str]) -> set[str]:
    """Names of the nodes that give int8: the largest set in which each one's readers and operands allow it."""
    found = {name for name, node in nodes.items() if node.readers and (name in layers or not node.is_layer)}
    while True:
        keep = {name for name in found if _allowed(nodes[name], nodes, layers, found)}
        if keep == found:
            return found
        found = keep


def _allowed(node: Node, nodes: Mapping[str, Node], layers: Collection[str], found: Collection[str]) -> bool:
    sums = [reader for reader in node.readers if reader in nodes and not nodes[reader].is_layer]
    if len(set(sums)) > 1 or len(sums) > node.calls:
        return False  # it is told of one sum that it goes into
    if not node.is_layer and not all(source in found for source in node.sources):
        return False
    return all(reader in layers or (reader in found and not nodes[reader].is_layer) for reader in node.readers)
