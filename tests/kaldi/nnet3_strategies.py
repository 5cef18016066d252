"""Random nnet3 networks for Hypothesis: layers on layers, joined by descriptors of every kind."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantasr.kaldi.nnet3.components import Component, output_dim
from quantasr.kaldi.nnet3.config import ConfigLine
from quantasr.kaldi.nnet3.descriptors import (
    Append,
    Const,
    Failover,
    IfDefined,
    Node,
    Offset,
    ReplaceIndex,
    Round,
    Scale,
    Sum,
    Switch,
)
from quantasr.kaldi.nnet3.network import Network

NAMES = st.from_regex(r"[a-z_][a-z0-9_.-]{0,8}", fullmatch=True).filter(lambda name: name != "input")
SEVEN_DIGITS = st.integers(-9_999_999, 9_999_999).map(lambda i: float(np.float32(i / 10**5)))
"""Numbers of which Kaldi's text form loses nothing but the last bits."""


def arrays(shape):
    return hnp.arrays(np.float32, shape, elements=st.floats(-10, 10, width=32))


@st.composite
def descriptors(draw, dims, depth=2):
    """A descriptor over the nodes of ``dims`` and its dimension."""
    kind = draw(st.sampled_from(["Node", "Const", "Append", "Sum", "Scale", "Offset", "Round", "Other"]))
    if depth == 0 or kind == "Node":
        name = draw(st.sampled_from(sorted(dims)))
        return Node(name), dims[name]
    if kind == "Const":
        dim = draw(st.integers(1, 4))
        return Const(draw(st.sampled_from([0.0, 1.0, -2.5, 0.333333])), dim), dim
    part, dim = draw(descriptors(dims, depth - 1))
    if kind == "Append":
        other, more = draw(descriptors(dims, depth - 1))
        return Append((part, other)), dim + more
    if kind == "Scale":
        return Scale(draw(st.sampled_from([0.66, -1.0, 1e-05, 123456.0])), part), dim
    if kind == "Offset":
        return Offset(part, draw(st.integers(-9, 9)), draw(st.integers(0, 2))), dim
    if kind == "Round":
        return Round(part, draw(st.integers(1, 9))), dim
    moved = Offset(part, -1)
    if kind == "Sum":
        return Sum((part, moved)), dim
    return draw(
        st.sampled_from([Failover(moved, part), IfDefined(moved), Switch((part, moved)), ReplaceIndex(part, "t", 0)])
    ), dim


@st.composite
def components(draw, name, dim):
    """A component that takes ``dim`` numbers."""
    out = draw(st.integers(1, 4))
    affine = {"LinearParams": draw(arrays((out, dim))), "BiasParams": draw(arrays(out))}
    common = {"LearningRate": draw(SEVEN_DIGITS)}
    if draw(st.booleans()):
        common = {"MaxChange": 0.75, "L2Regularize": draw(SEVEN_DIGITS), **common}
    tail = {"OrthonormalConstraint": 0.0, "UseNaturalGradient": draw(st.booleans()), "NumSamplesHistory": 2000.0}
    tail |= {"AlphaInOut": (4.0, 4.0), "RankInOut": (20, 80)}
    taps = draw(st.lists(st.integers(-3, 3), min_size=1, max_size=3, unique=True).map(sorted))
    stats = {"ValueAvg": draw(arrays(dim)), "DerivAvg": np.zeros(0, np.float32), "Count": np.float64(7)}
    kinds = {
        "FixedAffineComponent": affine,
        "AffineComponent": {**common, **affine},
        "TdnnComponent": {
            **common,
            "TimeOffsets": np.array(taps, np.int32),
            "LinearParams": draw(arrays((out, dim * len(taps)))),
            "BiasParams": affine["BiasParams"],
            **tail,
        },
        "RectifiedLinearComponent": {"Dim": dim, **stats},
        "BatchNormComponent": {
            "Dim": dim, "BlockDim": dim, "Epsilon": draw(SEVEN_DIGITS), "TargetRms": 1.0, "TestMode": True,
            "Count": np.float64(draw(st.integers(1, 10**9))), "StatsMean": draw(arrays(dim)),
            "StatsVar": draw(arrays(dim)),
        },
        "PermuteComponent": {"ColumnMap": np.array(draw(st.permutations(range(dim))), np.int32)},
        "DropoutMaskComponent": {"OutputDim": dim, "DropoutProportion": 0.0, "Continuous": True},
        "SumGroupComponent": {"Sizes": np.array([dim], np.int32)},
    }  # fmt: skip
    kind = draw(st.sampled_from(sorted(kinds)))
    return Component(kind, name, kinds[kind])


@st.composite
def networks(draw):
    """A network of one to four layers over an input and an i-vector, with a recurrence now and then."""
    dims = {"input": draw(st.integers(1, 4)), "ivector": draw(st.integers(1, 3))}
    lines = [ConfigLine("input-node", name, dim=dim) for name, dim in dims.items()]
    parts = {}
    for name in draw(st.lists(NAMES.filter(lambda name: name != "ivector"), min_size=1, max_size=4, unique=True)):
        reads, dim = draw(descriptors(dims))
        parts[name] = draw(components(name, dim))
        lines.append(ConfigLine("component-node", name, input=reads, component=name))
        dims[name] = output_dim(parts[name])
        if draw(st.booleans()):
            lines.append(
                ConfigLine("dim-range-node", f"{name}.part", input=Node(name), dim=1, dim_offset=dims[name] - 1)
            )
            dims[f"{name}.part"] = 1
    lines.append(ConfigLine("output-node", "output.", input=Node(draw(st.sampled_from(sorted(dims))))))
    return Network(tuple(lines), parts)
