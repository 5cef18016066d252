"""A Kaldi model without its weights: ``final.mdl`` full of zeros, packed, and what makes a recogniser of it again."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quantasr.errors import ModelLoadError
from quantasr.kaldi.nnet3.components import Component
from quantasr.kaldi.nnet3.model import AcousticModel, read_model_from, write_model_to
from quantasr.kaldi.stream import Reader
from quantasr.kaldi.writer import Writer
from quantasr.sources.kaldi.requantize import weight_field
from quantasr.speech.frontend import KaldiFrontend, frontend_from_dict

SKELETON = "skeleton.mdl.gz"
_DESCRIPTION = "kaldi.json"
_ARRAYS = "frontend.npz"
_MOST_BYTES = 2 << 30


def files_of(model: AcousticModel, frontend: KaldiFrontend, **description: Any) -> dict[str, bytes]:
    """The files that :func:`read_skeleton` reads; ``description`` is JSON-ready.

    The frontend's arrays are not among them, because every artifact holds those (``frontend.npz``).
    """
    components = {name: _emptied(component) for name, component in model.network.components.items()}
    empty = replace(model, network=replace(model.network, components=components), binary=True)
    file = io.BytesIO()
    write_model_to(Writer(file), empty)
    row = {"frontend": frontend.to_dict(), **description}
    return {
        SKELETON: gzip.compress(file.getvalue(), 1, mtime=0),
        _DESCRIPTION: json.dumps(row, ensure_ascii=False, indent=1).encode(),
    }


def read_skeleton(folder: Path) -> tuple[AcousticModel, KaldiFrontend, dict[str, Any]]:
    """The model with zeros for weights, its frontend, and the description. Raises ModelLoadError and what JSON does."""
    row = json.loads((folder / _DESCRIPTION).read_text("utf-8"))
    try:
        with gzip.open(folder / SKELETON) as packed:
            data = packed.read(_MOST_BYTES)
        arrays: dict[str, Any] = {}
        if (folder / _ARRAYS).is_file():
            with np.load(folder / _ARRAYS, allow_pickle=False) as given:
                arrays = dict(given)
    except (EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise ModelLoadError(f"{folder}: {SKELETON} or {_ARRAYS} is damaged: {error}: copy it again") from None
    model = read_model_from(Reader(data, str(folder / SKELETON)))
    return model, _frontend(row.pop("frontend"), arrays), row


def _frontend(row: dict[str, Any], arrays: dict[str, Any]) -> KaldiFrontend:
    frontend = frontend_from_dict(row, arrays)
    if not isinstance(frontend, KaldiFrontend):
        raise ModelLoadError(f"{_DESCRIPTION}: its features are no features of Kaldi's")
    return frontend


def _emptied(component: Component) -> Component:
    name = weight_field(component)
    if name is None:
        return component
    weight = component.fields[name]
    zeros = np.broadcast_to(np.zeros((), weight.dtype), weight.shape)  # of any size, in no memory
    return replace(component, fields={**component.fields, name: zeros})
