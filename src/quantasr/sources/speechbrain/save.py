"""A SpeechBrain model written back as a folder that SpeechBrain's own interface opens."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantasr.errors import ModelLoadError
from quantasr.sources.asr_model import AsrModel
from quantasr.sources.speechbrain.interface import HYPERPARAMS, find_hyperparameters, open_interface, quiet


def save(model: AsrModel, folder: Path) -> None:
    """Fill ``folder`` with the original's files and the weights as they are now.

    SpeechBrain's weights are PyTorch's pickles of plain tensors, under the names that its pretrainer asks for; those of
    a Wav2Vec2 that lies in the folder are safetensors. A ``pretrained_path``, mostly the hub id that the model came
    from, becomes the folder itself. What was written is read back, which runs the ``hyperparams.yaml`` again that was
    trusted before. Raises :class:`ModelLoadError` when the original is gone, or its ``hyperparams.yaml`` reads weights
    from elsewhere.
    """
    where, interface = model.provenance["model"], _interface(model)
    root = find_hyperparameters(where, model.provenance.get("revision")).parent
    shutil.copytree(root, folder, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)
    hyperparameters = folder / HYPERPARAMS
    text = re.sub(r"^(pretrained_path\s*:\s*)(?!!)[^\s#]+", r"\1.", hyperparameters.read_text("utf-8"), flags=re.M)
    _replace(hyperparameters, lambda path: path.write_text(text, "utf-8"))
    for path, part in _checkpoints(interface, root).items():
        state = {key: value.detach().cpu() for key, value in part.state_dict().items()}
        _replace(folder / path, lambda file, state=state: torch.save(state, file))
    for path, lobe in _lobes(interface, root).items():
        _write_lobe(lobe.model, folder / path)
    _check(where, folder, interface.mods)


def _interface(model: Any) -> Any:
    return model.interface


def _checkpoints(interface: Any, root: Path) -> dict[Path, nn.Module]:
    """What the pretrainer loads weights into, by the file in the folder that they are read from."""
    pretrainer = interface.hparams.pretrainer
    return {
        path: part
        for name, part in pretrainer.loadables.items()
        # What has no weights (statistics, tokenizers) stays what it was.
        if isinstance(part, nn.Module) and part.state_dict()
        if (path := _inside(pretrainer.paths.get(name), root)) is not None
    }


def _lobes(interface: Any, root: Path) -> dict[Path, Any]:
    """Models of Hugging Face's that were read from a folder in the folder."""
    from speechbrain.integrations.huggingface.huggingface import HFTransformersInterface

    return {
        path: part
        for part in interface.mods.modules()
        if isinstance(part, HFTransformersInterface)
        if (path := _inside(part.config.name_or_path, root)) is not None
    }


def _inside(place: str | None, root: Path) -> Path | None:
    """``place`` from ``root`` on; None where it is elsewhere, or not there at all."""
    path = Path(place).absolute() if place else root
    return path.relative_to(root.absolute()) if path.exists() and path.is_relative_to(root.absolute()) else None


def _write_lobe(model: Any, folder: Path) -> None:
    """New weights in place of those in ``folder``, whose configuration stays what it was."""
    with tempfile.TemporaryDirectory(dir=folder) as name, quiet():
        model.save_pretrained(name)
        for old in [*folder.glob("*.safetensors*"), *folder.glob("pytorch_model*.bin*")]:
            old.unlink()
        for new in Path(name).glob("*.safetensors*"):
            new.rename(folder / new.name)


def _replace(path: Path, write: Any) -> None:
    """Write a file that is a copy of the original's, perhaps read-only."""
    path.unlink()
    write(path)


def _check(where: str, folder: Path, modules: nn.Module) -> None:
    """Raise :class:`ModelLoadError` unless what lies in ``folder`` is read as ``modules`` are."""
    found: dict[str, Tensor] = open_interface(str(folder), revision=None, trust=True).mods.state_dict()
    wanted = modules.state_dict()
    # Of an attention model we know more parts by name than its interface does.
    wrong = sorted(key for key in found if key not in wanted or not torch.equal(found[key], wanted[key].cpu()))
    if wrong:
        raise ModelLoadError(
            f"{where}: cannot be saved: its {HYPERPARAMS} does not read {wrong[0]} from a file in its folder"
        )
