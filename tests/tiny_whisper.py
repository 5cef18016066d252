"""Tiny Whisper models with random weights, saved as folders: English-only and multilingual, of several shapes.

They hear one second instead of thirty, in 50 frames, so there are 51 time stamps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf

SECONDS = 1
FRAMES = 50
LANGUAGES = ("en", "de", "ja")

_SMALL: dict[str, Any] = {
    "d_model": 32,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_mel_bins": 16,
    "max_source_positions": FRAMES,
    "max_target_positions": 24,
    "init_std": 0.4,
}

# name -> (configuration, languages): whisper-tiny.en; whisper-tiny; large-v3-turbo, whose decoder has fewer layers than
# its encoder, and more mel bands; distil-whisper, whose output layer is not the embedding here.
VARIANTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "english": (_SMALL, ()),
    "multilingual": (_SMALL, LANGUAGES),
    "turbo": ({**_SMALL, "encoder_layers": 3, "decoder_layers": 1, "num_mel_bins": 24}, LANGUAGES),
    "untied": ({**_SMALL, "decoder_layers": 3, "tie_word_embeddings": False}, ()),
}


def save(name: str, folder: Path, **changes: Any) -> Path:
    """Make the variant called ``name`` with random weights, seed 0, and save it with its processor into ``folder``."""
    settings, languages = VARIANTS[name]
    tokenizer = make_tokenizer(languages)
    ids = tokenizer.get_added_vocab()
    start, end = ids["<|startoftranscript|>"], ids["<|endoftext|>"]
    config = hf.WhisperConfig(
        **{**settings, **changes},
        vocab_size=len(tokenizer),
        decoder_start_token_id=start,
        **{f"{kind}_token_id": end for kind in ("bos", "eos", "pad")},
    )
    torch.manual_seed(0)
    model = hf.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Fresh norms are the identity and fresh biases zero, which would hide mistakes.
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.generation_config = generation_config(config, ids, languages)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    hf.WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=SECONDS).save_pretrained(folder)
    return folder


def generation_config(config: Any, ids: dict[str, int], languages: tuple[str, ...]) -> hf.GenerationConfig:
    """``generation_config.json`` as OpenAI's models have it."""
    words: dict[str, Any] = {"is_multilingual": bool(languages)}
    if languages:
        words["lang_to_id"] = {f"<|{code}|>": ids[f"<|{code}|>"] for code in languages}
        words["task_to_id"] = {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}
        words["alignment_heads"] = [[config.decoder_layers - 1, head] for head in (1, 3)]
    end = ids["<|endoftext|>"]
    return hf.GenerationConfig(
        decoder_start_token_id=config.decoder_start_token_id,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        max_length=config.max_target_positions,
        suppress_tokens=[1, 2, ids["<|startoftranscript|>"], ids["<|startofprev|>"], ids["<|nospeech|>"]],
        begin_suppress_tokens=[220, end],
        max_initial_timestamp_index=25,
        **words,
    )


def make_tokenizer(languages: tuple[str, ...]) -> Any:
    """GPT-2's 256 bytes and a few joins, then Whisper's marks, then its time stamps."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    characters = list(bytes_to_unicode().values())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "a"), ("i", "n")]
    tokens = [*characters, *("".join(pair) for pair in merges)]
    marks = ["endoftext", "startoftranscript", *(languages or ("en",)), "translate", "transcribe"]
    marks += ["startoflm", "startofprev", "nospeech", "notimestamps"]
    tokenizer = hf.WhisperTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{mark}|>" for mark in marks]})
    tokenizer.add_tokens([f"<|{i * 0.02:.2f}|>" for i in range(FRAMES + 1)])
    return tokenizer


def original(folder: Path) -> Any:
    """The model, as its own library reads it."""
    return hf.WhisperForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
