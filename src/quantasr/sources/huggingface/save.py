"""A Transformers model written back as a folder that transformers loads."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantasr.errors import ModelLoadError
from quantasr.sources.asr_model import AsrModel, CtcModel
from quantasr.sources.huggingface.library import quiet

TOKENIZER_FILES = (
    "vocab.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    *("merges.txt", "normalizer.json"),  # Whisper's
)
"""What a tokenizer consists of, some of them here and some there."""

_OTHERS = (
    *("preprocessor_config.json", "processor_config.json", "feature_extractor_config.json"),
    *("LICENSE", "LICENSE.txt", "LICENSE.md"),
)


def save(model: AsrModel, folder: Path) -> None:
    """Fill ``folder``: configuration and weights (safetensors) as they are now, all else as it was.

    Raises :class:`ModelLoadError` when the place that the model came from has no feature extractor or tokenizer any
    more.
    """
    with quiet():
        _module(model).save_pretrained(folder)
    vocabulary = model.vocabulary if isinstance(model, CtcModel) else {}
    _copy_files(model, [name for name in (*TOKENIZER_FILES, *_OTHERS) if name not in vocabulary], folder)
    for name, content in vocabulary.items():
        if content is not None:
            (folder / name).write_bytes(content)


def _module(model: AsrModel) -> Any:
    return model.module


def _copy_files(model: AsrModel, names: Sequence[str], folder: Path) -> None:
    """Copy those files that are there from where the model was loaded: a folder, or the hub's cache."""
    where, revision = model.provenance["model"], model.provenance.get("revision")
    found = [path for name in names if (path := _original(where, revision, name)) is not None]
    if not any(path.name == "preprocessor_config.json" or path.name == "processor_config.json" for path in found):
        raise ModelLoadError(f"{where}: the model was loaded from there, and its files are there no more")
    for path in found:
        shutil.copyfile(path, folder / path.name)


def _original(where: str, revision: str | None, name: str) -> Path | None:
    if Path(where).exists():
        path = Path(where) / name
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(where, name, revision=revision)
    return Path(cached) if isinstance(cached, str) else None
