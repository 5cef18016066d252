"""What the CPU can do, and how much of it may be used."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np
import pytest

from quantasr import cpu
from quantasr.cpu import Cpu, Share, share, this_cpu

# NumPy reads the same bits for its own kernels; names on its left, ours on the right.
_NUMPY = {"AVX2": "avx2", "FMA3": "fma", "AVX": "avx", "SSSE3": "ssse3", "SSE42": "sse4_2", "F16C": "f16c"}
_NUMPY |= {"AVX512F": "avx512f", "NEON": "asimd", "ASIMDDP": "asimddp", "ASIMDHP": "asimdhp"}


def test_features_are_those_that_numpy_found() -> None:
    found = this_cpu()
    assert found.known and found.name
    features = np.core._multiarray_umath.__cpu_features__  # type: ignore[attr-defined]
    theirs = {ours for name, ours in _NUMPY.items() if features.get(name)}
    assert theirs and theirs == found.features & set(_NUMPY.values())


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64's features in two ways")
def test_what_the_kernel_says_is_found_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden() -> tuple[str, frozenset[str]]:
        raise PermissionError("no memory that can be executed")

    monkeypatch.setattr(cpu, "_x86", forbidden)
    monkeypatch.setattr(cpu, "_cpuinfo", lambda: {"model name": "Some CPU", "flags": "avx2 avx512_vnni fpu"})
    found = this_cpu.__wrapped__()
    assert (found.name, found.saturates) == ("Some CPU", False)
    monkeypatch.setattr(cpu, "_cpuinfo", dict)
    unknown = this_cpu.__wrapped__()
    assert not unknown.known and not unknown.saturates and unknown.integer_products == "unknown"


@pytest.mark.parametrize(
    ("architecture", "features", "saturates", "words"),
    [
        ("x86_64", {"avx2", "fma"}, True, "avx2 without VNNI (pairs of products in 16 bits, which saturate)"),
        ("x86_64", {"avx512bw", "avx2"}, True, "avx512bw without VNNI (pairs of products in 16 bits, which saturate)"),
        ("x86_64", {"avx2", "avx_vnni"}, False, "avx_vnni (sums in 32 bits)"),
        ("x86_64", {"avx512_vnni", "amx_int8"}, False, "avx512_vnni, amx_int8 (sums in 32 bits)"),
        ("aarch64", {"asimd", "asimddp"}, False, "asimddp (sums in 32 bits)"),
        ("aarch64", {"asimd"}, False, "asimd (products in 16 bits, sums in 32 bits)"),
        ("riscv64", set(), False, "unknown"),
    ],
)
def test_integer_products(architecture: str, features: set[str], saturates: bool, words: str) -> None:
    found = Cpu("some", architecture, frozenset(features))
    assert (found.saturates, found.integer_products) == (saturates, words)


def test_cpus_of_one_name_have_other_keys() -> None:
    first, second = Cpu("Virtual", "x86_64", frozenset({"avx2"})), Cpu("Virtual", "x86_64", frozenset({"avx512_vnni"}))
    assert first.key != second.key and first.key == Cpu("Virtual", "x86_64", frozenset({"avx2"})).key


def test_registers_that_the_system_does_not_save_are_no_features() -> None:
    everything, without_avx512 = 0x600E7, 0x7
    assert cpu._saved("avx512_vnni", everything) and not cpu._saved("avx512_vnni", without_avx512)
    assert cpu._saved("avx2", without_avx512) and not cpu._saved("avx2", 0x3)
    assert cpu._saved("sse4_2", 0) and not cpu._saved("amx_int8", without_avx512)


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        # The narrowest of those around it holds.
        (
            {
                "proc/self/cgroup": "0::/pod/box\n",
                "sys/fs/cgroup/pod/cpu.max": "50000 100000\n",
                "sys/fs/cgroup/pod/box/cpu.max": "200000 100000\n",
            },
            0.5,
        ),
        # In a container the path may be the host's.
        ({"proc/self/cgroup": "0::/docker/4a7f\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3.0),
        # Version 1.
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/box\n2:memory:/box\n",
                "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
            },
            2.5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_the_quota_of_a_control_group(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    found = share(_tree(tmp_path, files))
    assert (found.quota, found.notes) == (quota, ())


@pytest.mark.parametrize("text", ["", "many 100000", "100000 0", "100000", "-5 100000"])
def test_a_quota_that_cannot_be_read_is_told_and_ignored(tmp_path: Path, text: str) -> None:
    root = _tree(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": text})
    found = share(root)
    assert found.quota is None and found.threads == found.cores
    assert len(found.notes) == 1 and "cpu.max: cannot read the CPU quota" in found.notes[0]
    assert "\n" not in found.notes[0]


@pytest.mark.parametrize(
    ("cores", "quota", "threads"),
    [(8, None, 8), (8, 2.0, 2), (8, 1.5, 2), (2, 16.0, 2), (8, 0.2, 1), (8, 3.0000001, 3)],
)
def test_threads(cores: int, quota: float | None, threads: int) -> None:
    assert Share(cores, quota).threads == threads


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs the affinity of Linux")
def test_affinity_counts() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert share().cores == 1 == cpu.threads()
    finally:
        os.sched_setaffinity(0, before)
