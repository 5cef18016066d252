"""transformers' Whisper as the two parts that the search calls, and what the search must know of it."""

from typing import Any

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration

from quantasr.speech.parts import Arrays


def heads_apart(hidden: torch.Tensor, heads: int) -> torch.Tensor:
    return hidden.unflatten(-1, (heads, -1)).transpose(1, 2)


class Encoder:
    """Features -> keys and values of the audio for each decoder layer."""

    def __init__(self, model: WhisperForConditionalGeneration) -> None:
        self.model = model
        self.calls: list[int] = []

    @torch.no_grad()
    def __call__(self, feed: Arrays) -> dict[str, Any]:
        features = torch.from_numpy(np.ascontiguousarray(feed["features"])).transpose(1, 2)
        encoder, heads = self.model.model.encoder, self.model.config.decoder_attention_heads
        self.calls.append(features.shape[2])
        hidden = torch.nn.functional.gelu(encoder.conv1(features))
        hidden = torch.nn.functional.gelu(encoder.conv2(hidden)).transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        for layer in encoder.layers:
            found = layer(hidden, None)
            hidden = found if isinstance(found, torch.Tensor) else found[0]
        hidden = encoder.layer_norm(hidden)
        outputs = {}
        for i, layer in enumerate(self.model.model.decoder.layers):
            key = heads_apart(layer.encoder_attn.k_proj(hidden), heads)
            outputs[f"cross_key_{i}"] = key.transpose(2, 3).contiguous().numpy()
            outputs[f"cross_value_{i}"] = heads_apart(layer.encoder_attn.v_proj(hidden), heads).contiguous().numpy()
        return outputs


class Decoder:
    """New tokens and what is kept of the old ones -> logits, what is kept, and the heads that align."""

    def __init__(self, model: WhisperForConditionalGeneration, alignment_heads: list[tuple[int, int]]) -> None:
        self.model = model
        self.alignment_heads = alignment_heads
        self.calls: list[tuple[int, int]] = []

    @torch.no_grad()
    def __call__(self, feed: Arrays) -> dict[str, Any]:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in feed.items()}
        decoder, heads = self.model.model.decoder, self.model.config.decoder_attention_heads
        tokens = tensors["tokens"]
        new, past = tokens.shape[1], tensors["past_key_0"].shape[2]
        self.calls.append(tuple(tokens.shape))
        positions = torch.arange(past, past + new)
        hidden = decoder.embed_tokens(tokens) + decoder.embed_positions.weight[positions]
        future = torch.arange(past + new)[None, :] > positions[:, None]
        outputs: dict[str, Any] = {}
        crossed = []
        for i, layer in enumerate(decoder.layers):
            own = layer.self_attn
            normal = layer.self_attn_layer_norm(hidden)
            key = torch.cat([tensors[f"past_key_{i}"], heads_apart(own.k_proj(normal), heads)], 2)
            value = torch.cat([tensors[f"past_value_{i}"], heads_apart(own.v_proj(normal), heads)], 2)
            outputs[f"key_{i}"], outputs[f"value_{i}"] = key.numpy(), value.numpy()
            scores = heads_apart(own.q_proj(normal) * own.scaling, heads) @ key.transpose(2, 3)
            weights = scores.masked_fill(future, -torch.inf).softmax(-1)
            hidden = hidden + own.out_proj((weights @ value).transpose(1, 2).flatten(2))
            cross = layer.encoder_attn
            query = heads_apart(cross.q_proj(layer.encoder_attn_layer_norm(hidden)) * cross.scaling, heads)
            weights = (query @ tensors[f"cross_key_{i}"]).softmax(-1)
            crossed.append(weights)
            heard = (weights @ tensors[f"cross_value_{i}"]).transpose(1, 2).flatten(2)
            hidden = hidden + cross.out_proj(heard)
            hidden = hidden + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden))))
        outputs["logits"] = self.model.proj_out(decoder.layer_norm(hidden[:, tensors["rows"]])).numpy()
        if self.alignment_heads:
            outputs["alignment"] = torch.stack([crossed[i][:, head] for i, head in self.alignment_heads], 1).numpy()
        return outputs


def decoding_of(
    model: WhisperForConditionalGeneration, alignment_heads: list[tuple[int, int]] | None = None
) -> dict[str, Any]:
    """What ``decoding`` of an artifact says of ``model``."""
    config, generation = model.config, model.generation_config
    tasks = getattr(generation, "task_to_id", None) or {}
    languages = {token.strip("<|>"): i for token, i in (getattr(generation, "lang_to_id", None) or {}).items()}
    return {
        "layers": config.decoder_layers,
        "heads": config.decoder_attention_heads,
        "head_dim": config.d_model // config.decoder_attention_heads,
        "vocabulary": config.vocab_size,
        "max_length": config.max_target_positions,
        "frames": config.max_source_positions,
        "start": generation.decoder_start_token_id,
        "end": generation.eos_token_id,
        "no_timestamps": generation.no_timestamps_token_id,
        "no_speech": generation.no_timestamps_token_id - 1,
        "prev_sot": getattr(generation, "prev_sot_token_id", None),
        "transcribe": tasks.get("transcribe"),
        "translate": tasks.get("translate"),
        "languages": languages,
        "alignment_heads": [list(pair) for pair in alignment_heads or []],
        "median_filter_width": config.median_filter_width,
        "suppress_tokens": list(generation.suppress_tokens or []),
        "begin_suppress_tokens": list(generation.begin_suppress_tokens or []),
        "max_initial_timestamp_index": getattr(generation, "max_initial_timestamp_index", None),
    }
