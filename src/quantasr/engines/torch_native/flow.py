"""Watch which tensor goes from which layer to which, through which operations, while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from quantasr.engines.torch_native.kernels import Geometry, geometry_of
from quantasr.engines.torch_native.operations import ADD, CLAMP, RELU, carries
from quantasr.engines.torch_native.tensors import LAYER_FUNCTIONS, WEIGHT_SHAPES, Operation, is_metadata

_LAYOUT = {Tensor.view, Tensor.view_as, Tensor.as_strided, torch.as_strided, Tensor.stride, Tensor.data_ptr}
"""Operations that need the layout in memory that float functions give."""

Observe = Callable[[str, Tensor], None]


@dataclass
class Node:
    """A layer or a residual sum: something that makes values.

    ``readers`` are the layers and sums that read its values, perhaps through operations that only move them, and
    ``""`` for anything else. ``direct`` are the readers of its very output, where ``relu`` and ``move`` stand for
    operations that go on in int8. ``laid_out`` says that its float values reach code that depends on their layout.
    A layer has a ``shape``, that of its input, a ``weight_shape``, that of the weight as its function gets it, and a
    ``geometry`` if a kernel exists for how it is called.
    """

    name: str
    is_layer: bool
    calls: int = 0
    sources: tuple[str, ...] = ()
    readers: list[str] = field(default_factory=list)
    direct: list[str] = field(default_factory=list)
    laid_out: bool = False
    geometry: Geometry | None = None
    shape: tuple[int, ...] = ()
    weight_shape: tuple[int, ...] = ()

    @property
    def relu(self) -> bool:
        """Whether nothing but a ReLU reads the output."""
        return bool(self.direct) and set(self.direct) == {"relu"}


class _Tag(NamedTuple):
    """Where a tensor's values come from: the node that made them, whether they were moved since; all nodes behind."""

    source: str
    moved: bool
    behind: frozenset[str]


_NOWHERE = _Tag("", False, frozenset())


class Flow(TorchFunctionMode):
    """While active, follows the outputs of the layers whose weights are ``weights``, by ``id`` of the weight.

    ``observe`` is told of every output of a layer, or of a sum of two such, with its name.
    """

    def __init__(self, weights: Mapping[int, str], observe: Observe | None = None) -> None:
        super().__init__()
        self.nodes: dict[str, Node] = {}
        self._weights = dict(weights)
        self._kept: list[Tensor] = []  # reshaped weights, whose ids stay taken
        self._observe = observe

    def __torch_function__(
        self, func: Operation, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if is_metadata(func):
            return func(*args, **kwargs)
        path = self._layer(func, args, kwargs)
        out = func(*args, **kwargs)
        if path is not None:
            self._at_layer(path, func, args, kwargs, out)
        elif self._is_sum(func, args, kwargs, out):
            self._at_sum(args, out)
        else:
            self._at_other(func, args, kwargs, out)
        return out

    def finish(self, out: Any) -> None:
        """What the model gives away is read outside."""
        for leaf in tree_leaves(out):
            self._read(leaf, "")

    def _layer(self, func: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        if func not in LAYER_FUNCTIONS:
            return None
        return self._weights.get(id(args[1] if len(args) > 1 else kwargs.get("weight")))

    def _at_layer(self, path: str, func: Operation, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        x = args[0] if args else kwargs["input"]
        self._read(x, path)
        geometry = geometry_of(func, args, kwargs)
        node = self.nodes.get(path)
        if node is None:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            node = Node(path, True, geometry=geometry, shape=tuple(x.shape), weight_shape=tuple(weight.shape))
            self.nodes[path] = node
        node.calls += 1
        node.sources += (_tag(x).source,)
        if geometry != node.geometry:
            node.geometry = None
        self._made(out, path)

    def _is_sum(self, func: Operation, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> bool:
        operands = args if func in ADD and len(args) == 2 and not kwargs else ()
        return bool(operands) and all(
            isinstance(x, Tensor) and bool(_tag(x).source) and x.shape == out.shape for x in operands
        )

    def _at_sum(self, args: tuple[Any, ...], out: Tensor) -> None:
        sources = tuple(_tag(x).source for x in args)
        name = f"({' + '.join(sources)})"
        for x in args:
            self._read(x, name)
        node = self.nodes.setdefault(name, Node(name, False, sources=sources))
        node.calls += 1
        self._made(out, name)

    def _at_other(self, func: Operation, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if func in WEIGHT_SHAPES and id(first) in self._weights:
            self._weights[id(out)] = self._weights[id(first)]
            self._kept.append(out)
        if first is not None and isinstance(out, Tensor) and _tag(first).source and carries(func, args, kwargs):
            tag = _tag(first)
            changed = func in RELU or func in CLAMP  # perhaps in place
            if out is not first or changed:
                if not tag.moved:
                    self.nodes[tag.source].direct.append("relu" if func in RELU else "move")
                _set_tag(out, tag._replace(moved=True))
            args = args[1:]
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for leaf in leaves:
            self._read(leaf, "")
        if self._observe is None:
            self._note_layout(func, leaves, out)

    def _note_layout(self, func: Operation, leaves: list[Tensor], out: Any) -> None:
        behind = frozenset[str]().union(*(_tag(leaf).behind for leaf in leaves))
        if func in _LAYOUT:
            for name in behind:
                self.nodes[name].laid_out = True
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and not _tag(leaf).source:
                _set_tag(leaf, _Tag("", True, behind))

    def _read(self, x: Any, reader: str) -> None:
        tag = _tag(x)
        if tag.source:
            node = self.nodes[tag.source]
            node.readers.append(reader)
            if not tag.moved:
                node.direct.append(reader)

    def _made(self, out: Tensor, name: str) -> None:
        _set_tag(out, _Tag(name, False, frozenset({name})))
        if self._observe is not None:
            self._observe(name, out)


def _tag(x: Any) -> _Tag:
    tag: _Tag = getattr(x, "_quantasr_tag", _NOWHERE)
    return tag


def _set_tag(x: Tensor, tag: _Tag) -> None:
    x._quantasr_tag = tag  # type: ignore[attr-defined]
