"""The way from log-probs to text that a model brings: greedy, or a beam search with or without an n-gram."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from quantasr.errors import ModelLoadError
from quantasr.speech.beam import BeamDecoder, read_unigrams
from quantasr.speech.ctc import GREEDY
from quantasr.speech.decoding import CtcDecoder

_GREEDY = "ctc_greedy_decode"


def read_decoder(where: str, decoding: Any) -> CtcDecoder:
    """The decoder for an interface's ``decoding_function``; raises :class:`ModelLoadError` on one of another kind.

    ``CTCBeamSearcher`` is pyctcdecode's search and gives the same texts; it does not score a sentence's end.
    ``CTCPrefixBeamSearcher`` weighs the same scores but keeps one beam a prefix instead of one for each last token, so
    that where many texts are nearly as likely it may find another one; :class:`BeamDecoder` stands for it too.
    """
    from speechbrain.decoders.ctc import CTCBeamSearcher, CTCPrefixBeamSearcher

    if isinstance(decoding, functools.partial):
        name = getattr(decoding.func, "__name__", type(decoding.func).__name__)
        if name != _GREEDY:
            raise ModelLoadError(f"{where}: decoding_function {name} is unknown: quantasr has {_GREEDY}")
        return GREEDY
    if not isinstance(decoding, CTCBeamSearcher | CTCPrefixBeamSearcher):
        raise ModelLoadError(
            f"{where}: decoding_function {type(decoding).__name__} is not supported: use {_GREEDY}, CTCBeamSearcher or "
            "CTCPrefixBeamSearcher"
        )
    lm = None if decoding.kenlm_model_path is None else Path(decoding.kenlm_model_path).resolve()
    return BeamDecoder(
        beam_width=int(decoding.beam_size),
        alpha=float(decoding.alpha),
        beta=float(decoding.beta),
        lm=lm,
        unigrams=None if lm is None else _unigrams(decoding, lm),
        unk_penalty=float(decoding.unk_score_offset),
        prune_logp=float(decoding.beam_prune_logp),
        min_token_logp=float(decoding.token_prune_min_logp),
        sentence_start=bool(decoding.score_boundary),
        sentence_end=False,
        prune_history=bool(decoding.prune_history),
        blank_skip_logp=float(decoding.blank_skip_threshold) if decoding.blank_skip_threshold < 0 else None,
    )


def word_delimiter(decoding: Any) -> str:
    """The label that parts words."""
    return str(getattr(decoding, "space_token", " "))


def blank_of(where: str, decoding: Any, outputs: int) -> int:
    """The blank that the model's own decoding takes out."""
    if isinstance(decoding, functools.partial):
        blank = int(decoding.keywords.get("blank_id", -1))
    else:
        blank = int(decoding.blank_index)
    if not -outputs <= blank < outputs:
        raise ModelLoadError(f"{where}: blank {blank} is not among the model's {outputs} outputs")
    return blank % outputs


def _unigrams(decoding: Any, lm: Path) -> tuple[str, ...] | None:
    """The words that SpeechBrain knows; None where they are all that the file lists.

    Of an ARPA file it takes those that have a weight for backing off, and of a binary one none.
    """
    known = set(decoding.lm._unigram_set) - {"<s>", "</s>", "<unk>", "<UNK>"}
    listed = read_unigrams(lm)
    return None if listed is not None and known == set(listed) else tuple(sorted(known))
