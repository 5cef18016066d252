"""Where models come from: one table, and the verb that reads it.

Each source is a module with ``recognises(where) -> bool`` and ``load(where, ...) -> AsrModel``; it alone imports
its framework, and only when it is asked to load.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from quantasr.errors import ModelLoadError
from quantasr.sources.asr_model import AsrModel

SOURCES: dict[str, str] = {
    "huggingface": "Hugging Face Transformers (AutoModelForCTC): a folder with config.json, or a hub id",
}
"""Name of each source and what it reads."""


def load_model(
    where: str | Path, *, source: str = "auto", revision: str | None = None, trust: bool = False
) -> AsrModel:
    """Load a trained recogniser from a folder or a hub id.

    ``source`` is a name from :data:`SOURCES`, or ``auto`` to find out. ``trust`` allows what would execute code
    while reading, such as pickled weights. Raises :class:`ModelLoadError`.
    """
    names = list(SOURCES) if source == "auto" else [source]
    for name in names:
        if name not in SOURCES:
            raise ModelLoadError(f"source {name!r} is unknown: choose one of auto, {', '.join(SOURCES)}")
        module = import_module(f"quantasr.sources.{name}")
        if source != "auto" or module.recognises(str(where)):
            model: AsrModel = module.load(str(where), revision=revision, trust=trust)
            return model
    problem = "no source recognises it" if Path(where).exists() else "no such folder"
    raise ModelLoadError(f"{where}: {problem}; quantasr reads {'; '.join(SOURCES.values())}")


__all__ = ["SOURCES", "AsrModel", "load_model"]
