"""A NeMo model without its weights: what :func:`quantasr.sources.rebuild_model` makes it of again."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from quantasr.sources.nemo.config import NemoConfig
from quantasr.sources.nemo.transducer_config import TransducerConfig
from quantasr.speech.frontend import LogMelFrontend
from quantasr.speech.tokenizer import Tokenizer

SKELETON = "nemo.json"
PIECES = "tokenizer.model"
"""The SentencePiece model, by which texts are cut into pieces."""


def files_of(
    name: str, config: NemoConfig, tokenizer: Tokenizer, pieces: bytes | None, provenance: dict[str, Any]
) -> dict[str, bytes]:
    """Name -> content."""
    row = {
        "name": name,
        "config": {**asdict(config), "frontend": config.frontend.to_dict()},
        "tokenizer": tokenizer.to_dict(),
        "provenance": provenance,
    }
    files = {SKELETON: json.dumps(row, ensure_ascii=False, indent=1).encode()}
    return files if pieces is None else {**files, PIECES: pieces}


def config_of(row: dict[str, Any]) -> NemoConfig:
    """The configuration in a skeleton."""
    frontend = {key: value for key, value in row["config"]["frontend"].items() if key != "kind"}
    transducer = row["config"].get("transducer")
    if transducer is not None:
        transducer = TransducerConfig(**{**transducer, "durations": tuple(transducer["durations"])})
    return NemoConfig(**{**row["config"], "frontend": LogMelFrontend(**frontend), "transducer": transducer})
