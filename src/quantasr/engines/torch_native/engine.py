"""A converted model as an engine: arrays in, arrays out, and what it executed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from quantasr.engines.engine import ExecutedOp
from quantasr.engines.torch_native.dynamic import RECURRENT
from quantasr.engines.torch_native.trace import traced
from quantasr.errors import EngineError
from quantasr.quantize.layers import kind_of
from quantasr.sources.asr_model import AsrModel
from quantasr.speech.parts import Arrays
from quantasr.speech.transcript import Waveform

_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}


class NativeEngine:
    """A live model, converted in place, as :class:`quantasr.engines.engine.Engine`."""

    def __init__(self, model: AsrModel, backend: str, compute: str = "fp32", threads: int = 0) -> None:
        """``threads`` 0 leaves PyTorch's number as it is; it is one for the whole process."""
        self.model = model
        self.name = f"torch:{backend}"
        self.compute = compute
        if threads:
            torch.set_num_threads(threads)

    def run(self, feed: Arrays) -> dict[str, NDArray[Any]]:
        """``features`` and ``lengths`` -> ``logprobs`` and, where the model takes lengths, ``frame_counts``."""
        found = self._call(feed["features"], feed["lengths"])
        if self.model.padded_batches:
            logprobs, counts = found
            return {"logprobs": logprobs.float().numpy(), "frame_counts": counts.numpy()}
        return {"logprobs": found.float().numpy()}

    def recognise(self, wave: Waveform) -> str:
        """The text of a whole wave, where the model searches it itself (an attention decoder)."""
        model: Any = self.model
        try:
            text: str = model.recognise(wave)
        except RuntimeError as error:
            raise EngineError(f"{self.name}: {model.name} refuses {len(wave)} samples: {error}") from None
        return text

    def encode(self, wave: Waveform) -> object:
        """Features and encoder alone, of such a model."""
        model: Any = self.model
        return model.encode(wave)

    def _call(self, features: NDArray[np.float32], lengths: NDArray[np.int64]) -> Any:
        inputs: tuple[Tensor, ...] = (torch.from_numpy(features), torch.from_numpy(np.asarray(lengths, dtype=np.int64)))
        model: Any = self.model
        if model.decoder == "attention":
            inputs = model.paced(inputs[0])
        elif not model.padded_batches:
            inputs = inputs[:1]
        try:
            # Not inference_mode, in which PyTorch does not show its convolutions to whoever counts them.
            with torch.no_grad():
                return model.graph(*inputs)
        except RuntimeError as error:
            raise EngineError(
                f"{self.name}: {self.model.name} refuses features {list(features.shape)}: {error}"
            ) from None

    def executed(self, feed: Arrays) -> list[ExecutedOp]:
        """One run, with every product: those of packed layers as their kernels say, the others from PyTorch's calls."""
        call = partial(self._call, feed["features"], feed["lengths"])
        call()
        with float_products(self.model.module) as products, traced() as trace:
            call()
        turn: Counter[str] = Counter()
        ops = []
        for event in trace.events:
            if event.kind == "kernel":
                turn[event.name] += 1
                node = f"{_scope(event.name)}/{turn[event.name]}"
                ops.append(ExecutedOp(event.name, event.detail, event.precision, event.seconds, {node: event.size}))
        return ops + products


def _scope(path: str) -> str:
    """A module's path as the nodes of exported graphs have it."""
    return path.replace(".", "/")


@contextmanager
def float_products(module: nn.Module) -> Iterator[list[ExecutedOp]]:
    """Record every convolution and matrix product that PyTorch itself runs, under the path of the module it is in.

    A recurrent layer counts as one: what PyTorch makes of it, and shows, depends on its size and type.
    """
    stack: list[str] = []
    loops: set[str] = set()
    found: list[ExecutedOp] = []
    handles = []

    def enter(path: str) -> Callable[..., None]:
        return lambda *_: stack.append(path)

    def leave(part: nn.Module, args: tuple[Any, ...], _: Any) -> None:
        path = stack.pop()
        if path in loops and args:
            weights = [p for name, p in part.named_parameters(recurse=False) if name.startswith("weight_")]
            data = args[0].data if isinstance(args[0], PackedSequence) else args[0]
            macs = prod(data.shape[:-1]) * sum(weight.numel() for weight in weights)
            kind, node = str(kind_of(part)), f"{_scope(path)}/{len(found)}"
            found.append(ExecutedOp(path, kind, _NAMES.get(weights[0].dtype, "other"), 0.0, {node: macs}))

    for path, part in module.named_modules():
        if isinstance(part, tuple(RECURRENT)):
            loops.add(path)
        handles.append(part.register_forward_pre_hook(enter(path)))
        handles.append(part.register_forward_hook(leave, always_call=True))
    try:
        with _Products(stack, found, loops):
            yield found
    finally:
        for handle in handles:
            handle.remove()


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, stack: list[str], found: list[ExecutedOp], closed: set[str]) -> None:
        """What runs in the modules ``closed`` is not recorded."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._stack, self._found, self._closed = stack, found, closed

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        begin = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        seconds = time.perf_counter() - begin
        count: Callable[..., int] | None = flop_registry.get(func.overloadpacket)
        path = self._stack[-1] if self._stack else ""
        if count is not None and path not in self._closed:
            macs = count(*args, **(kwargs or {}), out_val=out) // 2
            given = next(leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
            node = f"{_scope(path)}/{func.overloadpacket.__name__}_{len(self._found)}"
            precision = _NAMES.get(given.dtype, str(given.dtype).removeprefix("torch."))
            self._found.append(ExecutedOp(path, func.overloadpacket.__name__, precision, seconds, {node: macs}))
        return out
