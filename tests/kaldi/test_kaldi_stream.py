"""Basic types against bytes worked out by hand from Kaldi's io-funcs and, where it is installed, against kaldiio."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantasr.errors import KaldiFileError
from quantasr.kaldi.matrices import compress, pack_symmetric, unpack_symmetric
from quantasr.kaldi.stream import Reader
from quantasr.kaldi.writer import Writer, writing

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def _written(binary, *calls):
    file = io.BytesIO()
    writer = Writer(file, binary=binary)
    for method, value in calls:
        getattr(writer, method)(value)
    return file.getvalue()


BINARY = [
    ("int32", -2, b"\x04\xfe\xff\xff\xff", b"-2 "),
    ("int64", 3, b"\x08\x03" + b"\0" * 7, b"3 "),
    ("uint64", 5, b"\xf8\x05" + b"\0" * 7, b"5 "),
    ("bool", True, b"T", b"T "),
    ("float", 1.5, b"\x04\x00\x00\xc0\x3f", b"1.5 "),
    ("double", 0.1, b"\x08\x9a\x99\x99\x99\x99\x99\xb9\x3f", b"0.1 "),
    ("token", "<Dim>", b"<Dim> ", b"<Dim> "),
]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("name, value, in_binary, in_text", BINARY)
def test_values_are_the_bytes_that_kaldi_writes(binary, name, value, in_binary, in_text):
    data = _written(binary, (f"write_{name}", value))
    assert data == (b"\0B" + in_binary if binary else in_text)
    reader = Reader(data, "x")
    assert reader.binary is binary
    assert getattr(reader, f"read_{name}")() == value
    assert reader.at_end()


ARRAYS = [
    ("vector", np.array([1, -0.5], np.float32), b"FV \x04\x02\0\0\0" + b"\0\0\x80\x3f\0\0\0\xbf", b" [ 1 -0.5 ]\n"),
    ("matrix", np.zeros((0, 0), np.float32), b"FM \x04\0\0\0\0\x04\0\0\0\0", b" [ ]\n"),
    (
        "matrix",
        np.array([[1, 2], [3, 1 / 3]], np.float64),
        b"DM \x04\x02\0\0\0\x04\x02\0\0\0" + np.array([1, 2, 3, 1 / 3]).tobytes(),
        b" [\n  1 2 \n  3 0.3333333 ]\n",
    ),
    (
        "packed",
        np.array([1, 2, 3], np.float64),
        b"DP \x04\x02\0\0\0" + np.array([1.0, 2, 3]).tobytes(),
        b"[\n1 \n2 3 ]\n",
    ),
    ("int_vector", np.array([7, -1], np.int32), b"\x04\x02\0\0\0\x07\0\0\0\xff\xff\xff\xff", b"[ 7 -1 ]\n"),
    ("int_pairs", np.array([[7, -1]], np.int32), b"\x04\x01\0\0\0\x07\0\0\0\xff\xff\xff\xff", b"[ 7,-1 ]\n"),
]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("name, value, in_binary, in_text", ARRAYS)
def test_arrays_are_the_bytes_that_kaldi_writes(binary, name, value, in_binary, in_text):
    data = _written(binary, (f"write_{name}", value))
    assert data == (b"\0B" + in_binary if binary else in_text)
    reader = Reader(data, "x")
    dtype = {} if name.startswith("int") else {"dtype": value.dtype}
    read = getattr(reader, f"read_{name}")(**({} if binary else dtype))
    assert read.dtype == value.dtype and read.shape == value.shape
    np.testing.assert_allclose(read, value, rtol=1e-6)
    assert reader.offset == len(data)


def test_text_as_people_write_it():
    reader = Reader(b" <A>\n[1;2 ]\n[ 1\n 2 3]", "x")
    reader.expect_token("<A>")
    np.testing.assert_array_equal(reader.read_matrix(), [[1], [2]])
    with pytest.raises(KaldiFileError, match=r"^x: byte 13: rows of a matrix differ"):
        reader.read_matrix()


@pytest.mark.parametrize(
    "data, method, problem",
    [
        (b"\0Xabc", "read_token", "byte 0: begins with a zero byte"),
        (b"\0B\x04\x01\0", "read_int32", "byte 2: an integer needs 5 bytes, 3 are left"),
        (b"\0B\x08" + b"\0" * 8, "read_int32", "byte 2: an integer of 32 bits was expected"),
        (b"\0B\x02\0\0", "read_float", "byte 2: a floating-point number was expected"),
        (b"\0BX", "read_bool", "byte 2: T or F was expected"),
        (b"\0BFV \x04\xff\xff\xff\x7f123", "read_vector", "a vector needs 8589934588 bytes, 3 are left"),
        (b"\0BFV \x04\xff\xff\xff\xff123", "read_vector", "byte 5: a vector's length cannot be -1"),
        (
            b"\0BFM \x04\xff\xff\xff\x7f\x04\xff\xff\xff\x7f12",
            "read_matrix",
            "a matrix of 2147483647 x 2147483647 needs",
        ),
        (b"\0BFM \x04\x01\0\0\0\x04\0\0\0\0", "read_matrix", "a matrix of 1 x 0"),
        (
            b"\0BCM \0\0\0\0\0\0\0\0\xff\xff\xff\x7f\xff\xff\xff\x7f",
            "read_matrix",
            "a compressed matrix of 2147483647 x",
        ),
        (b"\0BXM \0\0", "read_matrix", "byte 2: FM or DM was expected, found 'XM'"),
        (b"\0BFP \x04\xff\xff\xff\x7f\x00", "read_packed", "a packed matrix of 2147483647 rows needs"),
        (b"\0B\x04\xff\xff\xff\xff", "read_int_vector", "integers needs -4 bytes"),
        (b"\0Babc", "read_token", "no space behind 'abc'"),
        (b"\0B", "read_token", "a word was expected, the file ends"),
        (b"<A> 3000000000 ", "read_int32", "byte 0: '<A>' is no integer"),
        (b"3000000000 ", "read_int32", "3000000000 is no integer of 32 bits"),
        (b"1_0 ", "read_float", "'1_0' is no number"),
        (b"[ 1 2", "read_vector", "'\\[' is not closed"),
        (b"[ 1 \n 2 ]", "read_vector", "a vector was expected, found a matrix"),
        (b"[ 1 - ]", "read_vector", "numbers were expected"),
        (b"[ 1 2 3 4 ]", "read_packed", "4 numbers are no packed matrix"),
        (b"[ 1,2 3 ]", "read_int_pairs", "pairs of integers were expected"),
        (b"abc", "read_line", "a line of text does not end"),
    ],
)
def test_what_is_broken_is_named_with_its_byte(data, method, problem):
    with pytest.raises(KaldiFileError, match=problem):
        getattr(Reader(data, "x"), method)()


def test_an_end_within_the_bytes_is_never_passed():
    data = b"\x04\x01\0\0\0\x04\x02\0\0\0"
    reader = Reader(data, "x", binary=True, end=7)
    assert reader.read_int32() == 1
    with pytest.raises(KaldiFileError, match="2 are left"):
        reader.read_int32()
    with pytest.raises(KaldiFileError, match="is not closed"):
        Reader(b"[ 1 ]", "x", end=3).read_vector()


def test_files_are_there_only_when_they_are_whole(tmp_path):
    with writing(tmp_path / "a") as writer:
        writer.write_int32(4)
    for mapped in (True, False):
        assert Reader.open(tmp_path / "a", mapped=mapped).read_int32() == 4
    with pytest.raises(RuntimeError), writing(tmp_path / "b") as writer:
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    with pytest.raises(KaldiFileError, match="cannot be read"):
        Reader.open(tmp_path / "b")
    with pytest.raises(KaldiFileError, match="cannot be written"), writing(tmp_path / "none" / "b"):
        pass
    (tmp_path / "empty").touch()
    assert Reader.open(tmp_path / "empty", mapped=True).at_end()


@pytest.fixture(scope="module")
def kaldi():
    return pytest.importorskip("kaldi_native_io")


@pytest.mark.parametrize("token, method", [("CM", 2), ("CM2", 3), ("CM3", 5), (None, 1)])
def test_compressed_matrices_are_kaldis(kaldi, tmp_path, token, method):
    """The same bytes as Kaldi's own C++ writes, and the same values as it reads."""
    rng = np.random.default_rng(method)
    arrays = [rng.normal(size=(rows, columns)) * 10 for rows in (1, 2, 3, 4, 5, 9, 40, 200) for columns in (1, 3, 40)]
    arrays += [
        np.zeros((12, 3)),
        np.full((1, 2), -7.0),
        rng.integers(-2, 3, (30, 4)),
        np.exp(rng.normal(size=(50, 5)) * 9),
    ]
    ark = tmp_path / "a.ark"
    with kaldi.CompressedMatrixWriter(f"ark:{ark}") as writer:
        for i, array in enumerate(arrays):
            writer.write(f"u{i}", array.astype(np.float32), kaldi.CompressionMethod(method))
    reader = Reader(ark.read_bytes(), "x", binary=True)
    with kaldi.SequentialFloatMatrixReader(f"ark:{ark}") as truths:
        for array, (_, truth) in zip(arrays, truths, strict=True):
            reader.read_token()
            assert reader.read_bytes(2) == b"\0B"
            ours = compress(array.astype(np.float32), token)
            assert reader.read_compressed() == ours
            np.testing.assert_array_equal(ours.to_array(), np.array(truth))
    assert reader.at_end()


@given(hnp.arrays(np.float32, st.integers(0, 8).map(lambda n: n * (n + 1) // 2), elements=FLOATS))
def test_packed_matrices_come_back(packed):
    full = unpack_symmetric(packed)
    assert (full == full.T).all()
    np.testing.assert_array_equal(pack_symmetric(full), packed)
