"""Another vocabulary for a Transformers CTC model: ``lm_head`` and the tokenizer's files."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantasr.errors import TrainingError
from quantasr.sources.asr_model import CtcModel
from quantasr.sources.huggingface.library import quiet
from quantasr.sources.huggingface.save import TOKENIZER_FILES
from quantasr.sources.huggingface.skeleton import files_of, mask_time
from quantasr.sources.huggingface.tokenizer import read_tokenizer
from quantasr.sources.vocabulary import keep_rows, refuse_repeated


def replace_vocabulary(model: CtcModel, tokens: list[str] | bytes, *, keep_shared: bool, seed: int) -> CtcModel:
    """See :func:`quantasr.sources.vocabulary.new_vocabulary`.

    The blank, the unknown token and the word delimiter keep the names that they have in the old tokenizer.
    """
    if isinstance(tokens, bytes):
        raise TrainingError(f"{model.name}: Hugging Face's CTC tokenizers have no SentencePiece model: give characters")
    old, module = model.tokenizer, _module(model)
    names = [old.word_delimiter or token if token == " " else token for token in tokens]
    special = [old.tokens[old.blank_id], *([old.unk_token] if old.unk_token else [])]
    names = [*(token for token in special if token not in names), *names]
    refuse_repeated(names, model.name)
    files = _tokenizer_files(model, names)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        tokenizer = read_tokenizer(model.name, _load(Path(folder)), len(names))
    before = module.lm_head
    module.lm_head = _head(before, len(names), module.config.initializer_range, seed)
    if keep_shared:
        keep_rows(before, module.lm_head, old, tokenizer)
    module.config.vocab_size, module.config.pad_token_id = len(names), tokenizer.blank_id
    provenance = {**model.provenance, "parameters": sum(p.numel() for p in module.parameters())}
    skeleton = files_of(model.name, module, model.frontend, tokenizer, model.padded_batches, provenance)
    return replace(
        model,
        tokenizer=tokenizer,
        provenance=provenance,
        files=skeleton,
        time_masking=partial(mask_time, module, skeleton),
        vocabulary={**dict.fromkeys(TOKENIZER_FILES), **files},
    )


def _module(model: CtcModel) -> Any:
    return model.module


def _head(before: nn.Linear, outputs: int, spread: float, seed: int) -> nn.Linear:
    """A linear layer as transformers draws it."""
    head = nn.Linear(before.in_features, outputs)
    with torch.no_grad():
        head.weight.normal_(0, spread, generator=torch.Generator().manual_seed(seed))
        head.bias.zero_()
    return head.to(before.weight.device).train(before.training)


def _tokenizer_files(model: CtcModel, names: list[str]) -> dict[str, bytes]:
    from transformers import Wav2Vec2CTCTokenizer

    old = model.tokenizer
    with tempfile.TemporaryDirectory() as name, quiet():
        folder = Path(name)
        (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(names)}), "utf-8")
        tokenizer = Wav2Vec2CTCTokenizer(
            str(folder / "vocab.json"),
            # Marks of a sentence would be outputs that nothing trains.
            bos_token=None,
            eos_token=None,
            unk_token=old.unk_token or None,
            pad_token=old.tokens[old.blank_id],
            word_delimiter_token=old.word_delimiter,
            replace_word_delimiter_char=old.delimiter_text,
            # Which stands for texts in capitals inside.
            do_lower_case=old.lowercase and all(name == name.upper() for name in names if len(name) == 1),
            clean_up_tokenization_spaces=old.clean_up,
        )
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def _load(folder: Path) -> Any:
    from transformers import AutoTokenizer

    with quiet():
        return AutoTokenizer.from_pretrained(folder)
