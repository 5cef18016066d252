"""Tiny Hugging Face CTC models with random weights, saved as folders, one for each way in which the families differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf

VOCABULARY = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijk"]

_SMALL: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "apply_spec_augment": False,
}
_CONVOLUTIONS: dict[str, Any] = {
    "conv_dim": (24, 24, 24),
    "conv_kernel": (10, 4, 3),
    "conv_stride": (5, 4, 2),
    "num_feat_extract_layers": 3,
    "conv_bias": True,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
_LAYER_NORM: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
_GROUP_NORM: dict[str, Any] = {"feat_extract_norm": "group", "do_stable_layer_norm": False}
_ADAPTER: dict[str, Any] = {"add_adapter": True, "num_adapter_layers": 2, "output_hidden_size": 32}
_WAVE = {**_SMALL, **_CONVOLUTIONS}
_BERT: dict[str, Any] = {
    **_SMALL,
    "feature_projection_input_dim": 160,
    "conv_depthwise_kernel_size": 7,
    "left_max_position_embeddings": 6,
    "right_max_position_embeddings": 3,
    "max_source_positions": 200,
}

# name -> (configuration class, model class, configuration, whether it was trained with an attention mask)
VARIANTS: dict[str, tuple[Any, Any, dict[str, Any], bool]] = {
    "wav2vec2-base": (hf.Wav2Vec2Config, hf.Wav2Vec2ForCTC, {**_WAVE, **_GROUP_NORM}, False),
    "wav2vec2-large": (hf.Wav2Vec2Config, hf.Wav2Vec2ForCTC, {**_WAVE, **_LAYER_NORM}, True),
    "wav2vec2-adapter": (hf.Wav2Vec2Config, hf.Wav2Vec2ForCTC, {**_WAVE, **_LAYER_NORM, **_ADAPTER}, True),
    "wav2vec2-mms": (hf.Wav2Vec2Config, hf.Wav2Vec2ForCTC, {**_WAVE, **_LAYER_NORM, "adapter_attn_dim": 8}, True),
    "hubert-base": (hf.HubertConfig, hf.HubertForCTC, {**_WAVE, **_GROUP_NORM}, False),
    "hubert-large": (hf.HubertConfig, hf.HubertForCTC, {**_WAVE, **_LAYER_NORM}, True),
    "hubert-batch-norm-mask": (
        hf.HubertConfig,
        hf.HubertForCTC,
        {**_WAVE, **_LAYER_NORM, "conv_pos_batch_norm": True},
        True,
    ),
    "hubert-batch-norm": (
        hf.HubertConfig,
        hf.HubertForCTC,
        {**_WAVE, **_GROUP_NORM, "conv_pos_batch_norm": True},
        False,
    ),
    "wavlm-base": (hf.WavLMConfig, hf.WavLMForCTC, {**_WAVE, **_GROUP_NORM}, False),
    "wavlm-large": (hf.WavLMConfig, hf.WavLMForCTC, {**_WAVE, **_LAYER_NORM}, True),
    "wavlm-adapter": (hf.WavLMConfig, hf.WavLMForCTC, {**_WAVE, **_LAYER_NORM, **_ADAPTER}, True),
    "data2vec": (
        hf.Data2VecAudioConfig,
        hf.Data2VecAudioForCTC,
        {**_WAVE, "conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 3},
        True,
    ),
    "bert-relative-key": (
        hf.Wav2Vec2BertConfig,
        hf.Wav2Vec2BertForCTC,
        {**_BERT, "position_embeddings_type": "relative_key"},
        True,
    ),
    "bert-relative": (
        hf.Wav2Vec2BertConfig,
        hf.Wav2Vec2BertForCTC,
        {**_BERT, "position_embeddings_type": "relative"},
        True,
    ),
    "bert-rotary": (
        hf.Wav2Vec2BertConfig,
        hf.Wav2Vec2BertForCTC,
        {**_BERT, "position_embeddings_type": "rotary"},
        True,
    ),
    "bert-adapter": (
        hf.Wav2Vec2BertConfig,
        hf.Wav2Vec2BertForCTC,
        {
            **_BERT,
            "position_embeddings_type": "relative_key",
            "add_adapter": True,
            "num_adapter_layers": 1,
            "output_hidden_size": 32,
        },
        True,
    ),
}


def save(name: str, folder: Path, **changes: Any) -> Path:
    """Make the variant called ``name`` with random weights, seed 0, and save it with its processor into ``folder``."""
    make_config, make_model, settings, masked = VARIANTS[name]
    torch.manual_seed(0)
    model = make_model(make_config(**{**settings, **changes})).eval()
    with torch.no_grad():
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
            # Fresh norms are the identity, fresh biases zero and fresh statistics 0 and 1: all would hide mistakes.
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim == 1 and tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor) * 0.1)
    model.save_pretrained(folder)
    save_processor(folder, bert=name.startswith("bert"), mask=masked)
    return folder


def save_processor(folder: Path, *, bert: bool, mask: bool) -> None:
    """Write the feature extractor's and the tokenizer's files."""
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({token: i for i, token in enumerate(VOCABULARY)}), "utf-8")
    hf.Wav2Vec2CTCTokenizer(str(vocabulary), pad_token="<pad>", word_delimiter_token="|").save_pretrained(folder)
    extractor = (
        hf.SeamlessM4TFeatureExtractor()
        if bert
        else hf.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=mask)
    )
    extractor.save_pretrained(folder)


def processor(folder: Path) -> Any:
    """The processor, as its own library reads it."""
    extractor = hf.AutoFeatureExtractor.from_pretrained(folder)
    tokenizer = hf.Wav2Vec2CTCTokenizer.from_pretrained(folder)
    kind = hf.Wav2Vec2Processor if isinstance(extractor, hf.Wav2Vec2FeatureExtractor) else hf.Wav2Vec2BertProcessor
    return kind(extractor, tokenizer)


def original(folder: Path) -> Any:
    """The model, as its own library reads it."""
    return hf.AutoModelForCTC.from_pretrained(folder).eval()


def speech(*seconds: float, rate: int = 16000) -> list[np.ndarray]:
    """Loud noise with a slowly moving tone and an offset: nothing in it is silent, symmetric or normalised already."""
    rng = np.random.default_rng(7)
    waves = []
    for i, duration in enumerate(seconds):
        t = np.arange(round(duration * rate)) / rate
        tone = np.sin(2 * np.pi * (200 + 150 * i) * t * (1 + 0.3 * t)) * (0.2 + 0.8 * np.sin(3 * t + i) ** 2)
        waves.append((0.02 + 0.3 * tone + rng.normal(0, 0.05, len(t))).astype(np.float32))
    return waves
