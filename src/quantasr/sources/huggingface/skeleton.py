"""A Transformers model without its weights: what :func:`quantasr.sources.rebuild_model` makes it of again."""

from __future__ import annotations

import json
from typing import Any, Protocol

from quantasr.sources.wav2vec2.masking import set_time_masking
from quantasr.speech.frontend import Frontend

SKELETON = "huggingface.json"
_CONFIG = "config.json"


class _Described(Protocol):
    def to_dict(self) -> dict[str, Any]: ...


def files_of(
    name: str,
    module: Any,
    frontend: Frontend,
    tokenizer: _Described,
    padded: bool,
    provenance: dict[str, Any],
    **more: Any,
) -> dict[str, bytes]:
    """Name -> content; ``more`` is what a kind of model needs besides."""
    skeleton = {
        "name": name,
        "frontend": frontend.to_dict(),
        "tokenizer": tokenizer.to_dict(),
        "padded_batches": padded,
        "provenance": provenance,
        **more,
    }
    return {
        _CONFIG: _config_of(module),
        SKELETON: json.dumps(skeleton, ensure_ascii=False, indent=1).encode(),
    }


def mask_time(module: Any, files: dict[str, bytes], probability: float, length: int) -> bool:
    """As :func:`set_time_masking`, also in the configuration in ``files``: by it a model has an embedding for it."""
    found = set_time_masking(module, probability, length)
    files[_CONFIG] = _config_of(module)
    return found


def _config_of(module: Any) -> bytes:
    config = json.loads(module.config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)  # where it happened to lie
    return json.dumps(config, indent=1).encode()
