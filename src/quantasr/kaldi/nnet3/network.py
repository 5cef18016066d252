"""The graph of an nnet3 network: nodes, components, and whether they fit together (Kaldi's nnet3/nnet-nnet.cc)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from quantasr.errors import ModelLoadError
from quantasr.kaldi.nnet3.components import Component, input_dim, output_dim, read_component, write_component
from quantasr.kaldi.nnet3.config import ConfigLine, format_line, parse_line
from quantasr.kaldi.nnet3.descriptors import (
    Append,
    Const,
    Descriptor,
    IfDefined,
    Node,
    Offset,
    ReplaceIndex,
    Round,
    Scale,
    nodes_of,
    parts_of,
)
from quantasr.kaldi.stream import Reader, short
from quantasr.kaldi.writer import Writer

_MOST_LINES = 100_000


class _NodeError(ModelLoadError):
    """What is wrong with the node of line ``line``."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line


READ_NOTHING = frozenset({"ConstantComponent", "DropoutMaskComponent"})
"""Components whose output does not depend on the node that they are said to read, which may be themselves."""


@dataclass(frozen=True)
class Network:
    """``lines`` are the nodes in their order, ``components`` by name what component-nodes compute.

    Raises ModelLoadError, naming the node, when one is unknown or defined twice, when dimensions do not fit, or when a
    node reads itself with no time between.
    """

    lines: tuple[ConfigLine, ...]
    components: Mapping[str, Component]

    def __post_init__(self) -> None:
        by_name: dict[str, ConfigLine] = {}
        for at, line in enumerate(self.lines):
            if line.name in by_name:
                raise _NodeError(at, f"node '{line.name}' is defined twice")
            by_name[line.name] = line
        for at, line in enumerate(self.lines):
            self._check_line(at, line, by_name)
        for kind in ("input-node", "output-node"):
            if all(line.kind != kind for line in self.lines):
                raise ModelLoadError(f"the network has no {kind}")
        self._check_loops()

    @property
    def inputs(self) -> dict[str, int]:
        """Input nodes and their dimensions."""
        return {line.name: line.dim for line in self.lines if line.kind == "input-node" and line.dim}

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the output nodes."""
        return tuple(line.name for line in self.lines if line.kind == "output-node")

    def __getitem__(self, name: str) -> ConfigLine:
        """The node ``name``."""
        return self._by_name[name]

    def dims(self) -> dict[str, int]:
        """How many numbers each node gives for a frame."""
        return {line.name: self._dim(line) for line in self.lines}

    def descriptor_dim(self, descriptor: Descriptor) -> int:
        """How many numbers a descriptor gives; raises ValueError where its parts do not fit."""
        match descriptor:
            case Node(name):
                return self._dim(self._by_name[name])
            case Const():
                return descriptor.dim
            case Append(parts):
                return sum(map(self.descriptor_dim, parts))
        dims = [self.descriptor_dim(part) for part in parts_of(descriptor)]
        if len(set(dims)) > 1:
            raise ValueError(f"the parts of {type(descriptor).__name__} have {' and '.join(map(str, dims))} numbers")
        return dims[0]

    @cached_property
    def _by_name(self) -> dict[str, ConfigLine]:
        return {line.name: line for line in self.lines}

    def _dim(self, line: ConfigLine) -> int:
        if line.component is not None:
            return output_dim(self.components[line.component])
        if line.dim is not None:
            return line.dim
        assert line.input is not None
        return self.descriptor_dim(line.input)

    def _check_line(self, at: int, line: ConfigLine, by_name: Mapping[str, ConfigLine]) -> None:
        where = f"node '{line.name}'"
        if line.component is not None and line.component not in self.components:
            raise _NodeError(at, f"{where}: there is no component '{line.component[:80]}'")
        if line.input is None:
            return
        for name in nodes_of(line.input):
            if name not in by_name:
                raise _NodeError(at, f"{where} reads '{name[:80]}', which is not there")
            source = by_name[name]
            if source.kind == "output-node" or (line.kind == source.kind == "dim-range-node"):
                raise _NodeError(at, f"{where} reads the {source.kind} '{name}', which is not allowed")
            if source.component is not None and source.component not in self.components:
                raise _NodeError(at, f"{where} reads '{name}', whose component '{source.component[:80]}' is not there")
        try:
            found = self.descriptor_dim(line.input)
        except ValueError as error:
            raise _NodeError(at, f"{where}: {error}") from error
        if line.component is not None:
            wanted = input_dim(self.components[line.component])
            if found != wanted:
                raise _NodeError(at, f"{where} reads {found} numbers, but '{line.component}' takes {wanted}")
        if line.dim is not None and line.dim_offset + line.dim > found:
            raise _NodeError(at, f"{where} takes {line.dim} numbers from {line.dim_offset} on, out of {found}")

    def _check_loops(self) -> None:
        """Refuse what has no order of computation even within one frame (Kahn 1962)."""
        reads = {line.name: set(self._reads_now(line)) for line in self.lines}
        readers: dict[str, list[str]] = {}
        for name, sources in reads.items():
            for source in sources:
                readers.setdefault(source, []).append(name)
        waits = {name: len(sources) for name, sources in reads.items()}
        ready = [name for name, count in waits.items() if not count]
        while ready:
            name = ready.pop()
            del waits[name]
            for reader in readers.get(name, ()):
                waits[reader] -= 1
                if not waits[reader]:
                    ready.append(reader)
        if waits:
            name, seen = next(iter(waits)), set()
            while name not in seen:  # from one that waits to what it waits for, until the loop closes
                seen.add(name)
                name = next(source for source in reads[name] if source in waits)
            at = next(i for i, line in enumerate(self.lines) if line.name == name)
            raise _NodeError(at, f"node '{name}' reads itself with no time between: a loop")

    def _reads_now(self, line: ConfigLine) -> Iterator[str]:
        """The nodes that ``line`` reads at its own time."""
        if line.input is None:
            return
        own = {0}
        if line.component is not None:
            if self.components[line.component].kind in READ_NOTHING:  # Kaldi's scripts let them name themselves
                return
            fields = self.components[line.component].fields
            if "TimeOffsets" in fields:
                own = set(fields["TimeOffsets"].tolist())
            elif "RequiredTimeOffsets" in fields:
                own = set(fields["Offsets"][:, 0].tolist())
        yield from (name for name, t in _reads_at(line.input, 0) if -t in own)


def _reads_at(descriptor: Descriptor, t: int) -> Iterator[tuple[str, int]]:
    match descriptor:
        case Node(name):
            yield name, t
        case Offset(part, by, x):
            if not x:
                yield from _reads_at(part, t + by)
        case ReplaceIndex() | Round():  # at another time than its own
            return
        case Scale(_, part) | IfDefined(part):
            yield from _reads_at(part, t)
        case _:
            for part in parts_of(descriptor):
                yield from _reads_at(part, t)


def read_network(reader: Reader) -> Network:
    """The network that comes next; raises KaldiFileError."""
    start = reader.offset
    reader.expect_token("<Nnet3>")
    if reader.read_line().strip("\r"):
        reader.fail("a newline was expected behind <Nnet3>")
    lines: list[ConfigLine] = []
    offsets: list[int] = []
    while True:
        here = reader.offset
        text = reader.read_line()
        if text in ("", "\r"):
            break
        text = text.partition("#")[0].strip(" \t\r")
        if not text:
            continue
        try:
            lines.append(parse_line(text))
        except ValueError as error:
            reader.fail(str(error), here)
        offsets.append(here)
        if len(lines) > _MOST_LINES:
            reader.fail(f"a network of more than {_MOST_LINES} nodes")
    reader.expect_token("<NumComponents>")
    count = reader.read_int32()
    components: dict[str, Component] = {}
    for _ in range(count):
        reader.expect_token("<ComponentName>")
        here = reader.offset
        name = reader.read_token()
        if name in components:
            reader.fail(f"component '{short(name)}' stands twice", here)
        components[name] = read_component(reader, name)
    reader.expect_token("</Nnet3>")
    try:
        return Network(tuple(lines), components)
    except _NodeError as error:
        reader.fail(str(error), offsets[error.line])
    except ModelLoadError as error:
        reader.fail(str(error), start)


def write_network(writer: Writer, network: Network) -> None:
    """Write ``network`` as Kaldi does."""
    newline = "" if writer.binary else "\n"
    writer.write_token("<Nnet3>")
    writer.write_text("\n" + "".join(format_line(line) + "\n" for line in network.lines) + "\n")
    writer.write_token("<NumComponents>")
    writer.write_int32(len(network.components))
    writer.write_text(newline)
    for name, component in network.components.items():
        writer.write_token("<ComponentName>")
        writer.write_token(name)
        write_component(writer, component)
        writer.write_text(newline)
    writer.write_token("</Nnet3>")
