"""SpeechBrain's ``EncoderASR`` (CTC) and ``EncoderDecoderASR`` (attention) as an :class:`AsrModel`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from quantasr.errors import ModelLoadError
from quantasr.sources.asr_model import AsrModel
from quantasr.sources.speechbrain.interface import (
    HYPERPARAMS,
    check_weights,
    find_hyperparameters,
    open_interface,
    require_speechbrain,
)
from quantasr.sources.speechbrain.skeleton import files_of, rebuild_interface

_HUB = "speechbrain/"


def recognises(where: str) -> bool:
    """Whether ``where`` is a folder with a ``hyperparams.yaml`` or one of SpeechBrain's own hub ids."""
    path = Path(where)
    if path.exists():
        return (path / HYPERPARAMS).is_file()
    return where.startswith(_HUB) and where.count("/") == 1


def load(where: str, *, revision: str | None = None, trust: bool = False) -> AsrModel:
    """Load a recogniser with its features, its tokens and its decoder.

    Reading ``hyperparams.yaml`` runs code, which needs ``trust``. Raises :class:`ModelLoadError`.
    """
    interface = open_interface(where, revision=revision, trust=trust)
    # SpeechBrain freezes what is loaded for inference.
    interface.mods.requires_grad_(True)
    model = _model(interface, where, Path(where).resolve().name, revision)
    model.files = files_of(interface, find_hyperparameters(where, revision).read_bytes(), model.provenance)
    return model


def rebuild(folder: Path, *, trust: bool = False) -> AsrModel:
    """The model whose :attr:`AsrModel.files` lie in ``folder``, with random weights; SpeechBrain and trust are needed.

    Raises :class:`ModelLoadError`.
    """
    interface, row = rebuild_interface(folder, trust=trust)
    interface.mods.requires_grad_(True)
    model = _model(interface, str(row["model"]), str(row["name"]), row["revision"])
    model.provenance = row
    return model


def adopts(obj: Any) -> bool:
    """Whether ``obj`` is a live interface of SpeechBrain's that recognises speech; imports nothing."""
    loaded = sys.modules.get("speechbrain.inference.ASR")
    return loaded is not None and isinstance(obj, loaded.EncoderASR | loaded.EncoderDecoderASR)


def adopt(interface: Any, name: str | None = None) -> AsrModel:
    """The same model around an interface that is loaded already; it goes on working as it did.

    Raises :class:`ModelLoadError`.
    """
    name = name or type(interface).__name__
    if str(interface.device) != "cpu":
        raise ModelLoadError(f"{name}: is on {interface.device}: load it with run_opts={{'device': 'cpu'}}")
    check_weights(name, interface.mods)
    return _model(interface, name, name, None)


def _model(interface: Any, where: str, name: str, revision: str | None) -> AsrModel:
    provenance = {
        "source": "speechbrain",
        "model": where,
        "name": name,
        "revision": revision,
        "speechbrain": require_speechbrain(where),
    }
    if hasattr(interface, "decoding_function"):
        from quantasr.sources.speechbrain.ctc import load_ctc

        return load_ctc(interface, where, provenance)
    from quantasr.sources.speechbrain.attention import load_attention

    return load_attention(interface, where, provenance)


__all__ = ["adopt", "adopts", "load", "rebuild", "recognises"]
