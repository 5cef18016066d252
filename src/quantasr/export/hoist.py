"""Move quantizers up the graph, to the operation whose result they round."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

_LAYOUT = {"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
"""Operations that move values about and change none, so that rounding before them is the same as after."""

_Triple = tuple[onnx.NodeProto, onnx.NodeProto, onnx.NodeProto]


def hoist(graph: onnx.GraphProto) -> int:
    """Put each QuantizeLinear and its DequantizeLinear before the layout operations that they follow; how many moved.

    ``x -> Transpose -> Q -> DQ`` becomes ``x -> Q -> DQ -> Transpose``. OpenVINO then rounds inside the kernel that
    makes ``x``, attention or a layer norm for example; behind a change of layout it runs a kernel of its own for it,
    and one more to bring the values there. Only where the quantizer alone reads what the layout operation gives.
    """
    nodes = list(graph.node)
    outputs = {output.name for output in graph.output}
    moved = 0
    while triple := next(_candidates(nodes, outputs), None):
        layout, quantize, dequantize = triple
        quantize.input[0] = layout.input[0]
        layout.output[0], dequantize.output[0] = dequantize.output[0], layout.output[0]
        layout.input[0] = dequantize.output[0]
        place = next(i for i, node in enumerate(nodes) if node is layout)
        rest = [node for node in nodes[place + 1 :] if node is not quantize and node is not dequantize]
        nodes = [*nodes[:place], quantize, dequantize, layout, *rest]
        moved += 1
    del graph.node[:]
    graph.node.extend(nodes)
    return moved


def _candidates(nodes: list[onnx.NodeProto], outputs: set[str]) -> Iterator[_Triple]:
    """Layout operation, QuantizeLinear and DequantizeLinear that follow each other and nothing else reads."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    makers = {name: node for node in nodes for name in node.output}
    for quantize in nodes:
        layout = makers.get(quantize.input[0]) if quantize.op_type == "QuantizeLinear" else None
        if layout is None or layout.op_type not in _LAYOUT:
            continue
        behind = readers.get(quantize.output[0], [])
        between = {layout.output[0], quantize.output[0]}
        alone = len(behind) == len(readers[layout.output[0]]) == 1
        if alone and behind[0].op_type == "DequantizeLinear" and not outputs & {*between, behind[0].output[0]}:
            yield layout, quantize, behind[0]
