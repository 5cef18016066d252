"""Half precision: weights and products in bfloat16 or float16, in the framework's own forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quantasr.errors import EngineError
from quantasr.quantize.layers import kind_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Compute types of the float rest."""


def find_dtype(compute: str) -> torch.dtype:
    """The type called ``compute``; raises :class:`EngineError` when there is none."""
    if compute not in DTYPES:
        raise EngineError(f"compute = {compute!r}: PyTorch computes in {', '.join(DTYPES)}")
    return DTYPES[compute]


def compute_in(module: nn.Module, graph: nn.Module, compute: str) -> None:
    """Let ``graph`` around ``module`` compute in ``compute``, in place; nothing changes for ``fp32``.

    Layers' weights take the type; norms, buffers and what is no layer keep float32, because frameworks mix them with
    tensors that they make in float32. What is between the layers follows by autocast. The graph gives float32.
    """
    dtype = find_dtype(compute)
    if dtype == torch.float32:
        return
    for part in module.modules():
        if kind_of(part) is not None:
            for parameter in part.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
    inner: Any = graph.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", dtype=dtype):
            out = inner(*args, **kwargs)
        return tuple(map(_float, out)) if isinstance(out, tuple) else _float(out)

    graph.forward = forward


def _float(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() else x
