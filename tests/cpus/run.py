"""Run the tests of what depends on the CPU as on other CPUs, under QEMU's user mode.

    python tests/cpus/run.py [--install] [CPU ...]

It needs ``qemu-x86_64`` (Debian: ``qemu-user``), which ``--install`` fetches where ``apt-get`` may. Without it nothing
is run, a line says so, and the exit code is 0: CPUs that cannot be had fail no test.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]

ARM64 = "ARM64"
CPUS = {
    "Haswell": "AVX2 without VNNI: sums of two 8-bit products saturate at 16 bits",
    "Nehalem": "no AVX at all",
    ARM64: "the sample's texts on OpenVINO",
}
"""QEMU's names, and what is to be seen on them. It emulates no AVX-512."""

TESTS = ["tests/test_cpu.py", "tests/engines/test_exactness.py"]

_PER_CPU = 900  # seconds; on two cores they take two to three minutes


def emulator(install: bool) -> str | None:
    """QEMU's program for x86-64, installed first where that is allowed."""
    found = shutil.which("qemu-x86_64")
    if found is None and install and hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["apt-get", "update"], ["apt-get", "install", "--yes", "--no-install-recommends", "qemu-user"]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{' '.join(command)}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}", flush=True)
                return None
        found = shutil.which("qemu-x86_64")
    return found


def start(qemu: str, cpu: str, folder: Path, install: bool) -> tuple[subprocess.Popen[bytes], Path]:
    """Begin the tests on an emulated CPU: the process, and the file that takes what it says."""
    log = folder / f"{cpu}.log"
    if cpu == ARM64:
        script = [sys.executable, str(ROOT / "tests" / "cpus" / "arm64.py"), *(["--install"] if install else [])]
        with log.open("wb") as file:
            return subprocess.Popen(script, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT), log
    # The program is the interpreter itself, named as in its virtual environment, so that it finds its packages.
    python = [qemu, "-cpu", cpu, "-0", sys.executable, str(Path(sys.executable).resolve())]
    command = [*python, "-m", "pytest", "-p", "no:cacheprovider", *TESTS]
    environment = {**os.environ, "QUANTASR_CACHE": str(folder / cpu), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT), log


def main() -> int:
    """Run them all side by side; the exit code is 1 if a test failed on any CPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cpus", nargs="*", metavar="CPU", help=f"of {', '.join(CPUS)} (all)")
    parser.add_argument("--install", action="store_true", help="install QEMU where apt-get may")
    arguments = parser.parse_args()
    if unknown := set(arguments.cpus) - set(CPUS):
        parser.error(f"{sorted(unknown)[0]}: choose from {', '.join(CPUS)}")
    if platform.machine() != "x86_64" or sys.platform != "linux":
        print("other CPUs are emulated on x86-64 Linux only: not run")
        return 0
    qemu = emulator(arguments.install)
    if qemu is None:
        print("other CPUs need qemu-x86_64 (Debian: apt-get install qemu-user): not run")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        begin = time.monotonic()
        running = {cpu: start(qemu, cpu, Path(scratch), arguments.install) for cpu in arguments.cpus or CPUS}
        failed = False
        for cpu, (process, log) in running.items():
            try:
                code = process.wait(timeout=max(1.0, _PER_CPU - (time.monotonic() - begin)))
            except subprocess.TimeoutExpired:
                process.kill()
                code = -1
            lines = [
                line for line in log.read_text("utf-8", "replace").splitlines() if "TCG doesn't support" not in line
            ]
            print(f"-- {cpu} ({CPUS[cpu]}): {'passed' if code == 0 else 'FAILED'}")
            print("\n".join(lines[-1:] if code == 0 else lines), flush=True)
            failed |= code != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
