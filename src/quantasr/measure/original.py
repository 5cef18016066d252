"""The original model as a system to be measured."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from quantasr.measure.bench import Original


def load_original(where: str, threads: int = 0, *, trust: bool = False) -> Original:
    """Load a model in its own framework; ``size`` is that of its weights in float32.

    The framework is imported by name: this package itself stays free of PyTorch.
    """
    model = import_module("quantasr").load_model(Path(where) if Path(where).exists() else where, trust=trust)
    if threads:
        import_module("torch").set_num_threads(threads)
    transcriber = model.transcriber(name=f"{model.name} [PyTorch fp32]", chunk_seconds=0)
    return Original(where, transcriber, 4 * model.provenance["parameters"])
