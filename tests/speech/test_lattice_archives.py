"""Archives of lattices: Kaldi's own are read, ours come back, damaged ones are refused."""

import struct
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from quantasr.errors import KaldiFileError
from quantasr.speech.lattice.archives import lattice_writer, read_lattices
from quantasr.speech.lattice.compact import CompactLattice
from quantasr.speech.lattice.determinize import determinize
from quantasr.speech.lattice.lattice import Lattice

GOLDEN = Path(__file__).parents[1] / "data" / "kaldi" / "golden"


@pytest.fixture(scope="module")
def raw():
    ((_, lattice),) = read_lattices(GOLDEN / "lattice.txt")
    return lattice


def _paths(lattice):
    return {path.words: path for path in lattice.n_best(10000)}


def test_kaldis_own(raw):
    ((key, compact),) = read_lattices(GOLDEN / "determinized.txt")
    assert key == "u" and isinstance(raw, Lattice) and isinstance(compact, CompactLattice)
    assert raw.frames == compact.frames == 24
    ours, theirs = _paths(determinize(raw, 4.0)), _paths(compact)
    assert ours.keys() == theirs.keys()
    for words, path in ours.items():
        assert theirs[words].alignment == path.alignment and theirs[words].total == pytest.approx(path.total, abs=1e-3)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("compact", [True, False])
def test_what_was_written_comes_back(raw, compact, binary, tmp_path):
    lattice = determinize(raw, 2.0) if compact else raw
    with lattice_writer(tmp_path / "l.ark", tmp_path / "l.scp", binary=binary) as put:
        put("first", lattice)
        put("second", lattice)
    found = dict(read_lattices(tmp_path / "l.ark"))
    assert list(found) == ["first", "second"] and type(found["second"]) is type(lattice)
    assert found["second"].states == lattice.states and found["second"].frames == 24
    ours, back = lattice.best_path(), found["second"].best_path()
    assert (back.words, back.alignment) == (ours.words, ours.alignment) and back.total == pytest.approx(ours.total)
    if compact:
        assert _paths(found["first"]).keys() == _paths(lattice).keys()
    places = (tmp_path / "l.scp").read_text().splitlines()
    offset = int(places[1].rsplit(":", 1)[1])
    assert (tmp_path / "l.ark").read_bytes()[offset - 7 : offset] == b"second "


def test_the_binary_form_is_openfsts(tmp_path):
    """Written out by hand: type, arcs, version 2, no flags, properties, start, states, arcs; then the states."""
    lattice = CompactLattice(
        source=np.array([0], np.int32), target=np.array([1], np.int32), word=np.array([7], np.int32),
        graph_cost=np.array([1.5], np.float32), acoustic_cost=np.array([-2], np.float32),
        begin=np.array([0, 2]), alignment=np.array([4, 3], np.int32),
        final_graph=np.array([np.inf, 0.5], np.float32), final_acoustic=np.array([np.inf, 0.25], np.float32),
        final_begin=np.array([0, 0, 1]), final_alignment=np.array([9], np.int32),
        frame=np.array([0, 2], np.int32), frames=3,
    )  # fmt: skip
    with lattice_writer(tmp_path / "l.ark") as put:
        put("u", lattice)
    inf = float("inf")
    expected = b"u " + struct.pack("<i", 2125659606) + struct.pack("<i6s", 6, b"vector")
    expected += struct.pack("<i16s", 16, b"compactlattice44") + struct.pack("<iiQqqq", 2, 0, 3, 0, 2, 1)
    expected += struct.pack("<ffiq", inf, inf, 0, 1) + struct.pack("<iiffiiii", 7, 7, 1.5, -2, 2, 4, 3, 1)
    expected += struct.pack("<ffiiq", 0.5, 0.25, 1, 9, 0)
    assert (tmp_path / "l.ark").read_bytes() == expected
    ((_, found),) = read_lattices(tmp_path / "l.ark")
    for name in (field.name for field in fields(CompactLattice) if field.name != "words"):
        np.testing.assert_array_equal(getattr(found, name), getattr(lattice, name))


@pytest.mark.parametrize("compact", [True, False])
def test_any_damage_is_one_error(raw, compact, tmp_path):
    with lattice_writer(tmp_path / "l.ark") as put:
        put("u", determinize(raw, 1.0) if compact else _small())
    data = (tmp_path / "l.ark").read_bytes()
    random = np.random.default_rng(8)
    refused = 0
    for trial in range(400):
        changed = bytearray(data)
        if trial % 2:
            changed[int(random.integers(len(data)))] = int(random.integers(256))
        else:
            del changed[int(random.integers(1, len(data))) :]
        (tmp_path / "x.ark").write_bytes(changed)
        try:
            for _ in read_lattices(tmp_path / "x.ark"):
                pass
        except KaldiFileError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 200


def _small():
    """A small raw lattice: the first arcs of a larger one would have no end."""
    ints = lambda *values: np.array(values, np.int32)  # noqa: E731
    floats = lambda *values: np.array(values, np.float32)  # noqa: E731
    return Lattice(
        ints(0, 0, 1), ints(1, 2, 2), ints(3, 4, 0), ints(5, 6, 0), floats(1, 2, 3), floats(4, 5, 6),
        floats(np.inf, np.inf, 0.5), ints(0, 1, 1), 1,
    )  # fmt: skip


@pytest.mark.parametrize(
    "text, problem",
    [
        ("u \n0 1 2 3\n0 1 2\n1\n\n", "line 2: no arc of a lattice: .* other arcs have others"),
        ("u \n0 1 2 1,2,x\n1\n\n", "line 1: no arc"),
        ("u \n0 1 2 nan,1,3\n1\n\n", "is not a number"),
        ("u \n0 1 99999999999\n1\n\n", "above 2147483647"),
        ("\0x", "a key was expected"),
    ],
)
def test_damaged_text(text, problem, tmp_path):
    (tmp_path / "x.ark").write_text(text)
    with pytest.raises(KaldiFileError, match=problem):
        list(read_lattices(tmp_path / "x.ark"))


def test_keys(raw, tmp_path):
    with pytest.raises(ValueError, match="no key"), lattice_writer(tmp_path / "l.ark") as put:
        put("a b", raw)
    assert not (tmp_path / "l.ark").exists()
