"""A Transformers model without its weights: what :func:`quantasr.sources.rebuild_model` makes it of again."""

from __future__ import annotations

import json
from typing import Any

from quantasr.speech.frontend import Frontend
from quantasr.speech.tokenizer import CtcTokenizer

SKELETON = "huggingface.json"


def files_of(
    name: str, module: Any, frontend: Frontend, tokenizer: CtcTokenizer, padded: bool, provenance: dict[str, Any]
) -> dict[str, bytes]:
    """Name -> content."""
    skeleton = {
        "name": name,
        "frontend": frontend.to_dict(),
        "tokenizer": tokenizer.to_dict(),
        "padded_batches": padded,
        "provenance": provenance,
    }
    config = json.loads(module.config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)  # where it happened to lie
    return {
        "config.json": json.dumps(config, indent=1).encode(),
        SKELETON: json.dumps(skeleton, ensure_ascii=False, indent=1).encode(),
    }
