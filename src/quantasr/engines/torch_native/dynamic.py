"""Layers without static scales: int8 with a scale from each call, float16 weights, packed embeddings."""

from __future__ import annotations

import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from quantasr.engines.torch_native.backends import packing_for
from quantasr.engines.torch_native.kernels import Weights
from quantasr.engines.torch_native.tensors import Operation, as_float
from quantasr.engines.torch_native.trace import Event, note

CELLS = {nn.LSTMCell: "lstm_cell", nn.GRUCell: "gru_cell", nn.RNNCell: "rnn_cell"}
RECURRENT = {nn.LSTM: "lstm", nn.GRU: "gru", **CELLS}
"""Modules that are replaced as a whole, because they hand all their weights to one function."""


@dataclass(frozen=True)
class DynamicLayer:
    """A layer without static scales.

    ``kind`` is ``linear``, ``conv1d``, ``conv2d``, ``embedding``, ``embedding_bag`` or one of :data:`RECURRENT`.
    ``bits`` are those of the weights: 16 is float16, anything less integers.
    """

    path: str
    kind: str
    bits: int

    @property
    def precision(self) -> str:
        """The type that it multiplies in; float16 weights are unpacked and multiplied in float."""
        return "int8" if self.bits <= 8 else "fp32"


class DynamicLinear:
    """A linear layer with packed weights; stands in its ``PackedWeight``."""

    def __init__(self, layer: DynamicLayer, weights: Weights, backend: str) -> None:
        self.layer, self.weights = layer, weights
        self.name = f"{backend} linear_dynamic{'_fp16' if layer.bits == 16 else ''}"
        # Inputs of 7 bits where weights of 8, from an older folder, would saturate.
        self._reduce_range = layer.bits <= 8 and not weights.exact(backend)
        self._packed = _pack(weights, layer.bits, backend)

    def float_weight(self) -> Tensor:
        """The dequantized weight."""
        return self.weights.real()

    def __call__(self, func: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The linear layer of its first argument."""
        return self.product(as_float(args[0] if args else kwargs["input"]).contiguous())

    def product(self, x: Tensor) -> Tensor:
        """``[..., inputs]`` -> ``[..., outputs]``."""
        begin = time.perf_counter()
        out: Tensor
        if self.layer.bits == 16:
            out = torch.ops.quantized.linear_dynamic_fp16(x, self._packed)
        else:
            out = torch.ops.quantized.linear_dynamic(x, self._packed, self._reduce_range)
        macs, seconds = out.numel() * x.shape[-1], time.perf_counter() - begin
        note(Event("kernel", self.layer.path, macs, self.name, self.layer.precision, seconds))
        return out


class PackedEmbedding:
    """An embedding, or a bag of them, with rows in 8 or 4 bits; stands in its ``PackedWeight``."""

    def __init__(self, layer: DynamicLayer, weights: Weights, backend: str) -> None:
        self.layer, self.weights = layer, weights
        bits = 4 if layer.bits <= 4 else 8
        self.name = f"{layer.kind}_{'byte' if bits == 8 else '4bit'}"
        zeros = torch.full((len(weights.scale),), float(1 << (bits - 1)))
        dtype = torch.quint8 if bits == 8 else torch.quint4x2
        rows = torch.quantize_per_channel(weights.real(), weights.scale, zeros, 0, dtype)
        self._packed = torch.ops.quantized.embedding_bag_prepack(rows)
        self._lookup = getattr(torch.ops.quantized, self.name)

    def float_weight(self) -> Tensor:
        """The dequantized rows."""
        return self.weights.real()

    def __call__(self, func: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The rows of the indices, or their sums or means."""
        indices = args[0]
        if func is F.embedding_bag:
            return self._bag(indices, *args[2:], **kwargs)
        out: Tensor = self._lookup(self._packed, indices.reshape(-1))
        return out.reshape(*indices.shape, -1)

    def _bag(
        self,
        indices: Tensor,
        offsets: Tensor | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        per_sample_weights: Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
    ) -> Any:
        if mode != "sum" or padding_idx is not None or max_norm is not None:
            # The packed kernels only add; the rest is done on the rows that are needed.
            used, where = torch.unique(indices, return_inverse=True)
            rows = self._lookup_rows(used)
            padding = None if padding_idx is None or not bool((used == padding_idx).any()) else padding_idx
            at = None if padding is None else int((used == padding).nonzero()[0, 0])
            return F.embedding_bag(
                where, rows, offsets, max_norm, norm_type, scale_grad_by_freq, mode, sparse, per_sample_weights,
                include_last_offset, at,
            )  # fmt: skip
        if indices.ndim == 2:
            offsets = torch.arange(0, indices.numel(), indices.shape[1])
            indices = indices.reshape(-1)
            per_sample_weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
        return self._lookup(
            self._packed, indices, offsets, False, 0, False, per_sample_weights, None, include_last_offset
        )

    def _lookup_rows(self, indices: Tensor) -> Tensor:
        each = torch.arange(len(indices))
        if self.layer.kind == "embedding":
            rows: Tensor = self._lookup(self._packed, indices)
            return rows
        rows = self._lookup(self._packed, indices, each, False, 0, False, None, None, False)
        return rows


class RecurrentModule(nn.Module):
    """An LSTM, GRU or cell with packed weights: the arguments, results and plain attributes of the original."""

    def __init__(self, original: nn.Module, layer: DynamicLayer, weights: Mapping[str, Weights], backend: str) -> None:
        """``weights`` are those of the original by their names in it, such as ``weight_ih_l0``."""
        super().__init__()
        self.layer, self.name = layer, f"{backend} {layer.kind}_dynamic{'_fp16' if layer.bits == 16 else ''}"
        self.config = {key: value for key, value in vars(original).items() if not key.startswith("_")}
        self.integers = dict(weights)
        for key, parameter in original.named_parameters(recurse=False):
            if key.startswith("bias"):
                self.register_parameter(key, nn.Parameter(parameter.detach(), requires_grad=False))
        self.training = False
        self._reduce_range = layer.bits <= 8 and not all(one.exact(backend) for one in weights.values())
        self._cell = layer.kind.endswith("_cell")
        suffixes = [key.removeprefix("weight_ih") for key in weights if key.startswith("weight_ih")]
        pairs = [self._pack_pair(suffix, backend) for suffix in suffixes]
        self._packed: Any = pairs[0]
        if not self._cell:
            self._packed = [self._parameters_of(*one) for one in zip(suffixes, pairs, strict=True)]

    def __getattr__(self, name: str) -> Any:
        config = self.__dict__.get("config", {})
        if name in config:
            return config[name]
        if name in self.__dict__.get("integers", {}):
            return self.integers[name].real()
        return super().__getattr__(name)

    def __deepcopy__(self, memo: dict[int, Any]) -> RecurrentModule:
        memo[id(self._packed)], memo[id(self.integers)] = self._packed, self.integers  # these never change
        twin = type(self).__new__(type(self))
        twin.__dict__.update(deepcopy(self.__dict__, memo))
        return twin

    def flatten_parameters(self) -> None:
        """Nothing to do: the weights are packed."""

    def forward(self, x: Any, hx: Any = None) -> Any:
        """As the original's own ``forward``."""
        begin = time.perf_counter()
        if self._cell:
            x = as_float(x)
            out, steps = self._run_cell(x, hx), prod(x.shape[:-1])
        elif isinstance(x, PackedSequence):
            out, steps = self._run_packed(x, hx), len(x.data)
        else:
            x = as_float(x)
            out, steps = self._run(x, hx), prod(x.shape[:-1])
        macs = steps * sum(w.integers.numel() for w in self.integers.values())
        seconds = time.perf_counter() - begin
        note(Event("kernel", self.layer.path, macs, self.name, self.layer.precision, seconds))
        return out

    def _run_cell(self, x: Tensor, hx: Any) -> Any:
        batched = x.ndim == 2
        rows = x if batched else x[None]
        if hx is None:
            zeros = rows.new_zeros(len(rows), self.hidden_size)
            hx = (zeros, zeros) if self.layer.kind == "lstm_cell" else zeros
        elif not batched:
            hx = tuple(h[None] for h in hx) if self.layer.kind == "lstm_cell" else hx[None]
        biases = self._bias("ih", ""), self._bias("hh", "")
        if self.layer.kind == "lstm_cell":
            function = torch.ops.quantized.quantized_lstm_cell_dynamic
            out = function(rows, list(hx), *self._packed, *biases)
            return out if batched else tuple(part[0] for part in out)
        name = "gru" if self.layer.kind == "gru_cell" else f"rnn_{self.nonlinearity}"
        out = getattr(torch.ops.quantized, f"quantized_{name}_cell_dynamic")(rows, hx, *self._packed, *biases)
        return out if batched else out[0]

    def _run(self, x: Tensor, hx: Any) -> Any:
        batched = x.ndim == 3
        time_axis_first = not self.batch_first
        if not batched:
            x = x.unsqueeze(1 if time_axis_first else 0)
            hx = None if hx is None else _each(lambda h: h.unsqueeze(1), hx)
        size = x.shape[1 if time_axis_first else 0]
        states = self._states(x, size) if hx is None else hx
        arguments = (True, self.num_layers, 0.0, False, self.bidirectional, self.batch_first)
        if self.layer.kind == "lstm":
            out, *last = torch.quantized_lstm(x, list(states), self._packed, *arguments, **self._types)
            state: Any = tuple(last)
        else:
            out, state = torch.quantized_gru(x, states, self._packed, *arguments)
        if not batched:
            return out.squeeze(1 if time_axis_first else 0), _each(lambda h: h.squeeze(1), state)
        return out, state

    def _run_packed(self, x: PackedSequence, hx: Any) -> Any:
        states = self._states(x.data, int(x.batch_sizes[0])) if hx is None else hx
        if hx is not None and x.sorted_indices is not None:
            states = _each(lambda h: h.index_select(1, x.sorted_indices), states)
        arguments = (True, self.num_layers, 0.0, False, self.bidirectional)
        if self.layer.kind == "lstm":
            data, *last = torch.quantized_lstm(
                x.data, x.batch_sizes, list(states), self._packed, *arguments, **self._types
            )
            state: Any = tuple(last)
        else:
            data, state = torch.quantized_gru(x.data, x.batch_sizes, states, self._packed, *arguments)
        if x.unsorted_indices is not None:
            state = _each(lambda h: h.index_select(1, x.unsorted_indices), state)
        return PackedSequence(data, x.batch_sizes, x.sorted_indices, x.unsorted_indices), state

    @property
    def _types(self) -> dict[str, Any]:
        return {"dtype": torch.float16 if self.layer.bits == 16 else torch.qint8, "use_dynamic": True}

    def _states(self, x: Tensor, batch: int) -> Any:
        zeros = x.new_zeros(self.num_layers * (2 if self.bidirectional else 1), batch, self.hidden_size)
        return (zeros, zeros) if self.layer.kind == "lstm" else zeros

    def _pack_pair(self, suffix: str, backend: str) -> tuple[Any, Any]:
        """The packed weights of input and state of one layer and direction."""
        sides = []
        for side in ("ih", "hh"):
            weights = self.integers[f"weight_{side}{suffix}"]
            sides.append(_pack(replace(weights, bias=self._bias(side, suffix)), self.layer.bits, backend))
        return sides[0], sides[1]

    def _parameters_of(self, suffix: str, pair: tuple[Any, Any]) -> Any:
        """What PyTorch's quantized LSTM and GRU take for one layer and direction."""
        if self.layer.bits == 16:
            return torch.ops.quantized.make_quantized_cell_params_fp16(*pair)
        biases = self._bias("ih", suffix), self._bias("hh", suffix)
        return torch.ops.quantized.make_quantized_cell_params_dynamic(*pair, *biases, self._reduce_range)

    def _bias(self, side: str, suffix: str) -> Tensor:
        found = self._parameters.get(f"bias_{side}{suffix}")
        rows = len(self.integers[f"weight_{side}{suffix}"].scale)
        return torch.zeros(rows) if found is None else found.detach()


def _each(function: Any, state: Any) -> Any:
    """``function`` of a state, or of each part of a tuple of states."""
    return tuple(function(part) for part in state) if isinstance(state, tuple) else function(state)


def _pack(weights: Weights, bits: int, backend: str) -> Any:
    """A matrix in the form that the dynamic kernels want."""
    if bits == 16:
        # oneDNN and QNNPACK have no kernel for float16 weights, FBGEMM does.
        with packing_for("fbgemm"):
            return torch.ops.quantized.linear_prepack_fp16(weights.integers.float(), weights.bias)
    zeros = torch.zeros(len(weights.scale), dtype=torch.int64)
    rows = torch._make_per_channel_quantized_tensor(weights.integers, weights.scale.double(), zeros, 0)
    with packing_for(backend):
        return torch.ops.quantized.linear_prepack(rows, weights.bias)
