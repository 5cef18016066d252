"""NVIDIA NeMo models (a ``.nemo`` file): with a CTC head as a :class:`CtcModel`, transducers as a :class:`PartsModel`.

A hybrid has both heads: it is a transducer with its CTC head beside it, and with ``#ctc`` behind its name a CTC model.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantasr.errors import ModelLoadError
from quantasr.sources.asr_model import CtcModel
from quantasr.sources.nemo.archive import CONFIG, open_archive
from quantasr.sources.nemo.config import NemoConfig, read_config
from quantasr.sources.nemo.graph import CtcGraph
from quantasr.sources.nemo.hub import download
from quantasr.sources.nemo.module import NemoModel, build, fill, fits, require_nemo, subsampling_factor
from quantasr.sources.nemo.rewrites import rewrite
from quantasr.sources.nemo.skeleton import PIECES, SKELETON, config_of, files_of
from quantasr.sources.nemo.tokenizer import read_sentencepiece, read_tokenizer
from quantasr.sources.nemo.transducer import TransducerModel, WholeTransducer, decoding_of
from quantasr.speech.frontend import LogMelFrontend
from quantasr.speech.tokenizer import Tokenizer

CTC_ONLY = "#ctc"
"""Behind the place of a hybrid model: its CTC head alone, as a :class:`CtcModel`."""

# NVIDIA's names on its own hub and its models on Hugging Face's.
_PRETRAINED = re.compile(r"nvidia/[\w.-]+|(?:[\w.-]+/)?stt_[\w.-]+|(?:QuartzNet|Jasper)[\w.-]+")


def recognises(where: str) -> bool:
    """Whether ``where`` is a ``.nemo`` file, a folder that one was unpacked into, or one of NVIDIA's model names."""
    where = where.removesuffix(CTC_ONLY)
    path = Path(where)
    if path.is_dir():
        return (path / CONFIG).is_file()
    return where.endswith(".nemo") or (not path.exists() and _PRETRAINED.fullmatch(where) is not None)


def load(where: str, *, revision: str | None = None, trust: bool = False) -> CtcModel | TransducerModel:
    """Load a CTC model or a transducer with its features and tokens; of a hybrid with ``#ctc`` behind it, its CTC half.

    Nothing in the file is executed, whatever ``trust`` says: NeMo's own ``restore_from`` is not used. Raises
    :class:`ModelLoadError` when anything is missing, of another kind, or not finite.
    """
    version = require_nemo(where)
    where, ctc = where.removesuffix(CTC_ONLY), where.endswith(CTC_ONLY)
    place = where if Path(where).exists() else str(download(where, revision))
    with open_archive(place) as archive:
        config = read_config(where, archive.read(CONFIG), ctc=ctc)
        tokenizer, pieces = read_tokenizer(archive, config), read_sentencepiece(archive, config)
        state = archive.weights()
    module = build(where, config, len(tokenizer) - 1)
    fill(where, module, config, state)
    _check_features(where, config.frontend, state)
    provenance = {
        "source": "nemo",
        "model": where,
        "revision": revision,
        "architecture": config.model_class,
        "encoder": config.encoder_class,
        "parameters": sum(p.numel() for p in module.parameters()),
        "nemo": version,
    }
    name = re.sub(r"\.nemo$", "", Path(where).resolve().name)
    return _assemble(name, config, module, tokenizer, pieces, provenance)


def rebuild(folder: Path, *, trust: bool = False) -> CtcModel | TransducerModel:
    """The model whose :attr:`AsrModel.files` lie in ``folder``, with random weights; NeMo is needed."""
    row = json.loads((folder / SKELETON).read_text("utf-8"))
    config = config_of(row)
    pieces = (folder / PIECES).read_bytes() if (folder / PIECES).is_file() else None
    tokenizer = Tokenizer.from_dict(row["tokenizer"])
    module = build(str(folder), config, len(tokenizer) - 1)
    return _assemble(row["name"], config, module, tokenizer, pieces, row["provenance"])


def _assemble(
    name: str,
    config: NemoConfig,
    module: NemoModel,
    tokenizer: Tokenizer,
    pieces: bytes | None,
    provenance: dict[str, Any],
) -> CtcModel | TransducerModel:
    graph = CtcGraph(module) if config.transducer is None else WholeTransducer(module)
    factor = subsampling_factor(module, config)
    with fits(provenance["model"], config):
        min_samples = _min_samples(graph, config.frontend, factor)
    common: dict[str, Any] = {
        "name": name,
        "family": config.family,
        "module": module,
        "graph": graph,
        "frontend": config.frontend,
        "tokenizer": tokenizer,
        "padded_batches": True,
        "frame_seconds": config.frontend.hop_length * factor / config.frontend.sample_rate,
        "min_samples": min_samples,
        "rewrite": rewrite,
        "provenance": provenance,
        "files": files_of(name, config, tokenizer, pieces, provenance),
    }
    if config.transducer is None:
        return CtcModel(**common)
    return TransducerModel(**common, decoding=decoding_of(module, config.transducer))


@torch.no_grad()
def _min_samples(graph: nn.Module, frontend: LogMelFrontend, factor: int) -> int:
    """The shortest wave that gives two frames.

    Not one: OpenVINO 2026.4 fuses attention into a kernel that, when its first run ever had a single frame, is wrong
    in all runs of 16 frames and more that follow.
    """
    lengths = torch.arange(1, 2 * factor + 2)
    features = torch.zeros(len(lengths), len(lengths), frontend.bins)
    _, counts = graph(features, lengths)
    return frontend.samples_of(int(lengths[counts >= 2][0]))


def _check_features(where: str, frontend: LogMelFrontend, state: dict[str, Tensor]) -> None:
    """The checkpoint's own window and mel filters must be those that its configuration describes."""
    mine = {
        "preprocessor.featurizer.window": frontend.window_values,
        "preprocessor.featurizer.fb": frontend.mel_filters.T[None],
    }
    for key, values in mine.items():
        stored = state.get(key)
        if stored is None:
            continue
        # A checkpoint in half precision has them rounded.
        tolerance = max(1e-5, torch.finfo(stored.dtype).eps) if stored.is_floating_point() else 0.0
        given = stored.float()
        if given.shape != values.shape or not torch.allclose(given, torch.tensor(values), rtol=tolerance, atol=1e-6):
            raise ModelLoadError(f"{where}: {key} in its weights is not what its configuration describes")
