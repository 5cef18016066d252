"""Hugging Face Transformers models: CTC (``AutoModelForCTC``) as an :class:`CtcModel`, Whisper as its parts."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import torch

from quantasr.errors import ModelLoadError
from quantasr.sources.asr_model import AsrModel, CtcModel
from quantasr.sources.huggingface.graph import CtcGraph, adapter_layers, frames_adapted
from quantasr.sources.huggingface.library import load_errors, quiet, require_transformers
from quantasr.sources.huggingface.skeleton import SKELETON, files_of, mask_time
from quantasr.sources.huggingface.tokenizer import read_tokenizer
from quantasr.sources.huggingface.weights import load_weights
from quantasr.sources.wav2vec2.masking import guard_masking
from quantasr.sources.wav2vec2.rewrites import rewrite
from quantasr.speech.frontend import FbankFrontend, Frontend, WaveFrontend, frontend_from_dict
from quantasr.speech.tokenizer import Tokenizer

# config.json's model_type -> the family whose built-in recipes fit.
FAMILIES = {
    "wav2vec2": "wav2vec2",
    "hubert": "wav2vec2",
    "wavlm": "wav2vec2",
    "data2vec-audio": "wav2vec2",
    "wav2vec2-bert": "wav2vec2_bert",
}
WHISPER = "whisper"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def recognises(where: str) -> bool:
    """Whether ``where`` is a folder with a ``config.json`` or looks like a hub id."""
    path = Path(where)
    return (path / "config.json").is_file() if path.exists() else bool(_HUB_ID.fullmatch(where))


def load(where: str, *, revision: str | None = None, trust: bool = False) -> AsrModel:
    """Load a CTC model or a Whisper with its feature extractor and tokenizer.

    Weights come from safetensors; a folder that has only pickled weights needs ``trust``. Raises
    :class:`ModelLoadError` when anything is missing, of another kind, or not finite.
    """
    require_transformers(where)
    import transformers

    if Path(where).exists() and not (Path(where) / "config.json").is_file():
        raise ModelLoadError(f"{where}: not a Hugging Face model folder: it has no config.json")
    hub = {"revision": revision} if revision else {}
    with load_errors(where), quiet():
        config = transformers.AutoConfig.from_pretrained(where, **hub)
    if config.model_type == WHISPER:
        from quantasr.sources.huggingface.whisper import load_whisper

        return load_whisper(where, config, hub, trust=trust)
    if config.model_type not in FAMILIES:
        known = ", ".join((*FAMILIES, WHISPER))
        raise ModelLoadError(f"{where}: model_type {config.model_type!r} is not supported; supported are {known}")
    if config.vocab_size is None or not any(name.endswith("ForCTC") for name in config.architectures or ["ForCTC"]):
        raise ModelLoadError(
            f"{where}: {(config.architectures or ['the model'])[0]} has no CTC head: fine-tune it for CTC first"
        )
    with load_errors(where), quiet():
        extractor = transformers.AutoFeatureExtractor.from_pretrained(where, **hub)
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **hub)
        kind = transformers.AutoModelForCTC
        module = load_weights(where, kind, config, hub, trust=trust, trained_for="fine-tuned for CTC")
    frontend = _frontend(where, extractor)
    # A group norm runs over time: padding would change it, so such models get no mask, whatever their processor says.
    grouped = getattr(config, "feat_extract_norm", "layer") == "group"
    padded = isinstance(frontend, FbankFrontend) or (bool(extractor.return_attention_mask) and not grouped)
    provenance = {
        "source": "huggingface",
        "model": where,
        "revision": revision,
        "architecture": type(module).__name__,
        "model_type": config.model_type,
        "parameters": sum(p.numel() for p in module.parameters()),
        "transformers": transformers.__version__,
    }
    name = Path(where).resolve().name
    return _assemble(name, module, frontend, read_tokenizer(where, tokenizer, config.vocab_size), padded, provenance)


def rebuild(folder: Path, *, trust: bool = False) -> AsrModel:
    """The model whose :attr:`AsrModel.files` lie in ``folder``, with random weights; transformers is needed."""
    require_transformers(str(folder))
    import transformers

    row = json.loads((folder / SKELETON).read_text("utf-8"))
    with load_errors(str(folder)), quiet():
        config = transformers.AutoConfig.from_pretrained(folder)
    if config.model_type == WHISPER:
        from quantasr.sources.huggingface.whisper import rebuild_whisper

        return rebuild_whisper(folder, config, row)
    with load_errors(str(folder)), quiet():
        module = transformers.AutoModelForCTC.from_config(config, attn_implementation="eager", dtype=torch.float32)
    return _assemble(
        row["name"],
        module.eval(),
        frontend_from_dict(row["frontend"]),
        Tokenizer.from_dict(row["tokenizer"]),
        row["padded_batches"],
        row["provenance"],
    )


def _assemble(
    name: str, module: Any, frontend: Frontend, tokenizer: Tokenizer, padded: bool, provenance: dict[str, Any]
) -> CtcModel:
    guard_masking(module)
    files = files_of(name, module, frontend, tokenizer, padded, provenance)
    return CtcModel(
        name=name,
        family=FAMILIES[module.config.model_type],
        module=module,
        graph=CtcGraph(module, padded),
        frontend=frontend,
        tokenizer=tokenizer,
        padded_batches=padded,
        frame_seconds=_frame_samples(module.config, frontend) / frontend.sample_rate,
        min_samples=_min_samples(module.config, frontend),
        rewrite=rewrite,
        time_masking=partial(mask_time, module, files),
        provenance=provenance,
        files=files,
    )


def _frontend(where: str, extractor: Any) -> Frontend:
    kind = type(extractor).__name__
    if kind == "Wav2Vec2FeatureExtractor":
        return WaveFrontend(int(extractor.sampling_rate), bool(extractor.do_normalize), float(extractor.padding_value))
    if kind == "SeamlessM4TFeatureExtractor":
        return FbankFrontend(
            sample_rate=int(extractor.sampling_rate),
            num_mel_bins=int(extractor.num_mel_bins),
            stride=int(extractor.stride),
            padding_value=float(extractor.padding_value),
        )
    raise ModelLoadError(f"{where}: feature extractor {kind} is not supported")


def _frame_samples(config: Any, frontend: Frontend) -> float:
    """Samples from one row of log-probs to the next."""
    samples = 1.0
    for stride in getattr(config, "conv_stride", ()):
        samples *= stride
    if isinstance(frontend, FbankFrontend):
        samples *= frontend.sample_rate * 0.01 * frontend.stride
    if getattr(config, "add_adapter", False):
        samples *= config.adapter_stride**config.num_adapter_layers
    return samples


def _min_samples(config: Any, frontend: Frontend) -> int:
    """The shortest wave that gives two frames.

    Not one: OpenVINO 2026.4 fuses attention into a kernel that, when its first run ever had a single frame, is wrong
    in all runs of 16 frames and more that follow.
    """
    frames = 2
    for _ in range(adapter_layers(config)):
        frames = frames_adapted(config, frames)
    if isinstance(frontend, FbankFrontend):
        return frontend.frame_length + frontend.frame_shift * (frontend.stride * frames - 1)
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        frames = (frames - 1) * stride + kernel
    return frames
