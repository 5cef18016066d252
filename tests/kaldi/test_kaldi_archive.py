"""Archives against files that Kaldi wrote: the same values, and the same bytes when they are written again."""

from pathlib import Path

import numpy as np
import pytest

from quantasr.errors import KaldiFileError
from quantasr.kaldi.archive import Archive, archive_writer, read_in_order, read_table

FILES = Path(__file__).parents[1] / "data" / "kaldi" / "files"


@pytest.mark.parametrize("name", ["matrices", "cm", "cm2", "cm3"])
def test_matrices_are_those_that_kaldi_prints(name):
    binary, text = Archive(FILES / f"{name}.ark"), Archive(f"ark,t:{FILES / name}.txt")
    assert list(binary) == list(text) == ["a", "b", "c"]
    for key in text:
        assert binary[key].dtype == np.float32
        np.testing.assert_allclose(binary[key], text[key], rtol=1e-6)
    assert binary["a"].shape == (12, 3)
    assert not binary["c"].any()


@pytest.mark.parametrize(
    "name, kind, compression",
    [
        ("matrices", "matrix", None),
        ("cm", "matrix", "CM"),
        ("cm2", "matrix", "CM2"),
        ("cm3", "matrix", "CM3"),
        ("vectors", "vector", None),
        ("ints", "ints", None),
    ],
)
def test_what_is_written_is_what_kaldi_writes(tmp_path, name, kind, compression):
    source = Archive(FILES / ("matrices.ark" if kind == "matrix" else f"{name}.ark"), kind)
    with archive_writer(tmp_path / "x.ark", tmp_path / "x.scp", compression=compression) as put:
        for key, value in source.items():
            put(key, value)
    assert (tmp_path / "x.ark").read_bytes() == (FILES / f"{name}.ark").read_bytes()
    listed = Archive(tmp_path / "x.scp", kind)
    assert list(listed) == list(source)
    again = dict(read_in_order(FILES / f"{name}.ark", kind))
    for key, value in listed.items():
        np.testing.assert_array_equal(value, again[key])


@pytest.mark.parametrize("name, kind", [("matrices", "matrix"), ("vectors", "vector"), ("ints", "ints")])
def test_text_is_what_kaldi_writes(tmp_path, name, kind):
    with archive_writer(tmp_path / "x.ark", tmp_path / "x.scp", binary=False) as put:
        for key, value in read_in_order(FILES / f"{name}.ark", kind):
            put(key, value)
    assert (tmp_path / "x.ark").read_bytes() == (FILES / f"{name}.txt").read_bytes()
    assert Archive(tmp_path / "x.scp", kind)["c"].tolist() == Archive(FILES / f"{name}.ark", kind)["c"].tolist()


def test_places_are_the_bytes_that_kaldi_names(tmp_path):
    """Kaldi's own list of matrices.ark, and parts of a matrix as it cuts them: both ends are within."""
    (tmp_path / "feats.ark").write_bytes((FILES / "matrices.ark").read_bytes())
    lines = "a feats.ark:2\nb feats.ark:163\nc feats.ark:204\n"
    lines += (
        "d feats.ark:2[1:3]\ne feats.ark:2[10:13,0:1]\nf feats.ark:2[:,2:2]\ng feats.ark:2[3:15]\nh feats.ark:999\n"
    )
    (tmp_path / "feats.scp").write_text(lines)
    feats, whole = Archive(tmp_path / "feats.scp"), Archive(FILES / "matrices.ark")
    for key in "abc":
        np.testing.assert_array_equal(feats[key], whole[key])
    np.testing.assert_array_equal(feats["d"], whole["a"][1:4])
    np.testing.assert_array_equal(feats["e"], whole["a"][10:, :2])
    np.testing.assert_array_equal(feats["f"], whole["a"][:, 2:])
    with pytest.raises(KaldiFileError, match=r"feats.scp:7: \[3:15\] is not within"):
        feats["g"]
    with pytest.raises(KaldiFileError, match="there is no byte 999"):
        feats["h"]
    with pytest.raises(KeyError):
        feats["z"]


@pytest.mark.parametrize(
    "line, problem",
    [
        ("a copy-feats ark:x ark:- |", "feats.scp:1: 'copy-feats ark:x ark:- .' is a command, and none is run"),
        ("a | sh", "is a command"),
        ("a", "names no file"),
        ("a x.ark:1\na x.ark:2", "feats.scp:2: 'a' is in .*feats.scp:1 already"),
        ("a none.ark:1", "none.ark: cannot be read"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, line, problem):
    (tmp_path / "feats.scp").write_text(line + "\n")
    with pytest.raises(KaldiFileError, match=problem):
        Archive(tmp_path / "feats.scp")["a"]


def test_archives_that_cannot_be_used(tmp_path):
    data = (FILES / "matrices.ark").read_bytes()
    for content, problem in [
        (data[:-1], "a matrix of 9 x 3 needs 108 bytes, 107 are left"),
        (data + data, "the key 'a' stands twice"),
        (data[2:], "byte 0: a key was expected"),
        (b"a", "no space behind 'a'"),
    ]:
        (tmp_path / "x.ark").write_bytes(content)
        with pytest.raises(KaldiFileError, match=problem):
            Archive(tmp_path / "x.ark")
    with pytest.raises(KaldiFileError, match="is a command"):
        Archive("ark:cat x.ark |")
    with pytest.raises(ValueError, match="no key"), archive_writer(tmp_path / "y.ark") as put:
        put("a b", np.zeros((1, 1)))
    assert not (tmp_path / "y.ark").exists()


def test_tables(tmp_path):
    (tmp_path / "utt2spk").write_text("u1 s1\nu2\ts2 \n\nu3\n")
    assert read_table(tmp_path / "utt2spk") == {"u1": "s1", "u2": "s2", "u3": ""}
