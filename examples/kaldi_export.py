"""The trained network as Kaldi's: the nodes and components that its chain recipes make (``steps/nnet3/xconfig``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from kaldi_tdnnf import BYPASS, Branch, Tdnnf
from numpy.typing import NDArray
from torch import Tensor, nn

from quantasr.kaldi.nnet3 import Component, Network
from quantasr.kaldi.nnet3.config import parse_line

NOTHING = np.zeros(0, np.float32)
RANKS = {"RankIn": 20, "RankOut": 80, "UpdatePeriod": 4, "NumSamplesHistory": 2000.0, "Alpha": 4.0}
LEARNING_RATE = 0.001  # every trainable component has one


def to_network(model: Tdnnf) -> Network:
    """The same network as nnet3: outputs ``output`` (chain) and ``output-xent``."""
    lines, components = [f"input-node name=input dim={model.shape.features}"], {}
    for name, component, reads in _nodes(model):
        lines.append(f"component-node name={name} component={name} input={reads}")
        components[name] = component
    lines.append("output-node name=output input=output.affine objective=linear")
    lines.append("output-node name=output-xent input=output-xent.log-softmax objective=linear")
    return Network(tuple(parse_line(line) for line in lines), components)


def _nodes(model: Tdnnf) -> Iterator[tuple[str, Component, str]]:
    """Name of the node and of its component, the component, and what it reads."""
    hidden = model.shape.hidden
    yield "lda", _normalisation("lda", model), "Append(Offset(input, -1), input, Offset(input, 1))"
    yield "tdnn1.affine", _affine("tdnn1.affine", model.first), "lda"
    yield from _norm("tdnn1", model.batchnorm, "tdnn1.affine")
    before = "tdnn1.batchnorm"
    for number, (layer, stride) in enumerate(zip(model.layers, model.shape.strides, strict=True), 2):
        name = f"tdnnf{number}"
        yield f"{name}.linear", _tdnn(f"{name}.linear", layer.linear, [-stride, 0] if stride else [0]), before
        yield f"{name}.affine", _tdnn(f"{name}.affine", layer.affine, [0, stride] if stride else [0]), f"{name}.linear"
        yield from _norm(name, layer.batchnorm, f"{name}.affine")
        noop = Component("NoOpComponent", f"{name}.noop", {"Dim": hidden, "BackpropScale": 1.0})
        yield f"{name}.noop", noop, f"Sum(Scale({BYPASS}, {before}), {name}.batchnorm)"
        before = f"{name}.noop"
    yield "prefinal-l", _linear("prefinal-l", model.prefinal), before
    yield from _branch("chain", "output", model.chain)
    yield from _branch("xent", "output-xent", model.xent)
    pdfs = model.xent.output.out_channels
    yield "output-xent.log-softmax", _nonlinear("output-xent.log-softmax", "LogSoftmax", pdfs), "output-xent.affine"


def _branch(kind: str, output: str, branch: Branch) -> Iterator[tuple[str, Component, str]]:
    name = f"prefinal-{kind}"
    yield f"{name}.affine", _affine(f"{name}.affine", branch.affine), "prefinal-l"
    yield from _norm(name, branch.batchnorm1, f"{name}.affine", "1")
    yield f"{name}.linear", _linear(f"{name}.linear", branch.linear), f"{name}.batchnorm1"
    yield f"{name}.batchnorm2", _batchnorm(f"{name}.batchnorm2", branch.batchnorm2), f"{name}.linear"
    yield f"{output}.affine", _affine(f"{output}.affine", branch.output), f"{name}.batchnorm2"


def _norm(name: str, norm: nn.BatchNorm1d, reads: str, number: str = "") -> Iterator[tuple[str, Component, str]]:
    """ReLU and batch norm."""
    yield f"{name}.relu", _nonlinear(f"{name}.relu", "RectifiedLinear", norm.num_features), reads
    yield f"{name}.batchnorm{number}", _batchnorm(f"{name}.batchnorm{number}", norm), f"{name}.relu"


def _normalisation(name: str, model: Tdnnf) -> Component:
    scale = torch.cat([1 / model.deviation[:, 0]] * 3)
    fields = {
        "LinearParams": _array(torch.diag(scale)),
        "BiasParams": _array(-scale * torch.cat([model.mean[:, 0]] * 3)),
    }
    return Component("FixedAffineComponent", name, fields)


def _matrix(conv: nn.Conv1d) -> NDArray[np.float32]:
    """Weights [out, taps * in], as for spliced frames."""
    return _array(conv.weight.permute(0, 2, 1).flatten(1))


def _bias(conv: nn.Conv1d) -> NDArray[np.float32]:
    return NOTHING if conv.bias is None else _array(conv.bias)


def _affine(name: str, conv: nn.Conv1d) -> Component:
    fields: dict[str, Any] = {"LearningRate": LEARNING_RATE, "LinearParams": _matrix(conv), "BiasParams": _bias(conv)}
    return Component("NaturalGradientAffineComponent", name, fields | RANKS)


def _linear(name: str, conv: nn.Conv1d) -> Component:
    fields = {
        "LearningRate": LEARNING_RATE,
        "Params": _matrix(conv),
        "OrthonormalConstraint": -1.0,
        "UseNaturalGradient": True,
        "RankInOut": (20, 80),
        "Alpha": 4.0,
        "NumSamplesHistory": 2000.0,
        "UpdatePeriod": 4,
    }
    return Component("LinearComponent", name, fields)


def _tdnn(name: str, conv: nn.Conv1d, offsets: list[int]) -> Component:
    fields = {
        "LearningRate": LEARNING_RATE,
        "TimeOffsets": np.array(offsets, np.int32),
        "LinearParams": _matrix(conv),
        "BiasParams": _bias(conv),
        "OrthonormalConstraint": -1.0 if conv.bias is None else 0.0,
        "UseNaturalGradient": True,
        "NumSamplesHistory": 2000.0,
        "AlphaInOut": (4.0, 4.0),
        "RankInOut": (20, 80),
    }
    return Component("TdnnComponent", name, fields)


def _nonlinear(name: str, kind: str, dim: int) -> Component:
    fields = {
        "Dim": dim,
        "ValueAvg": NOTHING,
        "DerivAvg": NOTHING,
        "Count": np.float64(0),
        "OderivRms": NOTHING,
        "OderivCount": np.float64(0),
        "NumDimsSelfRepaired": np.float64(0),
        "NumDimsProcessed": np.float64(0),
        "SelfRepairScale": 1e-5 if kind == "RectifiedLinear" else 0.0,
    }
    return Component(f"{kind}Component", name, fields)


def _batchnorm(name: str, norm: nn.BatchNorm1d) -> Component:
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    fields = {
        "Dim": norm.num_features,
        "BlockDim": norm.num_features,
        "Epsilon": norm.eps,
        "TargetRms": 1.0,
        "TestMode": False,
        "Count": np.float64(norm.num_batches_tracked.item()),
        "StatsMean": _array(norm.running_mean),
        "StatsVar": _array(norm.running_var),
    }
    return Component("BatchNormComponent", name, fields)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().numpy(), np.float32)
