"""Quantize what is no module: the two matrix products inside attention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quantasr.numerics.quantizers import InputQuantizer, Phase

_PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm}


class ProductQuantizers(TorchFunctionMode):
    """While active, both operands of every product of two activations pass a quantizer of their own.

    A product is known by the module that it happens in and its turn there, as in
    ``encoder.layers.3.attention.MatMul_1``, which is also its node's name in the exported graph. Products with a
    parameter are layers and are left to the rules.
    """

    def __init__(self, module: nn.Module, make: Callable[[bool], InputQuantizer]) -> None:
        """``make(second)`` builds the quantizer of the first or the second operand."""
        super().__init__()
        self.quantizers: dict[str, tuple[InputQuantizer, InputQuantizer]] = {}
        self.phase = Phase.FLOAT
        self._make = make
        self._stack: list[str] = []
        self._turn: Counter[str] = Counter()
        self._open = True
        for path, part in module.named_modules():
            part.register_forward_pre_hook(lambda *_, p=path: self._enter(p))
            part.register_forward_hook(lambda *_, p=path: self._leave(p), always_call=True)

    def close(self) -> None:
        """No new products from here on: one that calibration did not see is left float."""
        self._open = False

    def _enter(self, path: str) -> None:
        self._stack.append(path)
        self._turn[path] = 0

    def _leave(self, path: str) -> None:
        if self._stack and self._stack[-1] == path:
            self._stack.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _PRODUCTS and self._stack and len(args) == 2 and all(_is_activation(a) for a in args):
            path = self._stack[-1]
            turn = self._turn[path]
            self._turn[path] += 1
            key = f"{path}.MatMul_{turn}" if turn else f"{path}.MatMul"
            if key not in self.quantizers and self._open:
                self.quantizers[key] = (self._make(False), self._make(True))
                for quantizer in self.quantizers[key]:
                    quantizer.phase = self.phase
            if key in self.quantizers:
                left, right = self.quantizers[key]
                args = (left(args[0]), right(args[1]))
        return func(*args, **kwargs)


def _is_activation(x: Any) -> bool:
    return isinstance(x, Tensor) and x.ndim >= 3 and x.is_floating_point() and not isinstance(x, nn.Parameter)
