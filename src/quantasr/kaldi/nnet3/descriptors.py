"""What an nnet3 node reads: ``Append(Offset(input, -1), ...)`` as a tree (Kaldi's nnet3/nnet-descriptor)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class Node:
    """The output of the node ``name``."""

    name: str


@dataclass(frozen=True)
class Append:
    """The parts beside each other."""

    parts: tuple[Descriptor, ...]


@dataclass(frozen=True)
class Sum:
    """The sum of the parts."""

    parts: tuple[Descriptor, ...]


@dataclass(frozen=True)
class Scale:
    """``value`` times the part."""

    value: float
    part: Descriptor


@dataclass(frozen=True)
class Const:
    """``dim`` times the number ``value``."""

    value: float
    dim: int


@dataclass(frozen=True)
class Offset:
    """The part ``t`` frames (and ``x`` steps of the index x) later."""

    part: Descriptor
    t: int
    x: int = 0


@dataclass(frozen=True)
class ReplaceIndex:
    """The part at the fixed index ``value`` of time (``t``) or of ``x``."""

    part: Descriptor
    variable: Literal["t", "x"]
    value: int


@dataclass(frozen=True)
class Round:
    """The part at the time rounded down to a multiple of ``modulus``."""

    part: Descriptor
    modulus: int


@dataclass(frozen=True)
class Switch:
    """The part number time modulo number of parts."""

    parts: tuple[Descriptor, ...]


@dataclass(frozen=True)
class IfDefined:
    """The part, and zero where it cannot be computed."""

    part: Descriptor


@dataclass(frozen=True)
class Failover:
    """``a``, and ``b`` where ``a`` cannot be computed."""

    a: Descriptor
    b: Descriptor


Descriptor: TypeAlias = (
    Node | Append | Sum | Scale | Const | Offset | ReplaceIndex | Round | Switch | IfDefined | Failover
)

_LISTS: dict[str, type[Append] | type[Sum] | type[Switch]] = {"Append": Append, "Sum": Sum, "Switch": Switch}
_NAMES = {*_LISTS, "Scale", "Const", "Offset", "ReplaceIndex", "Round", "IfDefined", "Failover"}
_WORD = re.compile(r"[ \t]*([(),]|[^ \t(),]+)")
_NAME = re.compile(r"[A-Za-z_][-\w.]*", re.ASCII)
_NUMBER = re.compile(r"[+-]?([0-9]++(\.[0-9]*+)?|\.[0-9]++)([eE][+-]?[0-9]{1,4})?")
_INTEGER = re.compile(r"[+-]?[0-9]{1,10}")
_DEEPEST = 50


def valid_name(name: str) -> bool:
    """Whether Kaldi takes ``name`` for a node or component: letters, digits, '_', '-' and '.'."""
    return bool(_NAME.fullmatch(name))


def parse_descriptor(text: str) -> Descriptor:
    """The descriptor that ``text`` writes; raises ValueError with what is wrong."""
    words = _WORD.findall(text.rstrip(" \t"))
    parser = _Parser(words)
    descriptor = parser.descriptor(0)
    if parser.at < len(words):
        raise ValueError(f"nothing was expected behind a descriptor, found '{parser.word()[:40]}'")
    return descriptor


def format_descriptor(descriptor: Descriptor) -> str:
    """``descriptor`` as Kaldi writes it."""
    match descriptor:
        case Node(name):
            return name
        case Append(parts) | Sum(parts) | Switch(parts):
            return f"{type(descriptor).__name__}({', '.join(map(format_descriptor, parts))})"
        case Scale(value, part):
            return f"Scale({value:.6g}, {format_descriptor(part)})"
        case Const(value, dim):
            return f"Const({value:.6g}, {dim})"
        case Offset(part, t, x):
            return f"Offset({format_descriptor(part)}, {t}{f', {x}' if x else ''})"
        case ReplaceIndex(part, variable, value):
            return f"ReplaceIndex({format_descriptor(part)}, {variable}, {value})"
        case Round(part, modulus):
            return f"Round({format_descriptor(part)}, {modulus})"
        case IfDefined(part):
            return f"IfDefined({format_descriptor(part)})"
        case Failover(a, b):
            return f"Failover({format_descriptor(a)}, {format_descriptor(b)})"


def parts_of(descriptor: Descriptor) -> tuple[Descriptor, ...]:
    """The descriptors right below."""
    match descriptor:
        case Append(parts) | Sum(parts) | Switch(parts):
            return parts
        case Failover(a, b):
            return a, b
        case Node() | Const():
            return ()
        case _:
            return (descriptor.part,)


def nodes_of(descriptor: Descriptor) -> Iterator[str]:
    """Names of all nodes that are read, in order, with repetitions."""
    if isinstance(descriptor, Node):
        yield descriptor.name
    for part in parts_of(descriptor):
        yield from nodes_of(part)


class _Parser:
    """Recursive descent over words, never deeper than ``_DEEPEST``."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.at = 0

    def word(self) -> str:
        if self.at >= len(self.words):
            raise ValueError("a descriptor ends too early")
        self.at += 1
        return self.words[self.at - 1]

    def expect(self, wanted: str) -> None:
        word = self.word()
        if word != wanted:
            raise ValueError(f"'{wanted}' was expected in a descriptor, found '{word[:40]}'")

    def descriptor(self, depth: int) -> Descriptor:
        if depth > _DEEPEST:
            raise ValueError(f"a descriptor is nested deeper than {_DEEPEST}")
        name = self.word()
        if name not in _NAMES:
            if not valid_name(name):
                raise ValueError(f"a descriptor was expected, found '{name[:40]}'")
            return Node(name)
        self.expect("(")
        descriptor = self._inside(name, depth + 1)
        self.expect(")")
        return descriptor

    def _inside(self, name: str, depth: int) -> Descriptor:
        if name == "Scale":
            value = self._number()
            self.expect(",")
            return Scale(value, self.descriptor(depth))
        if name == "Const":
            value = self._number()
            self.expect(",")
            return Const(value, self._integer(1))
        part = self.descriptor(depth)
        if name == "IfDefined":
            return IfDefined(part)
        if name in _LISTS:
            parts = [part]
            while self._comma():
                parts.append(self.descriptor(depth))
            return _LISTS[name](tuple(parts))
        self.expect(",")
        if name == "Failover":
            return Failover(part, self.descriptor(depth))
        if name == "Round":
            return Round(part, self._integer(1))
        if name == "Offset":
            return Offset(part, self._integer(), self._integer() if self._comma() else 0)
        variable = self.word()
        if variable not in ("t", "x"):
            raise ValueError(f"ReplaceIndex wants t or x, found '{variable[:40]}'")
        self.expect(",")
        return ReplaceIndex(part, "t" if variable == "t" else "x", self._integer())

    def _comma(self) -> bool:
        found = self.at < len(self.words) and self.words[self.at] == ","
        self.at += found
        return found

    def _number(self) -> float:
        word = self.word()
        if not _NUMBER.fullmatch(word) or not isfinite(float(word)):
            raise ValueError(f"a number was expected in a descriptor, found '{word[:40]}'")
        return float(word)

    def _integer(self, least: int = -(1 << 31)) -> int:
        word = self.word()
        if not _INTEGER.fullmatch(word) or not least <= int(word) < 1 << 31:
            raise ValueError(f"an integer{f' from {least}' if least > 0 else ''} was expected, found '{word[:40]}'")
        return int(word)
