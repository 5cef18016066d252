"""The original model as a system to be measured."""

from __future__ import annotations

from copy import copy
from importlib import import_module
from pathlib import Path

from quantasr.measure.bench import Original
from quantasr.measure.split import Clock, ClockedFrontend, ClockedPart, SplitRun


def load_original(where: str, threads: int = 0, *, trust: bool = False) -> Original:
    """Load a model in its own framework; ``size`` is that of its weights in float32.

    The framework is imported by name: this package itself stays free of PyTorch.
    """
    model = import_module("quantasr").load_model(Path(where) if Path(where).exists() else where, trust=trust)
    if threads:
        import_module("torch").set_num_threads(threads)
    name, size = f"{model.name} [PyTorch fp32]", 4 * model.provenance["parameters"]
    if not hasattr(model, "parts"):
        return Original(where, model.transcriber(name=name, chunk_seconds=0), size)
    clock = Clock()
    clocked = copy(model)
    clocked.frontend = ClockedFrontend(model.frontend, clock)
    parts = {part: ClockedPart(part, found, clock) for part, found in model.parts().items()}
    split = SplitRun(clocked.transcriber(parts), clock, tuple(parts))
    return Original(where, model.transcriber(name=name), size, split)
