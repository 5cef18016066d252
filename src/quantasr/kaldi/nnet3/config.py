"""The lines of an nnet3 network's config (Kaldi's nnet3/nnet-nnet.cc), and the descriptors in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from quantasr.kaldi.nnet3.descriptors import (
    Append,
    Const,
    Descriptor,
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
    parts_of,
    valid_name,
)

__all__ = [
    "Append",
    "ConfigLine",
    "Const",
    "Descriptor",
    "Failover",
    "IfDefined",
    "Kind",
    "Node",
    "Offset",
    "ReplaceIndex",
    "Round",
    "Scale",
    "Sum",
    "Switch",
    "format_descriptor",
    "format_line",
    "nodes_of",
    "parse_descriptor",
    "parse_line",
    "parts_of",
]

Kind: TypeAlias = Literal["input-node", "component-node", "dim-range-node", "output-node"]
_KEYS = {
    "input-node": ("name", "dim"),
    "component-node": ("name", "component", "input"),
    "dim-range-node": ("name", "input-node", "dim-offset", "dim"),
    "output-node": ("name", "input", "objective"),
}
_KEY = re.compile(r"(?:^|(?<=[ \t]))([A-Za-z_][-\w.]*+)=", re.ASCII)
_SIZE = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class ConfigLine:
    """One node of a network.

    ``input`` is what a component-node, a dim-range-node (a plain node there) or an output-node reads; ``component``
    names what a component-node computes; ``dim`` is the size of an input-node, or of the columns that a dim-range-node
    takes from ``dim_offset`` on. Raises ValueError for what does not belong together.
    """

    kind: Kind
    name: str
    input: Descriptor | None = None
    component: str | None = None
    dim: int | None = None
    dim_offset: int = 0
    objective: Literal["linear", "quadratic"] = "linear"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"'{self.kind}' is no kind of node")
        if not valid_name(self.name):
            raise ValueError(f"a node cannot be named '{self.name[:40]}'")
        needs = _KEYS[self.kind]
        if ("component" in needs) != (self.component is not None):
            raise ValueError(f"node '{self.name}': a component belongs to component-nodes, and only to them")
        if ("dim" in needs) != (self.dim is not None):
            raise ValueError(f"node '{self.name}': a dim belongs to input-nodes and dim-range-nodes, and only to them")
        if (self.kind == "input-node") != (self.input is None):
            raise ValueError(f"node '{self.name}': every node but an input-node reads something")
        if self.kind == "dim-range-node" and not isinstance(self.input, Node):
            raise ValueError(f"node '{self.name}': a dim-range-node reads a node, nothing else")
        if (self.dim is not None and self.dim <= 0) or self.dim_offset < 0:
            raise ValueError(f"node '{self.name}': dim {self.dim} at {self.dim_offset} cannot be")
        if self.objective not in ("linear", "quadratic"):
            raise ValueError(f"node '{self.name}': '{self.objective}' is no objective")


def parse_line(text: str) -> ConfigLine:
    """The node that a line of a config defines; raises ValueError with what is wrong."""
    kind, _, rest = text.strip().partition(" ")
    if kind not in _KEYS:
        raise ValueError(f"a node was expected, found '{kind[:40]}'")
    values = _values(rest)
    unknown = [key for key in values if key not in _KEYS[kind]]
    missing = [key for key in _KEYS[kind] if key not in values and key != "objective"]
    if unknown or missing:
        raise ValueError(f"a line '{kind}' {'has no' if missing else 'has an unknown'} {(missing or unknown)[0]}=")
    name = values["name"]
    try:
        return ConfigLine(
            kind=kind,  # type: ignore[arg-type]  # checked above
            name=name,
            input=Node(values["input-node"]) if "input-node" in values else _descriptor(values.get("input")),
            component=values.get("component"),
            dim=_size(values, "dim") if "dim" in values else None,
            dim_offset=_size(values, "dim-offset") if "dim-offset" in values else 0,
            objective=values.get("objective", "linear"),  # type: ignore[arg-type]  # the class checks it
        )
    except ValueError as error:
        where = f"node '{name[:40]}'"
        raise ValueError(str(error) if where in str(error) else f"{where}: {error}") from error


def format_line(line: ConfigLine) -> str:
    """``line`` as Kaldi writes it, without a newline."""
    words = [line.kind, f"name={line.name}"]
    if line.component is not None:
        words.append(f"component={line.component}")
    if line.kind == "dim-range-node":
        assert isinstance(line.input, Node)
        words += [f"input-node={line.input.name}", f"dim-offset={line.dim_offset}"]
    elif line.input is not None:
        words.append(f"input={format_descriptor(line.input)}")
    if line.dim is not None:
        words.append(f"dim={line.dim}")
    if line.kind == "output-node":
        words.append(f"objective={line.objective}")
    return " ".join(words)


def _values(text: str) -> dict[str, str]:
    """``key=value`` pairs; a value may hold spaces and goes up to the next key, or is in quotes."""
    keys = list(_KEY.finditer(text))
    if not keys or text[: keys[0].start()].strip():
        raise ValueError(f"key=value was expected, found '{text.strip()[:40]}'")
    values: dict[str, str] = {}
    for key, after in zip(keys, [*keys[1:], None], strict=True):
        value = text[key.end() : after.start() if after else len(text)].strip(" \t\r")
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        if key[1] in values:
            raise ValueError(f"{key[1]}= stands twice in a line")
        values[key[1]] = value
    return values


def _descriptor(text: str | None) -> Descriptor | None:
    return None if text is None else parse_descriptor(text)


def _size(values: dict[str, str], key: str) -> int:
    if not _SIZE.fullmatch(values[key]):
        raise ValueError(f"{key}={values[key][:40]} is no size")
    return int(values[key])
