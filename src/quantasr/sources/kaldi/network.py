"""An nnet3 network as a PyTorch module: the config's own graph, each component a submodule under its own name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantasr.errors import ModelLoadError
from quantasr.kaldi.nnet3.components import Component
from quantasr.kaldi.nnet3.config import Descriptor, Node, Sum
from quantasr.sources.kaldi import layers, statistics
from quantasr.sources.kaldi.plan import GraphNode, Plan, Span, names_of
from quantasr.sources.kaldi.reading import Values
from quantasr.sources.kaldi.recurrent import recur


class KaldiNetwork(nn.Module):
    """Features with their contexts -> log-likelihoods of every ``k``-th frame.

    ``[batch, left + frames + right, input_dim (+ ivector_dim)]`` -> ``[batch, ceil(frames / k), pdfs]``. ``left`` and
    ``right`` are the model's contexts. The columns of an i-vector stand beside each frame: where Kaldi's config says
    ``ReplaceIndex(ivector, t, 0)``, it too means the i-vector that belongs to the frame.
    Every node is run on the frames that :class:`Plan` found for it, so the results are those of Kaldi on a whole
    recording, with no chunks.
    """

    log_priors: Tensor | None

    def __init__(
        self,
        nodes: Mapping[str, GraphNode],
        components: Mapping[str, Component],
        ranges: Mapping[str, tuple[int, int | None]],
        plan: Plan,
        output: str,
        inputs: Mapping[str, tuple[int, int]],
        dims: Mapping[str, int],
        priors: Any = (),
    ) -> None:
        """``components``: of each node that has one; ``ranges``: (first, number of) channels of a dim-range-node;
        ``inputs``: the columns ``(from, to)`` of each input node.

        ``dims``: the number of channels that each node gives. ``priors`` ``[pdfs]`` are divided out of the result.
        """
        super().__init__()
        self._nodes, self._plan, self._output, self._inputs, self._dims = nodes, plan, output, inputs, dims
        self._ranges = ranges
        self._sums: dict[str, tuple[Descriptor, ...]] = {}
        self._kinds = {name: component.kind for name, component in components.items()}
        self._paths: dict[str, str] = {}
        rows = _tail(nodes, components, plan, output)
        self._rows = rows
        for group in plan.order:
            for name in group:
                if name in components:
                    path = self._paths[name] = _path(components[name].name, name, self._paths.values())
                    layer = self._layer(name, components[name], rows)
                    if components[name].kind.startswith("Fixed"):
                        layer.requires_grad_(False)
                    _attach(self, path, layer)
        constraints = {
            path: components[name].fields.get("OrthonormalConstraint", 0.0) for name, path in self._paths.items()
        }
        self.orthonormal = {path: float(scale) for path, scale in constraints.items() if scale}
        self.register_buffer("log_priors", torch.tensor(np.log(priors), dtype=torch.float32) if len(priors) else None)
        self.eval()  # training is what one has to ask for: its batch norms give other numbers

    @property
    def subsampling(self) -> int:
        """Frames of features for each row of log-likelihoods."""
        return self._plan.subsampling

    @property
    def contexts(self) -> tuple[int, int]:
        """Frames before and after the recording that the input holds."""
        span = self._plan.spans[next(iter(self._inputs))]
        return -span.start, span.end

    @property
    def hears_the_end(self) -> bool:
        """Whether what follows a recording would change what comes before."""
        return self._plan.backward or bool(self._plan.windows)

    def forward(self, features: Tensor) -> Tensor:
        return self.result(self.values(features))

    def values(self, features: Tensor, known: Mapping[str, Tensor] | None = None) -> Values:
        """What every node gives; what is ``known`` of them is not computed."""
        left, right = self.contexts
        values = Values(self._plan, (features.shape[1] - left - right - 1) // self.subsampling + 1, self._sums)
        flat = features.transpose(1, 2).unsqueeze(2)
        if self.subsampling > 1:  # frames after the last output's context, which Kaldi does not look at
            flat = flat[..., : self.subsampling * (values.count - 1) + left + 1 + right]
        values.of = {name: flat[:, begin:end] for name, (begin, end) in self._inputs.items()} | dict(known or {})
        for group in self._plan.order:
            if group[0] in values.of:
                continue
            if group[0] in self._plan.recurrent:
                values.of |= recur(group, self._nodes, self.apply_to, self._dims, values)
            else:
                (name,) = group
                values.of[name] = self._compute(name, values)
        return values

    def result(self, values: Values) -> Tensor:
        """The output of a network that has computed ``values``."""
        out = values.of[self._output]
        if not self._rows:
            out = out.squeeze(2).transpose(1, 2)
        return out if self.log_priors is None else out - self.log_priors

    @property
    def paths(self) -> Mapping[str, str]:
        """Where the component of each node is, as a submodule."""
        return self._paths

    def shares(self, other: KaldiNetwork) -> list[str]:
        """The nodes that both compute on the same frames."""
        spans = self._plan.spans
        found = {n for n, span in other._plan.spans.items() if spans.get(n) == span and n in self._nodes}
        return [n for n in found if n not in (*self._rows, *other._rows)]

    def forget(self, node: str) -> None:
        """Let go of a node's component: another network has it."""
        path = self._paths.pop(node, None)
        if path is not None:
            parent, _, last = path.rpartition(".")
            del self.get_submodule(parent)._modules[last]

    def distribute_scales(self) -> None:
        """From now on, compute a scaled sum as the sum of scaled terms.

        The bypass of a TDNN-F layer is one. It costs an addition more; but then the sum itself is read by the next
        product alone, and an engine can round it to int8 within the addition, with no pass over it of its own.
        """
        for name, node in self._nodes.items():
            plain = self._kinds.get(name) in (None, "NoOpComponent", "GeneralDropoutComponent")
            if plain and isinstance(node.reads, Sum) and name not in self._ranges and name not in self._plan.recurrent:
                self._sums[name] = node.reads.parts

    # ---- building ----

    def _layer(self, name: str, component: Component, rows: Sequence[str]) -> nn.Module:
        kind = component.kind
        if name in rows:
            if kind in layers.MATRICES:
                return layers.rows_product(*layers.matrix(component))
            module = layers.ELEMENTWISE[kind](component)
            if isinstance(module, layers.Softmax):
                module.dim = -1
            return module
        if kind in layers.MATRICES:
            return layers.product(*layers.matrix(component))
        if kind in layers.IN_TIME:
            span, offsets = self._plan.spans[name], self._nodes[name].offsets
            fine, spacing = _spacing(span, offsets, component.kind)
            if kind == "TimeHeightConvolutionComponent":
                return layers.TimeHeight(component, span.step // fine, spacing // fine)
            if spacing:
                taps = len(offsets)
                return layers.product(*layers.matrix(component), taps, span.step // fine, spacing // fine)
            return layers.product(*layers.matrix(component))
        if kind in layers.ELEMENTWISE:
            return layers.ELEMENTWISE[kind](component)
        if kind in statistics.KINDS:
            return statistics.layer(name, component, self._plan)
        raise ModelLoadError(
            f"component '{component.name}' of type {kind}: can be read but not run; those that can are "
            f"{', '.join(sorted({*layers.MATRICES, *layers.IN_TIME, *layers.ELEMENTWISE, *statistics.KINDS}))}"
        )

    # ---- running ----

    def _compute(self, name: str, values: Values) -> Tensor:
        node, span = self._nodes[name], self._plan.spans[name]
        if name in self._plan.windows:
            return self.apply_to(name, values.read(node.reads, self._plan.windows[name][1]))
        fine, spacing = _spacing(span, node.offsets, self._kinds.get(name))
        if spacing:
            low, high = min(node.offsets), max(node.offsets)
            x = values.read(node.reads, Span(span.start + low, span.end + high, fine))
        else:
            x = torch.cat([values.read(node.reads, span.moved(offset)) for offset in node.offsets], dim=1)
        if self._rows and name == self._rows[0]:
            x = x.squeeze(2).transpose(1, 2)
        return self.apply_to(name, x)

    def apply_to(self, name: str, x: Tensor) -> Tensor:
        """What a node makes of what it reads."""
        if name in self._ranges:
            first, number = self._ranges[name]
            return x[:, first : first + (number or 0)]
        path = self._paths.get(name)
        if path is None:
            return x
        y: Tensor = self.get_submodule(path)(x)
        return y


def _spacing(span: Span, offsets: Sequence[int], kind: str | None) -> tuple[int, int]:
    """(step at which an input must be read for all offsets, the offsets' distance; 0 where that is not even)."""
    gaps = set(np.diff(offsets).tolist())
    if kind == "TimeHeightConvolutionComponent" and gaps:  # its kernel holds zeros for what is left out
        return gcd(span.step, *gaps), gcd(*gaps)
    if len(gaps) != 1 or min(gaps) <= 0:
        return (span.step, span.step) if len(offsets) == 1 else (span.step, 0)
    spacing = gaps.pop()
    return gcd(span.step, spacing), spacing


def _tail(
    nodes: Mapping[str, GraphNode], components: Mapping[str, Component], plan: Plan, output: str
) -> tuple[str, ...]:
    """The last product and what follows it: these work on frames as rows, as the result is wanted.

    Turning round a few hundred channels is cheap, and thousands of pdfs is not: 1.4 of 5.1 ms for 10 s of a TDNN-F.
    """
    readers = Counter(name for node in plan.spans if node in nodes for name in set(names_of(nodes[node].reads)))
    found: list[str] = []
    name = output
    while True:
        reads, kind = nodes[name].reads, components[name].kind if name in components else None
        found.append(name)
        if kind in layers.MATRICES:
            return tuple(reversed(found))
        plain = kind in (None, "NoOpComponent", "LogSoftmaxComponent", "SoftmaxComponent")
        if not plain or not isinstance(reads, Node) or reads.name not in nodes or readers[reads.name] > 1:
            return ()
        name = reads.name


def _path(component: str, node: str, taken: Any) -> str:
    return component if component not in taken else node


def _attach(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a submodule under a path with dots, which become levels."""
    *parents, last = path.split(".")
    try:
        for name in parents:
            if name not in root._modules:
                root.add_module(name, nn.Module())
            root = root.get_submodule(name)
        for name, child in root.get_submodule(last).named_children() if last in root._modules else ():
            module.add_module(name, child)  # a component whose name begins another's
        root._modules.pop(last, None)
        root.add_module(last, module)
    except KeyError as error:
        raise ModelLoadError(f"component '{path}': cannot have this name here ({error.args[0]}); rename it") from error
