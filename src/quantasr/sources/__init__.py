"""Where models come from: one table, and the verb that reads it.

Each source is a module with ``recognises(where) -> bool``, ``load(where, ...) -> AsrModel`` and
``rebuild(folder, trust=...) -> AsrModel``; it alone imports its framework, and only when it is asked to load.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from quantasr.errors import ModelLoadError
from quantasr.sources.asr_model import AsrModel, CtcModel, FrameModel, LatticeModel
from quantasr.sources.vocabulary import characters_of, new_vocabulary

SOURCES: dict[str, str] = {
    "nemo": "NVIDIA NeMo (CTC, RNN-T and TDT models): a .nemo file, or a pretrained model's name",
    "speechbrain": "SpeechBrain (EncoderASR, EncoderDecoderASR): a folder with hyperparams.yaml, or its own hub id",
    "kaldi": "Kaldi and Vosk (nnet3): a folder with final.mdl or am/final.mdl",
    "huggingface": "Hugging Face Transformers (AutoModelForCTC, Whisper): a folder with config.json, or a hub id",
}
"""Name of each source and what it reads; the first that recognises a place loads it."""


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


def adopt_model(obj: Any, name: str | None = None) -> AsrModel | None:
    """The :class:`AsrModel` around a framework's own live recogniser; None when no source knows its kind."""
    for source in SOURCES:
        module = import_module(f"quantasr.sources.{source}")
        if hasattr(module, "adopts") and module.adopts(obj):
            model: AsrModel = module.adopt(obj, name)
            return model
    return None


def rebuild_model(source: str, folder: str | Path, *, trust: bool = False) -> AsrModel:
    """The model whose :attr:`AsrModel.files` lie in ``folder``, with random weights: the caller has those.

    ``source`` is the ``provenance["source"]`` of the original. Nothing in ``folder`` is executed, but for SpeechBrain's
    ``hyperparams.yaml``, which needs ``trust``. Raises :class:`ModelLoadError`.
    """
    if source not in SOURCES:
        raise ModelLoadError(f"source {source!r} is unknown: choose one of {', '.join(SOURCES)}")
    try:
        model: AsrModel = import_module(f"quantasr.sources.{source}").rebuild(Path(folder), trust=trust)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ModelLoadError):
            raise
        raise ModelLoadError(f"{folder}: does not describe a model of {source}: {error}") from error
    return model


__all__ = [
    "SOURCES",
    "AsrModel",
    "CtcModel",
    "FrameModel",
    "LatticeModel",
    "adopt_model",
    "characters_of",
    "load_model",
    "new_vocabulary",
    "rebuild_model",
]
