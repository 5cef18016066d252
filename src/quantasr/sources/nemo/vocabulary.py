"""Another vocabulary for a NeMo CTC model: the head, and the tokens in its configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from quantasr.errors import TrainingError
from quantasr.sources.asr_model import CtcModel
from quantasr.sources.nemo.archive import CONFIG
from quantasr.sources.nemo.config import NemoConfig, load_yaml
from quantasr.sources.nemo.module import build_head, quiet
from quantasr.sources.nemo.save import original
from quantasr.sources.nemo.skeleton import SKELETON, config_of, files_of
from quantasr.sources.nemo.tokenizer import BLANK, characters, sentencepiece
from quantasr.sources.vocabulary import keep_rows

_CHARACTERS = "nemo.collections.asr.models.ctc_models.EncDecCTCModel"
_PIECES = "nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE"
_MODEL, _VOCAB, _WORDS = "tokenizer.model", "tokenizer.vocab", "vocab.txt"
_DATA = ("train_ds", "validation_ds", "test_ds")


def replace_vocabulary(model: CtcModel, tokens: list[str] | bytes, *, keep_shared: bool, seed: int) -> CtcModel:
    """See :func:`quantasr.sources.vocabulary.new_vocabulary`.

    With characters it is NeMo's ``EncDecCTCModel``, with a SentencePiece model its ``EncDecCTCModelBPE``, whatever it
    was before. The blank is the last output and in no list.
    """
    row = json.loads(model.files[SKELETON])
    config = config_of(row)
    if config.head != "decoder":
        raise TrainingError(f"{model.name}: is a hybrid, whose transducer would keep the old vocabulary")
    pieces = tokens if isinstance(tokens, bytes) else None
    if isinstance(tokens, bytes):
        tokenizer = sentencepiece(f"{model.name}: new vocabulary", tokens)
        labels: Sequence[str] = tokenizer.tokens[:-1]
    elif BLANK in tokens:
        raise TrainingError(f"{model.name}: {BLANK} is no token of a vocabulary: NeMo has a blank of its own")
    else:
        tokenizer, labels = characters(tokens), tokens
    files = _files(model, labels, pieces)
    config = _config(config, labels, pieces)
    module: Any = model.module
    before = module.decoder
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        after = build_head(config, module.encoder, len(labels))
    if keep_shared:
        keep_rows(before.decoder_layers[0], after.decoder_layers[0], model.tokenizer, tokenizer)
    module.decoder = after.to(before.decoder_layers[0].weight.device).train(before.training)
    provenance = {
        **model.provenance,
        "architecture": config.model_class,
        "parameters": sum(p.numel() for p in module.parameters()),
    }
    return replace(
        model,
        tokenizer=tokenizer,
        provenance=provenance,
        files=files_of(model.name, config, tokenizer, pieces, provenance),
        vocabulary=files,
    )


def _config(config: NemoConfig, labels: Sequence[str], pieces: bytes | None) -> NemoConfig:
    target = _CHARACTERS if pieces is None else _PIECES
    return replace(
        config,
        model_class=target.rsplit(".", 1)[1],
        decoder={**config.decoder, "vocabulary": list(labels), "num_classes": len(labels)},
        tokenizer=None if pieces is None else _section(),
        labels=tuple(labels),
    )


def _section() -> dict[str, Any]:
    return {
        "dir": None,
        "type": "bpe",
        "model_path": f"nemo:{_MODEL}",
        "vocab_path": f"nemo:{_WORDS}",
        "spe_tokenizer_vocab": f"nemo:{_VOCAB}",
    }


def _files(model: CtcModel, labels: Sequence[str], pieces: bytes | None) -> dict[str, bytes | None]:
    """What a ``.nemo`` with the new vocabulary has in place of the original's files, of which it keeps no tokenizer."""
    import yaml

    with original(model) as archive:
        row = load_yaml(archive.where, archive.read(CONFIG))
        section = {_MODEL: _MODEL, _VOCAB: _VOCAB, _WORDS: _WORDS, **(row.get("tokenizer") or {})}
        named = {str(value).removeprefix("nemo:") for value in section.values()}
        files: dict[str, bytes | None] = {name: None for name in archive if name in named}
    decoder = row["decoder"].get("params", row["decoder"])
    decoder["vocabulary"], decoder["num_classes"] = list(labels), len(labels)
    if (pieces is None) != ("tokenizer" not in row):
        row.pop("decoding", None)  # that of another class
    row.pop("tokenizer", None)
    row.pop("labels", None)
    if pieces is None:
        row |= {"target": _CHARACTERS, "labels": list(labels)}
        for name in _DATA:
            if isinstance(row.get(name), dict):
                row[name]["labels"] = list(labels)
    else:
        row |= {"target": _PIECES, "tokenizer": _section()}
        files |= {_MODEL: pieces, **_lists(pieces)}
    text = yaml.safe_dump(row, sort_keys=False, allow_unicode=True)
    return {**files, CONFIG: text.encode()}


def _lists(pieces: bytes) -> dict[str, bytes]:
    """The two lists of pieces that NeMo keeps beside a SentencePiece model."""
    from sentencepiece import SentencePieceProcessor

    model: Any = SentencePieceProcessor(model_proto=pieces)
    names = [str(model.id_to_piece(i)) for i in range(model.get_piece_size())]
    scores = [model.get_score(i) for i in range(len(names))]
    words = [name[1:] if name.startswith("\u2581") else f"##{name}" for name in names if name != "<unk>"]
    return {
        _VOCAB: "".join(f"{name}\t{score:g}\n" for name, score in zip(names, scores, strict=True)).encode(),
        _WORDS: "".join(f"{word}\n" for word in words).encode(),
    }
