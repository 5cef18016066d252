"""PyTorch's int8 backends: what each one's kernels can and want."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import torch

from quantasr.cpu import this_cpu
from quantasr.errors import EngineError
from quantasr.recipes.recipe import QConfig, Recipe


@dataclass(frozen=True)
class Backend:
    """The facts of one backend, as far as they decide a model.

    ``saturates`` says that its kernels, on CPUs without VNNI, add pairs of 8-bit products in 16 bits: its weights have
    7 bits everywhere, so that a folder is right on every CPU. (PyTorch's own default gives activations 7 bits instead,
    which values beyond the calibrated range exceed.) ``float_output`` tells whether its kernels can give float, so that
    a layer before float code adds no rounding of its own.
    """

    name: str
    saturates: bool = False
    float_output: bool = False


BACKENDS: dict[str, Backend] = {
    "onednn": Backend("onednn", saturates=True, float_output=True),
    "x86": Backend("x86", saturates=True, float_output=True),
    "fbgemm": Backend("fbgemm", saturates=True),
    "qnnpack": Backend("qnnpack"),
}
"""Every backend by its name. All take affine activations, one scale each, and symmetric weights per channel."""


FLOAT = Backend("float")
"""No int8 at all, for half precision alone."""


def find_backend(name: str) -> Backend:
    """The backend ``name``; raises :class:`EngineError` when it is unknown or missing in this build of PyTorch."""
    if name == FLOAT.name:
        return FLOAT
    if name not in BACKENDS:
        raise EngineError(f"backend {name!r} is unknown: choose one of {', '.join(BACKENDS)}, or auto")
    if name not in usable_backends():
        usable = ", ".join(usable_backends()) or "none"
        raise EngineError(f"PyTorch {torch.__version__} on this CPU has no backend {name}; it has {usable}")
    return BACKENDS[name]


def usable_backends() -> list[str]:
    """Backends that this build of PyTorch has and this CPU can run."""
    there = torch.backends.quantized.supported_engines
    # PyTorch 2.13 lists onednn on every x86-64, but without AVX2 it dies of an illegal instruction.
    cpu = this_cpu()
    lacks = cpu.architecture == "x86_64" and cpu.known and "avx2" not in cpu.features
    return [name for name in BACKENDS if name in there and not (lacks and name == "onednn")]


@contextmanager
def packing_for(backend: str) -> Iterator[None]:
    """Let weights be packed for ``backend``; what is packed keeps it, so nothing global is needed afterwards."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = backend
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


def adapt(recipe: Recipe, backends: list[Backend]) -> tuple[Recipe, list[str]]:
    """The recipe within what all of the ``backends`` compute, and what had to be changed.

    Scales are found once; a model that is measured on several backends takes the narrowest format of them.
    """
    notes: list[str] = []
    if not recipe.reduce_range and any(backend.saturates for backend in backends):
        names = " and ".join(backend.name for backend in backends if backend.saturates)
        notes.append(f"weights in 7 bits instead of 8: {names} may saturate")
        recipe = replace(recipe, reduce_range=True)

    def fit(qconfig: QConfig, where: str) -> QConfig:
        weight, input_ = qconfig.weight, qconfig.input
        if qconfig.mode == "static":
            if input_.bits != 8:
                notes.append(f"{where}: inputs in 8 bits instead of {input_.bits}")
                input_ = replace(input_, bits=8)
            if weight.bits > 8:
                notes.append(f"{where}: weights in 8 bits instead of {weight.bits}")
                weight = replace(weight, bits=8)
            if not weight.symmetric:
                notes.append(f"{where}: weights symmetric instead of affine")
                weight = replace(weight, symmetric=True)
            if weight.granularity == "per_group":
                notes.append(f"{where}: weights per_channel instead of per_group")
                weight = replace(weight, granularity="per_channel", group_size=None)
        return replace(qconfig, weight=weight, input=input_)

    defaults = fit(recipe.defaults, "defaults")
    rules = []
    for rule in recipe.rules:
        asked = recipe.defaults.updated(rule.changes, f"rule {rule.match!r}")
        fitted = fit(asked, f"rule {rule.match!r}") if asked.mode == "static" else asked
        rules.append(replace(rule, changes=fitted.to_dict()))
    if recipe.attention_products:
        notes.append("attention products stay float")
    return replace(recipe, defaults=defaults, rules=tuple(rules), attention_products=False), list(dict.fromkeys(notes))


@cache
def is_exact(backend: str) -> bool:
    """Whether ``backend`` multiplies integers of 8 bits exactly on this CPU; found by running the largest ones."""
    if backend not in BACKENDS:
        return True
    size, wide = 64, 127.0
    weight = torch._make_per_channel_quantized_tensor(
        torch.full((8, size), int(wide), dtype=torch.int8), torch.ones(8).double(), torch.zeros(8).long(), 0
    )
    with packing_for(backend):
        packed = torch.ops.quantized.linear_prepack(weight, None)
    found = torch.ops.quantized.linear_dynamic(torch.ones(4, size), packed, False)
    return bool((found / (size * wide) > 0.99).all())
