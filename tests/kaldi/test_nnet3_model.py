"""nnet3 models against files that Kaldi wrote: every kind of component, both transition models, both encodings."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantasr.errors import KaldiFileError, ModelLoadError
from quantasr.kaldi.nnet3.components import Component, input_dim, output_dim
from quantasr.kaldi.nnet3.config import ConfigLine, Node, parse_line
from quantasr.kaldi.nnet3.model import AcousticModel, Network, read_model, write_model
from quantasr.kaldi.nnet3.specs import SPECS
from quantasr.kaldi.nnet3.transitions import (
    HmmState,
    Topology,
    TransitionModel,
    read_transition_model,
    write_transition_model,
)
from quantasr.kaldi.stream import Reader
from quantasr.kaldi.writer import writing

FILES = Path(__file__).parents[1] / "data" / "kaldi" / "files"
DIMS = {
    "sg": (20, 3), "norm": (20, 22), "norm2": (20, 20), "pnorm": (20, 10), "affine": (20, 3), "linear": (20, 3),
    "nga": (20, 3), "ep": (20, 10), "conv": (20, 24), "tdnn": (20, 3), "tdnn2": (20, 3), "maxp": (20, 8),
    "perm": (5, 5), "dist": (20, 5), "comp": (20, 3), "rep": (20, 10), "block": (20, 10), "ngrep": (20, 10),
    "se": (20, 41), "sp": (41, 41), "cf": (20, 5), "lstm": (20, 8), "lstmd": (23, 8), "thc": (20, 15), "ra": (20, 12),
    "sb": (20, 5), "gru": (20, 10), "ogru": (15, 10), "cf2": (3, 20), "fa": (20, 4),
}  # fmt: skip
"""What nnet3-info says of every_component.raw; all others are 20 and 20."""


@pytest.mark.parametrize("name", ["every_component.raw", "every_component.txt"])
def test_a_network_is_written_as_it_was_read(tmp_path, name):
    model = read_model(FILES / name)
    assert {component.kind for component in model.network.components.values()} == set(SPECS)
    assert model.transitions is None and model.binary == name.endswith("raw")
    write_model(model, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == (FILES / name).read_bytes()


def test_text_and_binary_hold_the_same(tmp_path):
    binary, text = read_model(FILES / "every_component.raw"), read_model(FILES / "every_component.txt")
    assert binary.network.lines == text.network.lines
    write_model(replace(binary, binary=False), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == (FILES / "every_component.txt").read_bytes()
    for name, component in binary.network.components.items():
        assert list(component.fields) == list(text.network.components[name].fields)
        assert {k: type(v) for k, v in component.fields.items()} == {
            k: type(v) for k, v in text.network.components[name].fields.items()
        }


def test_dimensions_are_those_that_kaldi_says():
    components = read_model(FILES / "every_component.raw").network.components
    for name, component in components.items():
        assert (input_dim(component), output_dim(component)) == DIMS.get(name, (20, 20)), name


def test_nodes_of_a_network():
    network = read_model(FILES / "every_component.raw").network
    assert network.inputs == {"input": 20} and network.outputs == ("output",)
    assert network.dims() == {
        "input": 20, "sig": 20, "tdnn": 3, "part": 3, "cc.x": 20, "rec": 3, "bp": 20, "output": 3
    }  # fmt: skip
    assert network["part"].input == Node("sig") and network["part"].dim_offset == 2
    with pytest.raises(KeyError):
        network["none"]


def test_fields_have_kaldis_values():
    components = read_model(FILES / "every_component.raw").network.components
    tdnn = components["tdnn2"].fields
    assert tdnn["TimeOffsets"].tolist() == [0, 3] and tdnn["LinearParams"].shape == (3, 40)
    assert len(tdnn["BiasParams"]) == 0 and tdnn["OrthonormalConstraint"] == -1.0
    assert components["nga"].fields["MaxChange"] == 0.75 and components["nga"].fields["LearningRateFactor"] == 0.5
    assert components["thc"].fields["Offsets"].tolist() == [[t, h] for t in (-1, 0, 1) for h in (-1, 0, 1)]
    assert [part.kind for part in components["comp"].fields["NumComponents"]] == [
        "AffineComponent",
        "RectifiedLinearComponent",
    ]
    assert components["gdrop"].fields["Continuous"] is True and "TestMode" not in components["gdrop"].fields
    assert isinstance(components["bn"].fields["Count"], np.float64)


@pytest.mark.parametrize("form", ["hmm", "chain"])
def test_transition_models_are_written_as_they_were_read(tmp_path, form):
    models = []
    for kind in ("bin", "txt"):
        path = FILES / f"transitions_{form}.{kind}"
        models.append(read_transition_model(Reader.open(path)))
        with writing(tmp_path / "x", binary=kind == "bin") as writer:
            write_transition_model(writer, models[-1])
        assert (tmp_path / "x").read_bytes() == path.read_bytes()
    assert (models[0].tuples == models[1].tuples).all() and models[0].topology.entries == models[1].topology.entries


def test_transition_ids_are_counted_as_kaldi_counts_them():
    """Worked out by hand from transitions_chain.txt: phone 2 has two states and two pairs of pdfs each."""
    model = read_transition_model(Reader.open(FILES / "transitions_chain.txt"))
    assert (model.num_pdfs, model.num_states, model.num_transition_ids) == (12, 6, 12)
    assert model.pdf_of_tid.tolist() == [0, 1, 0, 3, 2, 5, 4, 6, 6, 8, 8, 11, 10]
    assert model.phone_of_tid.tolist() == [0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 4, 4]
    assert model.state_of_tid.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    assert model.is_self_loop.tolist() == [False, *[True, False] * 6]
    assert model.self_loop_of_state.tolist() == [0, 1, 3, 5, 7, 9, 11]
    assert model.first_tid(2, 1, 8, 8) == 9
    with pytest.raises(ModelLoadError, match="no state 1 of phone 2 with the pdfs 8 and 9"):
        model.first_tid(2, 1, 8, 9)


def _change(**changes):
    states = (HmmState(0, 1, ((0, 0.5), (1, 0.5))), HmmState())
    given = {"phones": [1], "entry_of_phone": [-1, 0], "entries": (states,), "tuples": [[1, 0, 0, 1]]}
    given = {**given, "log_probs": [0, -0.5, -1], **changes}
    topology = Topology(
        np.array(given["phones"], np.int32), np.array(given["entry_of_phone"], np.int32), given["entries"]
    )
    return TransitionModel(topology, np.array(given["tuples"], np.int32), np.array(given["log_probs"], np.float32))


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"phones": [2, 1]}, "not in order"),
        ({"phones": [1, -(1 << 31), 1]}, "not in order"),
        ({"phones": [5]}, "phone 5 has no topology"),
        ({"entry_of_phone": [-1, 7]}, "there is no topology 7"),
        ({"entries": ((HmmState(),),)}, "no final state"),
        ({"entries": ((HmmState(0, 0, ((4, 1.0),)), HmmState()),)}, "leads nowhere"),
        ({"entries": ((HmmState(0, 0, ((1, 0.5), (1, 0.5))), HmmState()),)}, "same transition twice"),
        ({"tuples": [[1, 3, 0, 1]]}, "phone 1 has no state 3"),
        ({"tuples": [[1, 0, 3, 1], [1, 0, 0, 1]]}, "not in order"),
        ({"tuples": [[1, 0, -1, 1]]}, "has the pdf -1"),
        ({"log_probs": [0, -1]}, "2 transitions do not fit 1 probabilities"),
        ({"log_probs": [0, -1, np.nan]}, "no probability between"),
    ],
)
def test_transition_models_that_cannot_be(changes, problem):
    with pytest.raises(ModelLoadError, match=problem):
        _change(**changes)


def _model(binary=True, **changes):
    """The smallest whole model: an affine layer behind a splice."""
    affine = {"LinearParams": np.ones((2, 9), np.float32), "BiasParams": np.zeros(2, np.float32)}
    components = {"a": Component("FixedAffineComponent", "a", affine)}
    lines = {
        "in": "input-node name=input dim=3",
        "a": "component-node name=a component=a input=Append(Offset(input, -1), input, Offset(input, 1))",
        "out": "output-node name=output input=a objective=linear",
        **changes,
    }
    network = Network(tuple(parse_line(line) for line in lines.values() if line), components)
    return AcousticModel(_change(), network, 1, 1, binary=binary)


@pytest.mark.parametrize("binary", [True, False])
def test_a_whole_model_comes_back(tmp_path, binary):
    model = replace(_model(binary), priors=np.array([0.25, 0.75], np.float32))
    write_model(model, tmp_path / "final.mdl")
    again = read_model(tmp_path / "final.mdl")
    assert again.network == model.network and again.priors.tolist() == [0.25, 0.75]
    assert (again.left_context, again.right_context, again.binary) == (1, 1, binary)
    assert again.transitions.pdf_of_tid.tolist() == [0, 1, 0]
    write_model(again, tmp_path / "again.mdl")
    assert (tmp_path / "again.mdl").read_bytes() == (tmp_path / "final.mdl").read_bytes()


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"b": "component-node name=b component=none input=a"}, "node 'b': there is no component 'none'"),
        ({"b": "component-node name=b component=a input=x.y"}, "node 'b' reads 'x.y', which is not there"),
        ({"b": "component-node name=b component=a input=a"}, "node 'b' reads 2 numbers, but 'a' takes 9"),
        ({"b": "component-node name=b component=a input=output"}, "reads the output-node 'output'"),
        ({"b": "input-node name=a dim=3"}, "node 'a' is defined twice"),
        ({"b": "dim-range-node name=b input-node=input dim=2 dim-offset=2"}, "node 'b' takes 2 numbers from 2 on"),
        ({"b": "output-node name=b input=Sum(a, input)"}, "node 'b': the parts of Sum have 2 and 3 numbers"),
        ({"in": "", "out": ""}, "node 'a' reads 'input', which is not there"),
        ({"out": ""}, "the network has no output-node"),
        ({"out": "output-node name=output input=input"}, "3 outputs, but the transition model has 2 pdfs"),
        ({"out": "output-node name=output2 input=a"}, "no output-node named 'output'"),
    ],
)  # fmt: skip
def test_networks_that_cannot_be(changes, problem):
    with pytest.raises(ModelLoadError, match=problem):
        _model(**changes)


@pytest.mark.parametrize(
    "offset, fine", [("b", False), ("Offset(b, -1)", True), ("Offset(Offset(b, -1), 1)", False), ("Round(b, 3)", True)]
)
def test_a_loop_needs_time_between(offset, fine):
    lines = {
        "a": f"component-node name=a component=a input=Append(Offset(input, -1), input, c, {offset})",
        "b": "dim-range-node name=b input-node=a dim=1 dim-offset=0",
        "c": "dim-range-node name=c input-node=input dim=2 dim-offset=0",
    }
    if fine:
        _model(**lines)
    else:
        with pytest.raises(ModelLoadError, match=r"node '[ab]' reads itself with no time between: a loop"):
            _model(**lines)


def test_errors_name_the_byte_of_the_line_or_component(tmp_path):
    text = (FILES / "every_component.txt").read_bytes()
    for before, after, problem in [
        (b"input=rec", b"input=rex", "reads 'rex'"),
        (b"Round(input, 3)", b"Round(input, 0)", "node 'tdnn': an integer from 1"),
        (b"dim=20", b"dim=x", "node 'input': dim=x is no size"),
        (b"objective=linear", b"objection=linear", "has an unknown objection="),
        (b"<SumGroupComponent>", b"<SumGropComponent>", "component 'sg' is of the unknown type 'SumGropComponent'"),
        (b"<Sizes>", b"<Size>", "component 'sg': </SumGroupComponent> was expected, found '<Size>'"),
        (b"<NumHeads> 1", b"<NumHeads> 0", "component 'ra' (RestrictedAttentionComponent): 0 heads"),
        (b"<NumRepeats> 5", b"<NumRepeats> 5 <NumRepeats> 5", "component 'rep' has <NumRepeats> twice"),
        (b"\n</Nnet3>", b"\n</Nnet4>", "</Nnet3> was expected, found '</Nnet4>'"),
    ]:
        assert before in text
        (tmp_path / "x").write_bytes(text.replace(before, after, 1))
        with pytest.raises(KaldiFileError, match=re.escape(problem)) as caught:
            read_model(tmp_path / "x")
        offset = int(re.search(r"x: byte (\d+): ", str(caught.value))[1])
        at = text.index(before)
        line = text.rindex(b"\n", 0, at) + 1
        assert line <= offset <= at + 40, (str(caught.value), at)


@pytest.mark.parametrize(
    "data, problem",
    [
        (b"", "found ''"),
        (b"\0B<Nnet> ", "a network of nnet1 or nnet2"),
        (b"<html> ", "found '<html>': no nnet3 model"),
        ((FILES / "transitions_hmm.bin").read_bytes() + b"<DIMENSION> \4\0\0\0\0", "a Gaussian mixture model"),
    ],
)
def test_other_models_are_refused(tmp_path, data, problem):
    (tmp_path / "final.mdl").write_bytes(data)
    with pytest.raises(KaldiFileError, match=problem):
        read_model(tmp_path / "final.mdl")


@pytest.mark.parametrize(
    "kind, fields, problem",
    [
        ("FooComponent", {}, "component 'x' is of the unknown type 'FooComponent'"),
        ("NoOpComponent", {"Dim": 3, "Rank": 1}, "a NoOpComponent has no <Rank>"),
        ("NoOpComponent", {}, "a NoOpComponent needs <Dim>"),
        ("NoOpComponent", {"Dim": 0}, "0 numbers in and 0 out cannot be"),
        ("FixedBiasComponent", {"Bias": np.zeros((2, 2))}, "<Bias> has 2 axes, not 1"),
        ("PermuteComponent", {"ColumnMap": np.array([0, 2])}, "no permutation"),
        ("SumGroupComponent", {"Sizes": np.array([3, 0])}, "a size is 0"),
        ("PnormComponent", {"InputDim": 5, "OutputDim": 2}, "cannot be split into 2 parts"),
        (
            "FixedAffineComponent",
            {"LinearParams": np.zeros((2, 3)), "BiasParams": np.zeros(3)},
            "the numbers in <BiasParams> are 3, not 2",
        ),
    ],
)
def test_components_that_cannot_be(kind, fields, problem):
    with pytest.raises(ModelLoadError, match=problem):
        Component(kind, "x", fields)


def test_a_line_says_what_belongs_together():
    with pytest.raises(ValueError, match="a component belongs to component-nodes"):
        ConfigLine("input-node", "x", component="y", dim=3)
    with pytest.raises(ValueError, match="a node cannot be named 'a b'"):
        ConfigLine("input-node", "a b", dim=3)
