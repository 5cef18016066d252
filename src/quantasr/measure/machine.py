"""What this machine can do: its CPU, what the engines compute exactly on it, versions, and the cache."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from rich.table import Table

from quantasr.cpu import Cpu, Share, share, this_cpu
from quantasr.engines import ENGINES, TORCH
from quantasr.engines.cache import cache_file, read_cache
from quantasr.engines.exactness import INSTEAD, KINDS, inexact, package_version
from quantasr.errors import EngineError
from quantasr.measure.cells import plain_table

PACKAGES = (
    *("quantasr", "numpy", "onnxruntime", "openvino", "torch", "transformers", "nemo_toolkit", "speechbrain"),
    *("kaldifst", "numba"),
)
"""What results depend on."""


@dataclass(frozen=True)
class EngineCheck:
    """What an engine can do here.

    ``inexact`` are the kinds of products that its fast kernels get wrong with integers of 8 bits, ``refused`` those
    that it cannot compute in another way either. ``error`` says why nothing could be found out.
    """

    name: str
    version: str
    compute: tuple[str, ...] = ()
    inexact: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Machine:
    """Everything that decides how a model runs here.

    ``cached`` counts remembered measurements of this CPU, ``foreign`` those of others, which are not used.
    """

    cpu: Cpu
    share: Share
    engines: tuple[EngineCheck, ...]
    packages: dict[str, str]
    cache: str
    cached: int
    foreign: int

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            **asdict(self),
            "cpu": {
                **asdict(self.cpu),
                "features": sorted(self.cpu.features),
                "integer_products": self.cpu.integer_products,
                "float_types": self.cpu.float_types,
            },
            "share": {**asdict(self.share), "threads": self.share.threads},
        }


def examine() -> Machine:
    """Look at this machine: each engine multiplies a few integers, which takes about a second."""
    cpu = this_cpu()
    engines = [_check(name, _ort if name == "onnxruntime" else _openvino) for name in ENGINES]
    if find_spec("torch") is not None:
        engines += _torch()
    rows = read_cache()
    own = sum(cpu.key in key for key in rows)
    packages = {"python": platform.python_version(), **{name: package_version(name) for name in PACKAGES}}
    return Machine(cpu, share(), tuple(engines), packages, str(cache_file()), own, len(rows) - own)


def _check(name: str, compute: Callable[[], tuple[str, ...]]) -> EngineCheck:
    try:
        wrong = inexact(name)
        left = inexact(name, exact_products=True) if wrong else frozenset()
        return EngineCheck(name, package_version(name), compute(), _ordered(wrong), _ordered(left))
    except EngineError as error:
        return EngineCheck(name, package_version(name), error=str(error))


def _ordered(kinds: frozenset[str]) -> tuple[str, ...]:
    return tuple(kind for kind in KINDS if kind in kinds)


def _ort() -> tuple[str, ...]:
    return ("fp32",)


def _openvino() -> tuple[str, ...]:
    from quantasr.engines.openvino import compute_types

    return compute_types()


def _torch() -> list[EngineCheck]:
    """PyTorch's backends; their static and dynamic kernels are the same library's."""
    # By name: nothing of the runtime may need PyTorch.
    backends = import_module("quantasr.engines.torch_native.backends")
    found = []
    for name in backends.usable_backends():
        wrong = () if backends.is_exact(name) else ("linear", "dynamic", "convolution", "pointwise")
        found.append(EngineCheck(f"{TORCH}:{name}", package_version("torch"), ("fp32", "bf16", "fp16"), wrong))
    return found


def machine_tables(machine: Machine) -> list[Table]:
    """The CPU and what this process may use of it; the engines; the versions."""
    cpu, used = machine.cpu, machine.share
    about = plain_table("this machine", "what", "found")
    quota = "none" if used.quota is None else f"{used.quota:g} cores"
    rows = {
        "CPU": f"{cpu.name} ({cpu.architecture})",
        "integer products": cpu.integer_products,
        "16-bit floats": ", ".join(cpu.float_types) or "none",
        "cores (affinity)": str(used.cores),
        "quota (control group)": quota,
        "--threads, by default": str(used.threads),
        "cache": f"{machine.cache}: {machine.cached} measurements of this CPU, {machine.foreign} of others",
    }
    for row in rows.items():
        about.add_row(*row)
    engines = plain_table(
        "engines: products of 8-bit integers, as found by running the largest",
        *("engine", "version", "float types", "exact", "wrong if fast", "then computed as"),
        caption="Recipes' weights have 7 bits (reduce_range), which every kernel multiplies exactly: the last two "
        "columns are for artifacts with 8.",
    )
    for one in machine.engines:
        if one.error:
            engines.add_row(one.name, one.version, "", one.error, "", "")
            continue
        exact = [kind for kind in KINDS if kind not in one.inexact]
        instead = INSTEAD.get(one.name, "float products of the same integers")
        refused = f"; refused: {', '.join(one.refused)}" if one.refused else ""
        engines.add_row(
            *(one.name, one.version, ", ".join(one.compute)),
            "all" if not one.inexact else ", ".join(exact) or "none",
            ", ".join(one.inexact) or "nothing",
            f"{instead}{refused}" if one.inexact else "",
        )
    versions = plain_table("versions", "package", "version")
    for row in machine.packages.items():
        versions.add_row(*row)
    return [about, engines, versions]
