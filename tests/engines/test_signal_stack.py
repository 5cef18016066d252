"""Ctrl-C stays Ctrl-C when graphs have been loaded and let go."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_PROGRAM = """
import signal, sys
from pathlib import Path
from quantasr.engines import EngineOptions, load_engine

engines = [load_engine("openvino", Path(sys.argv[1]), EngineOptions(1, "fp32")) for _ in range(2)]
while engines:
    engines.pop(0)  # in the order in which they came
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_after_graphs_have_gone(sample_artifact: Callable[[str], Path]) -> None:
    graph = sample_artifact("default") / "graph.onnx"
    done = subprocess.run([sys.executable, "-c", _PROGRAM, graph], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
