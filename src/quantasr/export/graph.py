"""Trace an :class:`AsrModel` into ONNX, in float or as it was converted."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import onnx
import torch
from torch import nn

from quantasr.errors import ArtifactError
from quantasr.export.hoist import hoist
from quantasr.export.lower import lower
from quantasr.export.tidy import keep_names, store_halves, tidy
from quantasr.numerics.fake_quantize import DOMAIN
from quantasr.numerics.quantizers import Phase
from quantasr.quantize.prepare import Prepared
from quantasr.sources.asr_model import AsrModel, evaluating
from quantasr.sources.parts_model import TorchPart

_TRACE_OPSET = 20
OPSET = 21
"""The graph's opset: the first with 4-bit and 16-bit integers and blockwise scales."""

# More bytes of weights than this go into a file beside the graph: engines map it instead of copying it twice, and
# protocol buffers end at 2 GiB anyway.
_EXTERNAL_ABOVE = 16_000_000
# What the checker can still serialise in memory.
_CHECKED_BELOW = 1_500_000_000


def export_float(model: AsrModel, part: TorchPart | None = None) -> onnx.ModelProto:
    """The original as a float32 graph; inputs and outputs are those of ``part``, by default of ``AsrModel.graph``."""
    model.make_exportable()
    return _finish(_trace(model, part), model)


def export_quantized(prepared: Prepared, part: TorchPart | None = None) -> onnx.ModelProto:
    """A converted model, or one ``part`` of it, as a QDQ graph, weights stored as integers."""
    return finish_quantized(trace_quantized(prepared, part), prepared)


def trace_quantized(prepared: Prepared, part: TorchPart | None = None) -> onnx.ModelProto:
    """A converted model as it is traced: a node of our domain for each quantizer, labelled with its layer's path."""
    prepared.label()
    # The exporter complains of a domain that no node is of.
    quantized = {id(prepared.model.module.get_submodule(path)) for path in {*prepared.inputs, *prepared.weights}}
    inside = part is None or any(id(module) in quantized for module in part.graph.modules())
    with prepared.active(Phase.SIMULATE):
        graph = _trace(prepared.model, part, custom={DOMAIN: 1} if inside and not prepared.recipe.halves else None)
    tidy(graph)
    return graph


def finish_quantized(graph: onnx.ModelProto, prepared: Prepared) -> onnx.ModelProto:
    """Turn a traced graph, in place, into standard ONNX."""
    lower(graph)
    hoist(graph.graph)
    graph = _finish(graph, prepared.model)
    if prepared.recipe.float_storage != "fp32":
        store_halves(graph, prepared.recipe.float_storage)
    return graph


def save_graph(graph: onnx.ModelProto, path: Path) -> None:
    """Write a graph; weights over 16 MB go into ``<name>.data`` beside it."""
    size = sum(_bytes(t) for t in graph.graph.initializer)
    external = size > _EXTERNAL_ABOVE
    onnx.save_model(
        graph, str(path), save_as_external_data=external, location=f"{path.name}.data" if external else None
    )
    for written in path.parent.glob(f"{path.name}*"):
        written.chmod(0o644)  # the weights' file is made for its owner alone


def _bytes(tensor: onnx.TensorProto) -> int:
    return len(tensor.raw_data) if tensor.HasField("raw_data") else tensor.ByteSize()


def _whole(model: AsrModel) -> TorchPart:
    """A model that is one graph, as its only part."""
    count = 2 if model.padded_batches else 1
    axes: dict[str, dict[int, str]] = {
        "features": {0: "batch", 1: "time"},
        "lengths": {0: "batch"},
        "logprobs": {0: "batch", 1: "frames"},
        "frame_counts": {0: "batch"},
    }
    return TorchPart(
        model.graph,
        ("features", "lengths")[:count],
        ("logprobs", "frame_counts")[:count],
        axes,
        lambda: model.probe(seconds=1.5, batch=count),
    )


def _trace(model: AsrModel, part: TorchPart | None, custom: dict[str, int] | None = None) -> onnx.ModelProto:
    part = part or _whole(model)
    with tempfile.TemporaryDirectory() as folder, _quiet_exporter(), whole_scopes(part.graph):
        path = Path(folder) / "trace.onnx"
        with evaluating(model.module), torch.inference_mode(False), torch.no_grad():
            try:
                torch.onnx.export(
                    part.graph,
                    part.example(),
                    str(path),
                    dynamo=False,
                    opset_version=_TRACE_OPSET,
                    input_names=list(part.inputs),
                    output_names=list(part.outputs),
                    dynamic_axes={
                        name: dict(axes) for name, axes in part.axes.items() if name in part.inputs + part.outputs
                    },
                    custom_opsets=custom,
                )
            except RuntimeError as error:  # the exporter's own errors are such too
                reason = shorten(str(error), 200, placeholder=" ...")
                raise ArtifactError(
                    f"{model.name}: cannot be exported as a graph; PyTorch may still quantize it (--engine torch): "
                    f"{reason}"
                ) from error
        return onnx.load(str(path))


@contextmanager
def whole_scopes(graph: nn.Module) -> Iterator[None]:
    """Let the nodes of a trace carry the whole path of the module that they are in.

    The exporter names each module that is called by the last part of its path, so the parts of modules that are never
    called, and only hold others, would be lost.
    """
    active: list[tuple[str, bool]] = [("", False)]

    def enter(path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            state, held = torch._C._get_tracing_state(), _held(path, active[-1][0])
            active.append((path, state is not None and bool(held)))
            if active[-1][1]:
                state.push_scope(torch._C._jit_onnx_create_full_scope_name("torch.nn.Module", held))

        return hook

    def leave(*_: Any) -> None:
        if active.pop()[1]:
            torch._C._get_tracing_state().pop_scope()

    handles = []
    for path, part in graph.named_modules():
        handles.append(part.register_forward_pre_hook(enter(path)))
        handles.append(part.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _held(path: str, above: str) -> str:
    """The part of ``path`` between the module ``above`` and the name that the exporter gives."""
    if above and not path.startswith(f"{above}."):
        return ""  # reached some other way
    parts = path[len(above) :].strip(".").split(".")
    while len(parts) > 1 and parts[-1].isnumeric():  # the exporter's name goes on to the first part that is no number
        parts.pop()
    return ".".join(parts[:-1])


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's advice out of our output."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _finish(graph: onnx.ModelProto, model: AsrModel) -> onnx.ModelProto:
    tidy(graph)
    keep_names(graph.graph)
    del graph.opset_import[:]
    # Between opsets 20 and 21 operators only gained types, so the number alone changes.
    graph.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    graph.ir_version = 10
    graph.producer_name = "quantasr"
    graph.graph.name = model.name
    if sum(_bytes(t) for t in graph.graph.initializer) < _CHECKED_BELOW:
        onnx.checker.check_model(graph)
    return graph
