"""What this machine's CPU can do, and how much of it this process may use.

Features are read from the CPU itself (``CPUID`` on x86-64, the kernel's hardware capabilities on ARM), so they are also
right under an emulator, whose ``/proc/cpuinfo`` is that of the machine around it.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import mmap
import os
import platform
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")
"""x86-64 instructions that add products of 8 bits in 32 bits. What CPUs without them have adds pairs of such products
in 16 bits, which saturate: 2 × 255 × 127 does not fit."""

# (leaf, subleaf) -> register -> bit -> feature: Intel 64 and IA-32 Architectures Software Developer's Manual, volume
# 2A, "CPUID"; names are those of Linux's /proc/cpuinfo.
_CPUID: dict[tuple[int, int], dict[str, dict[int, str]]] = {
    (1, 0): {"ecx": {9: "ssse3", 12: "fma", 19: "sse4_1", 20: "sse4_2", 28: "avx", 29: "f16c"}},
    (7, 0): {
        "ebx": {5: "avx2", 16: "avx512f", 17: "avx512dq", 30: "avx512bw", 31: "avx512vl"},
        "ecx": {11: "avx512_vnni"},
        "edx": {22: "amx_bf16", 23: "avx512_fp16", 24: "amx_tile", 25: "amx_int8"},
    },
    (7, 1): {"eax": {4: "avx_vnni", 5: "avx512_bf16", 21: "amx_fp16"}, "edx": {4: "avx_vnni_int8"}},
}
_REGISTERS = ("eax", "ebx", "ecx", "edx")

# What the operating system must save in a switch of threads (XCR0) for a feature to be usable: bits by its beginning.
_STATE = {"avx512": 0xE6, "amx": 0x60000, "avx": 0x6, "fma": 0x6, "f16c": 0x6}

# Linux, arch/arm64/include/uapi/asm/hwcap.h: bits of AT_HWCAP and AT_HWCAP2.
_AT_HWCAP, _AT_HWCAP2 = 16, 26
_HWCAP = {1: "asimd", 10: "asimdhp", 20: "asimddp", 22: "sve"}
_HWCAP2 = {1: "sve2", 13: "i8mm", 14: "bf16"}

# Apple, "Determining Instruction Set Characteristics".
_SYSCTL = {"FEAT_DotProd": "asimddp", "FEAT_I8MM": "i8mm", "FEAT_BF16": "bf16", "FEAT_FP16": "asimdhp"}

# void call(uint32_t registers[4]): CPUID for the leaf in [0] and the subleaf in [2]; System V calling convention.
_CALL_CPUID = bytes.fromhex("53 8b07 8b4f08 0fa2 8907 895f04 894f08 89570c 5b c3")
# The same for XGETBV, register 0.
_CALL_XGETBV = bytes.fromhex("31c9 0f01d0 8907 89570c c3")


@dataclass(frozen=True)
class Cpu:
    """A CPU: its ``name``, ``architecture`` (x86_64, aarch64, ...) and ``features``, named as Linux names them.

    ``known`` tells whether the features could be read; where they could not, nothing follows from one that is missing.
    """

    name: str
    architecture: str
    features: frozenset[str]
    known: bool = True

    @property
    def saturates(self) -> bool:
        """Whether what its engines multiply 8-bit integers with overflows, as far as its instructions tell."""
        return self.architecture == "x86_64" and self.known and not self.features.intersection(VNNI)

    @property
    def integer_products(self) -> str:
        """Which instructions multiply 8-bit integers, in words."""
        if self.architecture == "x86_64":
            found = [name for name in (*VNNI, "avx_vnni_int8") if name in self.features]
            if found:
                return f"{', '.join(found)} (sums in 32 bits)"
            widest = next((name for name in ("avx512bw", "avx2", "avx", "ssse3") if name in self.features), "sse2")
            return f"{widest} without VNNI (pairs of products in 16 bits, which saturate)" if self.known else "unknown"
        found = [name for name in ("i8mm", "asimddp") if name in self.features]
        if found:
            return f"{', '.join(found)} (sums in 32 bits)"
        return "asimd (products in 16 bits, sums in 32 bits)" if "asimd" in self.features else "unknown"

    @property
    def float_types(self) -> tuple[str, ...]:
        """Types of 16 bits that it multiplies in hardware: ``bf16``, ``fp16``."""
        kinds = {"bf16": ("avx512_bf16", "amx_bf16", "bf16"), "fp16": ("avx512_fp16", "amx_fp16", "asimdhp")}
        return tuple(kind for kind, names in kinds.items() if self.features.intersection(names))

    @property
    def key(self) -> str:
        """Its name and a digest of its features: virtual machines of one name differ in these."""
        digest = hashlib.sha256(" ".join(sorted(self.features)).encode()).hexdigest()[:8]
        return f"{self.name} {digest}"


@cache
def this_cpu() -> Cpu:
    """The CPU that this process runs on."""
    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    info = _cpuinfo()
    name = info.get("model name") or platform.processor() or machine
    if machine == "x86_64" and sys.platform != "win32":
        try:
            brand, features = _x86()
            return Cpu(brand or name, machine, features)
        except (OSError, ValueError):
            pass  # memory that holds code is not allowed here: ask the kernel
    elif machine == "aarch64":
        arm = _apple() if sys.platform == "darwin" else _arm_linux()
        if arm is not None:
            # Linux names no ARM cores; under an emulator the file is that of the machine around it.
            part = f"{info['cpu implementer']} part {info['cpu part']}" if "cpu part" in info else ""
            return Cpu(part or (name if sys.platform == "darwin" else machine), machine, arm)
    flags = info.get("flags") or info.get("features") or ""
    return Cpu(name, machine, frozenset(flags.split()), known=bool(flags))


def _x86() -> tuple[str, frozenset[str]]:
    """Name and usable features, by executing CPUID and XGETBV; OSError or ValueError where code may not be made."""
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(_CALL_CPUID.ljust(64, b"\xcc") + _CALL_XGETBV)
        anchor = ctypes.c_char.from_buffer(page)
        address = ctypes.addressof(anchor)
        kind = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_uint32))

        def registers(leaf: int, subleaf: int = 0, *, offset: int = 0) -> dict[str, int]:
            values = (ctypes.c_uint32 * 4)(leaf, 0, subleaf, 0)
            kind(address + offset)(values)
            return dict(zip(_REGISTERS, values, strict=True))

        leaves = {0: registers(0)["eax"], 0x80000000: registers(0x80000000)["eax"]}
        osxsave = registers(1)["ecx"] >> 27 & 1
        state = 0
        if osxsave:
            low = registers(0, offset=64)
            state = low["eax"] | low["edx"] << 32
        found: set[str] = set()
        for (leaf, subleaf), rows in _CPUID.items():
            if leaf > leaves[0] or (subleaf and subleaf > registers(leaf)["eax"]):
                continue
            values = registers(leaf, subleaf)
            found |= {name for row, bits in rows.items() for bit, name in bits.items() if values[row] >> bit & 1}
        brand = b""
        if leaves[0x80000000] >= 0x80000004:
            brand = b"".join(struct.pack("<4I", *registers(0x80000002 + i).values()) for i in range(3))
        del anchor  # the page cannot be given back while something points to it
    return brand.split(b"\0")[0].decode("ascii", "replace").strip(), frozenset(
        name for name in found if _saved(name, state)
    )


def _saved(feature: str, state: int) -> bool:
    needed = next((bits for start, bits in _STATE.items() if feature.startswith(start)), 0)
    return state & needed == needed


def _arm_linux() -> frozenset[str] | None:
    """Features from the kernel's auxiliary vector; None where the C library has no ``getauxval``."""
    try:
        ask = ctypes.CDLL(None).getauxval
    except (OSError, AttributeError):
        return None
    ask.restype, ask.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    rows = ((ask(_AT_HWCAP), _HWCAP), (ask(_AT_HWCAP2), _HWCAP2))
    return frozenset(name for value, names in rows for bit, name in names.items() if value >> bit & 1)


def _apple() -> frozenset[str] | None:
    try:
        ask = ctypes.CDLL(None).sysctlbyname
    except (OSError, AttributeError):
        return None
    found = {"asimd"}
    for key, name in _SYSCTL.items():
        value, size = ctypes.c_int(0), ctypes.c_size_t(4)
        failed = ask(f"hw.optional.arm.{key}".encode(), ctypes.byref(value), ctypes.byref(size), None, 0)
        if not failed and value.value:
            found.add(name)
    return frozenset(found)


def _cpuinfo() -> Mapping[str, str]:
    """The first core's rows of ``/proc/cpuinfo``, where there is one."""
    found: dict[str, str] = {}
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        return found
    for line in text.splitlines():
        label, _, value = line.partition(":")
        if not line.strip() and "flags" in found:
            break  # the other cores are alike
        found.setdefault(label.strip().lower(), value.strip())
    return found


@dataclass(frozen=True)
class Share:
    """How much of the machine this process may use.

    ``cores`` it may run on (its affinity), and the ``quota`` of its control group in cores, where it has one. ``notes``
    name files that could not be read.
    """

    cores: int
    quota: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def threads(self) -> int:
        """Threads that it can keep busy: a begun core of the quota counts as one."""
        return self.cores if self.quota is None else max(1, min(self.cores, math.ceil(self.quota - 1e-6)))


def share(root: Path = Path("/")) -> Share:
    """What this process may use; ``root`` is where ``proc`` and ``sys`` are mounted."""
    # macOS has no affinity.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas, notes = [], []
    for file in _quota_files(root):
        try:
            quota = _quota(file)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            notes.append(f"{file}: cannot read the CPU quota ({why}): it is ignored")
            continue
        if quota is not None:
            quotas.append(quota)
    return Share(cores, min(quotas, default=None), tuple(notes))


def threads() -> int:
    """Threads that a model runs on unless it is told otherwise: affinity and quota."""
    return share().threads


def _quota_files(root: Path) -> Iterator[Path]:
    """The files that limit this process: those of its control group and of all around it, of either version."""
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return  # no Linux, or no control groups
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            mount, name = root / "sys/fs/cgroup", "cpu.max"
        elif "cpu" in controllers.split(","):
            mounts = [root / "sys/fs/cgroup" / folder for folder in (controllers, "cpu")]
            mount, name = next((folder for folder in mounts if folder.is_dir()), mounts[0]), "cpu.cfs_quota_us"
        else:
            continue
        # In a container the path may be that of the host, which is not there; its own group is then the mount.
        group = mount / path.lstrip("/")
        while True:
            if (group / name).exists():
                yield group / name
            if group == mount or mount not in group.parents:
                break
            group = group.parent


def _quota(file: Path) -> float | None:
    """Cores that a file allows; None for all. OSError or ValueError when it cannot be read."""
    text = file.read_text("utf-8").split()
    if file.name == "cpu.max":
        if len(text) != 2:
            raise ValueError(f"{' '.join(text)[:40]!r} is not a quota and a period")
        quota, period = text
    else:
        quota, period = text[0] if text else "", (file.parent / "cpu.cfs_period_us").read_text("utf-8").strip()
    if quota in ("max", "-1"):
        return None
    cores = int(quota) / int(period) if int(period) > 0 else 0.0
    if cores <= 0:
        raise ValueError(f"{quota} of {period} microseconds")
    return cores
