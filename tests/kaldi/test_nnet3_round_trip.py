"""Any network is read as it was written, and any descriptor as it reads."""

import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nnet3_strategies import descriptors, networks

from quantasr.kaldi.nnet3.config import format_line, parse_line
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
    format_descriptor,
    nodes_of,
    parse_descriptor,
)
from quantasr.kaldi.nnet3.network import read_network, write_network
from quantasr.kaldi.stream import Reader
from quantasr.kaldi.writer import Writer


def _bytes(network, binary):
    file = io.BytesIO()
    write_network(Writer(file, binary=binary), network)
    return file.getvalue()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks(), st.booleans())
def test_networks_come_back(network, binary):
    data = _bytes(network, binary)
    again = read_network(Reader(data, "x"))
    assert again.lines == network.lines and again.dims() == network.dims()
    if binary:
        assert again.components == network.components
    assert _bytes(again, binary) == data


@given(descriptors({"input": 3, "lda-1.x": 2}, depth=4))
def test_descriptors_come_back(drawn):
    descriptor, _ = drawn
    assert parse_descriptor(format_descriptor(descriptor)) == descriptor


@pytest.mark.parametrize(
    "text, descriptor",
    [
        ("tdnn1.relu", Node("tdnn1.relu")),
        (
            "Append(Offset(input, -1),input,  ReplaceIndex(ivector, t, 0))",
            Append((Offset(Node("input"), -1), Node("input"), ReplaceIndex(Node("ivector"), "t", 0))),
        ),
        (
            "Sum(Scale(0.66, a), IfDefined(Offset(b, -3)))",
            Sum((Scale(0.66, Node("a")), IfDefined(Offset(Node("b"), -3)))),
        ),
        ("Failover(Const(-1.5e-3, 4), Round(a, 3))", Failover(Const(-0.0015, 4), Round(Node("a"), 3))),
        ("Switch(a, Offset(a, 1, 2))", Switch((Node("a"), Offset(Node("a"), 1, 2)))),
    ],
)  # fmt: skip
def test_descriptors_of_kaldis_scripts(text, descriptor):
    assert parse_descriptor(text) == descriptor
    assert set(nodes_of(descriptor)) <= {"tdnn1.relu", "input", "ivector", "a", "b"}


@pytest.mark.parametrize(
    "text, problem",
    [
        ("", "ends too early"),
        ("Append(a, b", "ends too early"),
        ("a b", "nothing was expected behind a descriptor, found 'b'"),
        ("1a", "a descriptor was expected, found '1a'"),
        ("Append()", "a descriptor was expected, found '\\)'"),
        ("Sum[a]", "a descriptor was expected, found 'Sum\\[a\\]'"),
        ("Offset(a)", "',' was expected"),
        ("Offset(a, 3000000000)", "an integer was expected"),
        ("Offset(a, 1.5)", "an integer was expected, found '1.5'"),
        ("Round(a, 0)", "an integer from 1 was expected"),
        ("Const(1, 0)", "an integer from 1"),
        ("Const(inf, 1)", "a number was expected"),
        ("Scale(1e999, a)", "a number was expected"),
        ("ReplaceIndex(a, n, 0)", "wants t or x"),
        ("Offset(" * 1000 + "a", "nested deeper than 50"),
    ],
)
def test_descriptors_that_cannot_be(text, problem):
    with pytest.raises(ValueError, match=problem):
        parse_descriptor(text)


@pytest.mark.parametrize(
    "text",
    [
        "input-node name=input dim=40",
        "component-node name=tdnn1.affine component=tdnn1.affine input=Append(Offset(input, -1), input)",
        "dim-range-node name=lstm1.r input-node=lstm1.rp dim-offset=0 dim=128",
        "output-node name=output-xent input=output-xent.log-softmax objective=linear",
        "output-node name=output input=Offset(a, 5) objective=quadratic",
    ],
)
def test_lines_of_kaldi(text):
    assert format_line(parse_line(text)) == text


def test_lines_as_people_write_them():
    assert parse_line("  output-node   input=Offset(a, 5)  name=output ").name == "output"
    assert format_line(parse_line("output-node name='o' input=\"a\"")) == "output-node name=o input=a objective=linear"


@pytest.mark.parametrize(
    "text, problem",
    [
        ("node name=a", "a node was expected, found 'node'"),
        ("input-node", "key=value was expected"),
        ("input-node x name=a dim=3", "key=value was expected, found 'x name=a"),
        ("input-node name=a", "a line 'input-node' has no dim="),
        ("input-node name=a dim=3 dim=3", "dim= stands twice"),
        ("input-node name=a dim=3 input=b", "has an unknown input="),
        ("input-node name=1 dim=3", "cannot be named '1'"),
        ("input-node name=a dim=0", "node 'a': dim 0"),
        ("input-node name=a dim=-1", "node 'a': dim=-1 is no size"),
        ("output-node name=a input=b objective=cubic", "'cubic' is no objective"),
        ("output-node name=a input=Sum(b", "node 'a': a descriptor ends too early"),
    ],
)
def test_lines_that_cannot_be(text, problem):
    with pytest.raises(ValueError, match=problem):
        parse_line(text)
