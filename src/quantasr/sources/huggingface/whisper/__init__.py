"""Hugging Face Whisper (``WhisperForConditionalGeneration``) as a :class:`WhisperModel`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from quantasr.errors import ModelLoadError
from quantasr.sources.huggingface.library import load_errors, quiet
from quantasr.sources.huggingface.skeleton import files_of
from quantasr.sources.huggingface.weights import load_weights
from quantasr.sources.huggingface.whisper.decoding import read_decoding
from quantasr.sources.huggingface.whisper.graph import DecoderGraph, EncoderGraph
from quantasr.sources.huggingface.whisper.model import WhisperGraph, WhisperModel
from quantasr.speech.frontend import WhisperMelFrontend, frontend_from_dict
from quantasr.speech.whisper.tokenizer import WhisperTokenizer

_MIN_SAMPLES = 1
"""Features are filled up to a window anyway."""


def load_whisper(where: str, config: Any, hub: dict[str, Any], *, trust: bool = False) -> WhisperModel:
    """Load a Whisper model of any size with its feature extractor, tokenizer and generation_config.json.

    Raises :class:`ModelLoadError` when anything is missing, of another kind, or not finite.
    """
    import transformers

    with load_errors(where), quiet():
        extractor = transformers.AutoFeatureExtractor.from_pretrained(where, **hub)
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **hub)
        kind = transformers.WhisperForConditionalGeneration
        module = load_weights(where, kind, config, hub, trust=trust, trained_for="a whole Whisper with its decoder")
        decoding = read_decoding(where, config, module.generation_config, tokenizer)
        frontend, own = _frontend(where, extractor), _tokenizer(where, tokenizer)
    provenance = {
        "source": "huggingface",
        "model": where,
        "revision": hub.get("revision"),
        "architecture": type(module).__name__,
        "model_type": config.model_type,
        "parameters": sum(p.numel() for p in module.parameters()),
        "transformers": transformers.__version__,
    }
    return _assemble(Path(where).resolve().name, module, frontend, own, decoding, provenance)


def rebuild_whisper(folder: Path, config: Any, row: dict[str, Any]) -> WhisperModel:
    """The model that ``config`` and ``row``, the skeleton, describe, with random weights."""
    import transformers

    with load_errors(str(folder)), quiet():
        kind = transformers.AutoModelForSpeechSeq2Seq
        module = kind.from_config(config, attn_implementation="eager", dtype=torch.float32)
    frontend, tokenizer = frontend_from_dict(row["frontend"]), WhisperTokenizer.from_dict(row["tokenizer"])
    assert isinstance(frontend, WhisperMelFrontend)
    return _assemble(row["name"], module, frontend, tokenizer, row["decoding"], row["provenance"])


def _assemble(
    name: str,
    module: Any,
    frontend: WhisperMelFrontend,
    tokenizer: WhisperTokenizer,
    decoding: dict[str, Any],
    provenance: dict[str, Any],
) -> WhisperModel:
    module.eval()
    encoder = EncoderGraph(module)
    decoder = DecoderGraph(module, [(layer, head) for layer, head in decoding["alignment_heads"]])
    return WhisperModel(
        name=name,
        family="whisper",
        module=module,
        graph=WhisperGraph(encoder, decoder),
        frontend=frontend,
        padded_batches=False,
        min_samples=_MIN_SAMPLES,
        tokenizer=tokenizer,
        frame_seconds=2 * frontend.hop_length / frontend.sample_rate,
        decoding=decoding,
        provenance=provenance,
        files=files_of(name, module, frontend, tokenizer, False, provenance, decoding=decoding),
    )


def _frontend(where: str, extractor: Any) -> WhisperMelFrontend:
    if type(extractor).__name__ != "WhisperFeatureExtractor":
        raise ModelLoadError(f"{where}: feature extractor {type(extractor).__name__} is not Whisper's")
    if extractor.dither:
        raise ModelLoadError(f"{where}: dither = {extractor.dither} makes features random: set it to 0")
    return WhisperMelFrontend(
        sample_rate=int(extractor.sampling_rate),
        num_mel_bins=int(extractor.feature_size),
        fft_length=int(extractor.n_fft),
        hop_length=int(extractor.hop_length),
        chunk_seconds=float(extractor.chunk_length),
        padding_value=float(extractor.padding_value),
    )


def _tokenizer(where: str, tokenizer: Any) -> WhisperTokenizer:
    """All tokens by id; those of text come first, in GPT-2's alphabet."""
    if not type(tokenizer).__name__.startswith("WhisperTokenizer"):
        raise ModelLoadError(f"{where}: tokenizer {type(tokenizer).__name__} is not Whisper's")
    tokens = tuple(str(token) for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
    return WhisperTokenizer(tokens, first_special=min(tokenizer.get_added_vocab().values()))
