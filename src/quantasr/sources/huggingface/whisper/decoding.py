"""What a Whisper checkpoint says of its search: sizes, token ids, what it must not write."""

from __future__ import annotations

from typing import Any

from quantasr.errors import ModelLoadError
from quantasr.speech.whisper.languages import LANGUAGES

_NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")  # newer and older checkpoints
_ENGLISH_VOCABULARY = 51865
"""Multilingual models have at least so many tokens, English-only models one less: they never name a language."""


def read_decoding(where: str, config: Any, generation: Any, tokenizer: Any) -> dict[str, Any]:
    """The keys of :class:`quantasr.speech.whisper.WhisperFacts`, and defaults of its options; JSON-ready.

    From ``config.json``, ``generation_config.json``, where it says more, and the tokenizer's special tokens. Raises
    :class:`ModelLoadError` where a token that the search needs is in none of them.
    """
    ids = _special_ids(tokenizer)
    languages = _languages(config, generation, ids)
    tasks = getattr(generation, "task_to_id", None) or {}
    no_timestamps = _first(getattr(generation, "no_timestamps_token_id", None), ids.get("<|notimestamps|>"))
    # The token before it, in every checkpoint of OpenAI's.
    no_speech = _first(*(ids.get(name) for name in _NO_SPEECH), None if no_timestamps is None else no_timestamps - 1)
    facts: dict[str, Any] = {
        "layers": config.decoder_layers,
        "heads": config.decoder_attention_heads,
        "head_dim": config.d_model // config.decoder_attention_heads,
        "vocabulary": config.vocab_size,
        "frames": config.max_source_positions,
        "max_length": config.max_target_positions,
        "start": _first(generation.decoder_start_token_id, config.decoder_start_token_id),
        "end": _end(_first(generation.eos_token_id, config.eos_token_id)),
        "no_timestamps": no_timestamps,
        "no_speech": no_speech,
        "prev_sot": _first(getattr(generation, "prev_sot_token_id", None), ids.get("<|startofprev|>")),
        "transcribe": _first(tasks.get("transcribe"), ids.get("<|transcribe|>")) if languages else None,
        "translate": _first(tasks.get("translate"), ids.get("<|translate|>")) if languages else None,
        "languages": languages,
        "alignment_heads": [list(pair) for pair in alignment_heads(config, generation)],
        "median_filter_width": config.median_filter_width,
        "suppress_tokens": list(_first(generation.suppress_tokens, config.suppress_tokens) or ()),
        "begin_suppress_tokens": list(_first(generation.begin_suppress_tokens, config.begin_suppress_tokens) or ()),
    }
    for name in ("start", "end", "no_timestamps", "no_speech"):
        if facts[name] is None:
            raise ModelLoadError(
                f"{where}: neither generation_config.json nor the tokenizer has Whisper's token {name}"
            )
    for layer, head in facts["alignment_heads"]:
        if not (0 <= layer < facts["layers"] and 0 <= head < facts["heads"]):
            raise ModelLoadError(
                f"{where}: generation_config.json: alignment_heads has head {head} of layer {layer}, "
                f"of {facts['layers']} layers with {facts['heads']} heads"
            )
    first_time = getattr(generation, "max_initial_timestamp_index", None)
    return facts if first_time is None else facts | {"max_initial_timestamp_index": int(first_time)}


def alignment_heads(config: Any, generation: Any) -> list[tuple[int, int]]:
    """(layer, head) of the decoder whose attention follows the audio, in the order of the layers.

    Where a checkpoint does not say, all heads of the upper half of the layers, as OpenAI's own code does.
    """
    told = getattr(generation, "alignment_heads", None)
    if told:
        return sorted((int(layer), int(head)) for layer, head in told)
    layers, heads = config.decoder_layers, config.decoder_attention_heads
    return [(layer, head) for layer in range(layers // 2, layers) for head in range(heads)]


def _languages(config: Any, generation: Any, ids: dict[str, int]) -> dict[str, int]:
    multilingual = getattr(generation, "is_multilingual", None)
    if multilingual is False or (multilingual is None and config.vocab_size < _ENGLISH_VOCABULARY):
        return {}
    told = getattr(generation, "lang_to_id", None)
    if told:
        return {token.strip("<|>"): int(i) for token, i in told.items()}
    return {code: ids[f"<|{code}|>"] for code in LANGUAGES if f"<|{code}|>" in ids}


def _special_ids(tokenizer: Any) -> dict[str, int]:
    return {str(token): int(i) for token, i in tokenizer.get_added_vocab().items()}


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _end(token: Any) -> Any:
    return token[0] if isinstance(token, list) else token
