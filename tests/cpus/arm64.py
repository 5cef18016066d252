"""Transcribe with the sample on ARM64, under QEMU's user mode, and compare the texts with this machine's.

    python tests/cpus/arm64.py [--install] [--recordings N]

``--install`` fetches what it needs into ``build/arm64``: Debian's Python for ARM64 and the runtime's wheels. OpenVINO
alone is run: ONNX Runtime's import crashes under QEMU 7.2. Where something cannot be had a line says so, and the exit
code is 0.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOME = ROOT / "build" / "arm64"
SYSTEM, SITE = HOME / "system", HOME / "site"
PYTHON = SYSTEM / "usr" / "bin" / "python3.11"

# Debian 12's Python and the libraries that it and the wheels are linked to.
DEBIAN = (
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libstdc++6", "libgcc-s1"),
    *("libexpat1", "zlib1g", "libssl3", "libbz2-1.0", "liblzma5", "libsqlite3-0", "libffi8", "libuuid1", "libcrypt1"),
)
WHEELS = ("numpy", "openvino", "onnxruntime", "soundfile", "soxr", "kaldialign", "rich")
PLATFORMS = ("2014", "_2_17", "_2_27", "_2_28", "_2_31", "_2_34", "_2_35")

_RUN = """
import json, sys
import quantasr
from quantasr import sample
from quantasr.cpu import this_cpu
from quantasr.engines.exactness import inexact
from quantasr.speech.manifest import read_manifest
speech = read_manifest(sample.evaluation())[:int(sys.argv[2])]
recogniser = quantasr.load(sys.argv[1], engine="openvino", compute="fp32", threads=1)
texts = [recogniser.transcribe([one.load(recogniser.sample_rate)])[0].text for one in speech]
print(json.dumps({"texts": texts, "cpu": this_cpu().integer_products, "inexact": sorted(inexact("openvino"))}))
"""


class UnavailableError(Exception):
    """What cannot be had, in words."""


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """A command's output; UnavailableError with its last line when it fails."""
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnavailableError(f"{command[0]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return done.stdout


def install() -> None:
    """Fetch Python and the wheels, unless they are there."""
    if not PYTHON.exists():
        if not (shutil.which("apt-get") and shutil.which("dpkg")) or os.geteuid() != 0:
            raise UnavailableError("Debian's packages for ARM64 need apt-get, and root")
        packages = HOME / "packages"
        packages.mkdir(parents=True, exist_ok=True)
        run("dpkg", "--add-architecture", "arm64")
        run("apt-get", "update")
        run("apt-get", "download", *(f"{name}:arm64" for name in DEBIAN), cwd=packages)
        for package in packages.glob("*.deb"):
            run("dpkg", "-x", package, SYSTEM)
    if not (SITE / "openvino").exists():
        kinds = [f"--platform=manylinux{platform}_aarch64" for platform in PLATFORMS]
        target = ["--target", SITE, "--python-version=3.11", "--implementation=cp", "--only-binary=:all:", "--quiet"]
        abis = ["--abi=cp311", "--abi=abi3", "--abi=none"]
        run(sys.executable, "-m", "pip", "install", *target, *abis, *kinds, "-c", "constraints.txt", *WHEELS)


def main() -> int:
    """Run it; the exit code is 1 where texts differ or products are wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true")
    parser.add_argument("--recordings", type=int, default=20, metavar="N")
    arguments = parser.parse_args()
    try:
        if arguments.install:
            install()
        qemu = shutil.which("qemu-aarch64")
        if qemu is None or not PYTHON.exists() or not SITE.exists():
            raise UnavailableError("needs qemu-aarch64 (Debian: qemu-user), and --install")
    except UnavailableError as error:
        print(f"ARM64 cannot be emulated: {error}: not run")
        return 0
    from quantasr import sample
    from quantasr.pipeline import quantize

    with tempfile.TemporaryDirectory() as scratch:
        artifact = Path(scratch) / "artifact"
        quantize(sample.model(), artifact, calibration=sample.calibration(), recipe="fast")
        own = str(ROOT / "src")
        emulated = [qemu, "-L", str(SYSTEM), str(PYTHON)]
        found = []
        for python, path in (([sys.executable], own), (emulated, f"{own}:{SITE}")):
            environment = {**os.environ, "PYTHONPATH": path, "QUANTASR_CACHE": scratch, "PYTHONDONTWRITEBYTECODE": "1"}
            command = [*python, "-c", _RUN, str(artifact), str(arguments.recordings)]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                print(f"{python[0]}: failed with {done.returncode}")
                return 1
            found.append(json.loads(done.stdout.splitlines()[-1]))
    here, there = found
    same = sum(a == b for a, b in zip(here["texts"], there["texts"], strict=True))
    wrong = ", ".join(there["inexact"]) or "nothing"
    print(f"ARM64 ({there['cpu']}), OpenVINO: {same} of {len(there['texts'])} texts as here; products wrong: {wrong}")
    return int(same < len(there["texts"]) or bool(there["inexact"]))


if __name__ == "__main__":
    sys.exit(main())
