"""nnet3 components: what a file says of each, read and written by one table (``specs.SPECS``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantasr.errors import ModelLoadError
from quantasr.kaldi.nnet3.dims import dims_of
from quantasr.kaldi.nnet3.specs import CLOSING, OPENING, SPECS, Field
from quantasr.kaldi.stream import Reader, short
from quantasr.kaldi.writer import Writer

_DEEPEST = 5
_COMMON = {"LearningRateFactor", "IsGradient", "MaxChange", "L2Regularize", "LearningRate"}


@dataclass(frozen=True, eq=False)
class Component:
    """One component of a network.

    ``kind`` is Kaldi's type ("TdnnComponent"). ``fields`` are Kaldi's tokens without brackets, in the order of the
    file: arrays of float32 (float64 where the file says so), arrays of int32, ints, floats, bools, pairs of numbers;
    True for a token alone; a tuple of components in a CompositeComponent. A number of 64 bits is a numpy.float64.

    Raises ModelLoadError for an unknown kind, a field too many or too few, and sizes that do not fit.
    """

    kind: str
    name: str
    fields: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.kind not in SPECS:
            raise ModelLoadError(f"component '{self.name}' is of the unknown type '{short(self.kind)}'")
        spec = SPECS[self.kind]
        for field in self.fields:
            if field not in spec:
                raise ModelLoadError(f"component '{self.name}': a {self.kind} has no <{short(field)}>")
        for field, known in spec.items():
            if field not in self.fields and not known.optional:
                raise ModelLoadError(f"component '{self.name}': a {self.kind} needs <{field}>")
        for field, value in self.fields.items():
            axes = {"vector": 1, "matrix": 2, "ints": 1, "pairs": 2}.get(spec[field].type)
            if axes is not None and np.ndim(value) != axes:
                raise ModelLoadError(f"component '{self.name}': <{field}> has {np.ndim(value)} axes, not {axes}")
        try:
            object.__setattr__(self, "_dims", dims_of(self.kind, self.fields))
        except ValueError as error:
            raise ModelLoadError(f"component '{self.name}' ({self.kind}): {error}") from error

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Component):
            return NotImplemented
        return (self.kind, self.name, list(self.fields)) == (other.kind, other.name, list(other.fields)) and all(
            _same(value, other.fields[field]) for field, value in self.fields.items()
        )

    __hash__ = None  # type: ignore[assignment]


def input_dim(component: Component) -> int:
    """How many numbers a component takes for each frame."""
    return int(component._dims[0])  # type: ignore[attr-defined]


def output_dim(component: Component) -> int:
    """How many numbers a component gives for each frame."""
    return int(component._dims[1])  # type: ignore[attr-defined]


def read_component(reader: Reader, name: str, depth: int = 0) -> Component:
    """The component that comes next; raises KaldiFileError."""
    start = reader.offset
    kind = reader.read_token()[1:-1]
    if kind not in SPECS:
        reader.fail(f"component '{short(name)}' is of the unknown type '{short(kind)}'", start)
    spec = SPECS[kind]
    ends = (f"</{kind}>", f"<{kind}>")  # old versions of Kaldi forgot the slash in some components
    fields: dict[str, Any] = {}
    while True:
        here = reader.offset
        token = reader.read_token()
        if token in ends:
            break
        if token in _SILENT and kind == "TimeHeightConvolutionComponent":
            continue
        field = token[1:-1]
        if token != f"<{field}>" or field not in spec:
            reader.fail(f"component '{short(name)}': {ends[0]} was expected, found '{short(token)}'", here)
        if field in fields:
            reader.fail(f"component '{short(name)}' has {token} twice", here)
        fields[field] = _read_field(reader, spec[field], name, depth)
    try:
        return Component(kind, name, fields)
    except ModelLoadError as error:
        reader.fail(str(error), start)


def write_component(writer: Writer, component: Component) -> None:
    """Write a component as Kaldi does, its fields in their order."""
    writer.write_token(f"<{component.kind}>")
    convolution = component.kind == "TimeHeightConvolutionComponent"
    for field, value in component.fields.items():
        for token in OPENING.get(field, ()) if convolution else ():
            writer.write_token(token)
        writer.write_token(f"<{field}>")
        _write_value(writer, value, SPECS[component.kind][field])
        if convolution and field in CLOSING:
            writer.write_token(CLOSING[field])
    writer.write_token(f"</{component.kind}>")


_SILENT = {token for tokens in OPENING.values() for token in tokens} | set(CLOSING.values())


def _read_field(reader: Reader, field: Field, name: str, depth: int) -> Any:
    match field.type:
        case "int":
            return reader.read_int32()
        case "bool":
            return reader.read_bool()
        case "float" | "double":
            return _read_real(reader, double=field.type == "double")
        case "vector":
            return reader.read_vector()
        case "matrix":
            return reader.read_matrix()
        case "ints":
            return _read_ints(reader)
        case "pairs":
            return reader.read_int_pairs()
        case "2int":
            return reader.read_int32(), reader.read_int32()
        case "2float":
            return _read_real(reader, double=False), _read_real(reader, double=False)
        case "flag":
            return True
    count = reader.read_int32()
    if not 0 <= count <= 1000 or depth >= _DEEPEST:
        reader.fail(f"component '{short(name)}' has {count} components within it, {depth} levels deep: too many")
    return tuple(read_component(reader, f"{name}.{i}", depth + 1) for i in range(count))


def _read_real(reader: Reader, *, double: bool) -> Any:
    """A number; a numpy.float64 (which is a float) where the file holds 64 bits, so that 64 are written again."""
    if reader.binary:
        double = reader.peek_byte() == 8
    return np.float64(reader.read_double()) if double else reader.read_float()


def _read_ints(reader: Reader) -> Any:
    if not (reader.binary and reader.peek_token() == "FV"):
        return reader.read_int_vector()
    values = reader.read_vector()  # as Kaldi wrote PermuteComponents in 2015, with a wrong last number
    with np.errstate(invalid="ignore"):
        whole = np.floor(np.nan_to_num(values) + 0.5).clip(-1, 1 << 30).astype(np.int32)
    whole[-1:] = len(whole) - 1
    return whole


def _write_value(writer: Writer, value: Any, field: Field) -> None:
    match field.type:
        case "int":
            writer.write_int32(value)
        case "bool":
            writer.write_bool(value)
        case "float" | "double":
            _write_real(writer, value)
        case "vector":
            writer.write_vector(value)
        case "matrix":
            writer.write_matrix(value)
        case "ints":
            writer.write_int_vector(value)
        case "pairs":
            writer.write_int_pairs(value)
        case "2int":
            for number in value:
                writer.write_int32(number)
        case "2float":
            for number in value:
                _write_real(writer, number)
        case "components":
            writer.write_int32(len(value))
            for component in value:
                write_component(writer, component)


def _write_real(writer: Writer, value: Any) -> None:
    if isinstance(value, np.float64):
        writer.write_double(float(value))
    else:
        writer.write_float(value)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and bool(a == b or (a != a and b != b))
