"""Peak memory and load time, measured in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantasr.errors import EngineError


@dataclass(frozen=True)
class Footprint:
    """What one whole process needed: bytes of resident memory at its peak, seconds to load, seconds in all."""

    peak_bytes: int
    load_seconds: float
    process_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)


def peak_memory() -> int:
    """Bytes of resident memory that this process has had at most."""
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage would also count what the parent had when it started us.
        for line in status.read_text("utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def footprint(arguments: Sequence[str]) -> Footprint:
    """Run ``quantasr transcribe ARGUMENTS`` in a new process and read the figures that it reports of itself.

    Raises :class:`EngineError` with what it said when it fails.
    """
    command = [sys.executable, "-m", "quantasr", "transcribe", *arguments, "--json", "--stats"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):  # 3: done, with a word about the recording
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise EngineError(f"measuring memory with '{' '.join(command[3:])}' failed: {said[-1]}")
    stats = json.loads(done.stdout.splitlines()[-1])["stats"]
    return Footprint(stats["peak_bytes"], stats["load_seconds"], stats["process_seconds"])
