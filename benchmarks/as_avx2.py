"""Run a Python program as on a CPU with AVX2 alone, at full speed, on an x86-64 machine that has AVX-512, VNNI or bf16.

    python benchmarks/as_avx2.py -m quantasr doctor
    python benchmarks/as_avx2.py benchmarks/whisper_tiny.py --only time

Libraries ask the CPU with the instruction CPUID. In a copy of this environment (hard links, in ``build/avx2``) that
instruction is replaced by an invalid one of the same length, in the libraries that multiply, and a signal handler
answers in its place: what CPUID says, without the features after AVX2. So ONNX Runtime, OpenVINO, NumPy, CTranslate2
and PyTorch's oneDNN take their AVX2 kernels. PyTorch's FBGEMM and ``quantasr.cpu`` find the real CPU all the same. For
measuring only.

Needs Linux, a C compiler and objdump (binutils). The first run takes two minutes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOME = ROOT / "build" / "avx2"

LIBRARIES = (
    *("onnxruntime_pybind11_state*.so", "libonnxruntime.so.*", "libopenvino_intel_cpu_plugin.so", "libopenvino.so.*"),
    *("_multiarray_umath*.so", "libctranslate2*.so*", "libtorch_cpu.so"),
)
"""Those that choose kernels by the CPU's features; what is not installed is left out."""

_CPUID, _INVALID = b"\x0f\xa2", b"\x0f\x0b"  # cpuid, ud2

# Bits of leaf 7: AVX-512 in all its parts, VNNI, bf16, fp16, AMX; of leaf 0xd: the registers that belong to them.
_HANDLER = r"""
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <string.h>
#include <ucontext.h>

static void answer(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)registers[REG_RIP];
    unsigned leaf = registers[REG_RAX], subleaf = registers[REG_RCX], a, b, c, d;
    (void)number, (void)info;
    if (code[0] != 0x0f || code[1] != 0x0b) { signal(SIGILL, SIG_DFL); return; }
    __cpuid_count(leaf, subleaf, a, b, c, d);
    if (leaf == 7 && subleaf == 0) { b &= ~0xdc230000u; c &= ~0x5842u; d &= ~0x3c0010cu; }
    if (leaf == 7 && subleaf == 1) a = b = c = d = 0;
    if (leaf == 0xd && subleaf == 0) a &= 7;
    registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

__attribute__((constructor(101))) static void install(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGILL, &action, 0);
}
"""


def main() -> None:
    """Make the copy, unless it is there, and run what follows in it."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    environment, handler = HOME / "environment", HOME / "handler.so"
    if not handler.exists():
        HOME.mkdir(parents=True, exist_ok=True)
        (HOME / "handler.c").write_text(_HANDLER)
        copy(Path(sys.prefix), environment)
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", HOME / "handler.c", "-o", handler], check=True)
    python = environment / "bin" / "python"
    # Rows that another kind of CPU left in the cache would be taken for this one's, which has the same name.
    variables = {**os.environ, "LD_PRELOAD": str(handler), "QUANTASR_CACHE": str(HOME / "cache")}
    os.execve(python, [str(python), *sys.argv[1:]], variables)


def copy(source: Path, target: Path) -> None:
    """A copy of an environment whose libraries do not see the CPU."""
    subprocess.run(["cp", "--archive", "--link", source, target], check=True)
    for pattern in LIBRARIES:
        for library in target.rglob(pattern):
            if library.is_symlink() or library.read_bytes()[:4] != b"\x7fELF":
                continue
            data, count = hidden(library)
            library.unlink()  # the file of the original environment has another name still
            library.write_bytes(data)
            library.chmod(0o755)
            print(f"{library.name}: {count} questions to the CPU", file=sys.stderr, flush=True)


def hidden(library: Path) -> tuple[bytes, int]:
    """A library's bytes with every CPUID instruction replaced, and how many there are."""
    headers = subprocess.run(["objdump", "-h", library], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^\s*\d+\s+\S+\s+([0-9a-f]+)\s+([0-9a-f]+)\s+[0-9a-f]+\s+([0-9a-f]+)", headers, re.MULTILINE)
    sections = [tuple(int(number, 16) for number in row) for row in found]
    data, count = bytearray(library.read_bytes()), 0
    command = ["objdump", "--disassemble", "--no-show-raw-insn", str(library)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.rstrip().endswith("\tcpuid"):
                continue
            address = int(line.split(":")[0], 16)
            size, start, offset = next(row for row in sections if row[1] <= address < row[1] + row[0])
            place = offset + address - start
            assert size and data[place : place + 2] == _CPUID
            data[place : place + 2] = _INVALID
            count += 1
    return bytes(data), count


if __name__ == "__main__":
    main()
