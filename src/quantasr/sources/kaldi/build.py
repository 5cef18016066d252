"""From what a file says of an nnet3 network to the PyTorch module that runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantasr.errors import ModelLoadError
from quantasr.kaldi.nnet3.components import Component
from quantasr.kaldi.nnet3.config import Const
from quantasr.kaldi.nnet3.network import Network
from quantasr.sources.kaldi.layers import offsets_of
from quantasr.sources.kaldi.network import KaldiNetwork
from quantasr.sources.kaldi.plan import GraphNode, Span, make_plan
from quantasr.sources.kaldi.reading import IVECTOR
from quantasr.sources.kaldi.statistics import window_of

INPUT = "input"


def build_network(
    network: Network,
    left_context: int,
    right_context: int,
    *,
    subsampling: int = 1,
    output: str = "output",
    priors: Any = (),
    where: str = "network",
) -> KaldiNetwork:
    """The module that computes ``output`` on every ``subsampling``-th frame.

    Raises ModelLoadError, naming the node or component, for what cannot be run.
    """
    nodes: dict[str, GraphNode] = {}
    components: dict[str, Component] = {}
    columns: dict[str, tuple[int, int]] = {}
    dims = network.dims()
    for line in network.lines:
        if line.kind == "input-node":
            if line.name not in (INPUT, IVECTOR):
                raise ModelLoadError(
                    f"{where}: reads an input '{line.name}'; those that are known are '{INPUT}' and '{IVECTOR}'"
                )
            continue
        assert line.input is not None
        if line.component is None:
            nodes[line.name] = GraphNode(line.name, line.input)
        elif network.components[line.component].kind == "DropoutMaskComponent":  # reads nothing: its line names itself
            nodes[line.name] = GraphNode(line.name, Const(1.0, dims[line.name]))
        else:
            component = components[line.name] = network.components[line.component]
            nodes[line.name] = GraphNode(line.name, line.input, *offsets_of(component), window_of(component))
    for name in (INPUT, IVECTOR):  # the frontend puts them beside each other in this order
        if any(line.kind == "input-node" and line.name == name for line in network.lines):
            begin = max((end for _, end in columns.values()), default=0)
            columns[name] = (begin, begin + dims[name])
    if INPUT not in columns:
        raise ModelLoadError(f"{where}: has no input-node '{INPUT}'")
    if output not in nodes:
        raise ModelLoadError(f"{where}: has no output-node '{output}'; it has {_outputs(network.lines)}")
    ranges = {line.name: (line.dim_offset, line.dim) for line in network.lines if line.kind == "dim-range-node"}
    there = dict.fromkeys(columns, Span(-left_context, right_context, 1))
    plan = make_plan(nodes, there, output, subsampling, where)
    return KaldiNetwork(nodes, components, ranges, plan, output, columns, dims, priors)


def _outputs(lines: Sequence[Any]) -> str:
    return ", ".join(f"'{line.name}'" for line in lines if line.kind == "output-node") or "none"
