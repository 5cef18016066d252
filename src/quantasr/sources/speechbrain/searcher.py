"""What SpeechBrain's searchers and scorers are set to, as the ``decoding`` of a :class:`SearchTranscriber`."""

from __future__ import annotations

from typing import Any

from quantasr.errors import ModelLoadError


def check_searcher(interface: Any, where: str) -> None:
    """Raise :class:`ModelLoadError` unless the decoder is a search whose steps are known."""
    from speechbrain.decoders import seq2seq  # type: ignore[import-untyped,unused-ignore]

    known = (
        *(seq2seq.S2SRNNGreedySearcher, seq2seq.S2SRNNBeamSearcher),
        *(seq2seq.S2STransformerGreedySearcher, seq2seq.S2STransformerBeamSearcher),
    )
    searcher = interface.mods["decoder"]
    if not isinstance(searcher, known):
        names = ", ".join(kind.__name__ for kind in known)
        raise ModelLoadError(f"{where}: decoder {type(searcher).__name__} is not supported: quantasr knows {names}")
    if getattr(searcher, "return_topk", False):
        raise ModelLoadError(f"{where}: return_topk gives several texts for a recording: set it to False")
    if not hasattr(interface.tokenizer, "decode_ids"):
        kind = type(interface.tokenizer).__name__
        raise ModelLoadError(f"{where}: tokenizer {kind} has no decode_ids, which EncoderDecoderASR calls")


def read_search(where: str, searcher: Any, outputs: int) -> dict[str, Any]:
    """The options of the search, JSON-ready; raises :class:`ModelLoadError` for what we have not, by its name."""
    found: dict[str, Any] = {
        "bos": int(searcher.bos_index),
        "eos": int(searcher.eos_index),
        "vocabulary": outputs,
        "min_decode_ratio": float(searcher.min_decode_ratio),
        "max_decode_ratio": float(searcher.max_decode_ratio),
    }
    if not hasattr(searcher, "beam_size"):
        if searcher.temperature:
            raise ModelLoadError(
                f"{where}: a greedy search with temperature {searcher.temperature} draws lots: set it to 0"
            )
        return found
    found |= {
        "beam_width": int(searcher.beam_size),
        "temperature": float(searcher.temperature),
        "length_normalization": bool(searcher.length_normalization),
        "eos_threshold": float(searcher.eos_threshold) if searcher.using_eos_threshold else None,
        "max_attn_shift": int(searcher.max_attn_shift) if searcher.using_max_attn_shift else None,
    }
    return found if searcher.scorer is None else found | _scorers(where, searcher.scorer)


def needs_attention(searcher: Any) -> bool:
    """Whether the search asks which frames the decoder attends to."""
    scorers = all_scorers(searcher)
    window = getattr(scorers.get("ctc"), "ctc_window_size", 0)
    return bool(getattr(searcher, "using_max_attn_shift", False) or "coverage" in scorers or window)


def all_scorers(searcher: Any) -> dict[str, Any]:
    """The scorers of a search by SpeechBrain's names for them."""
    scorer = getattr(searcher, "scorer", None)
    return {} if scorer is None else {**scorer.full_scorers, **scorer.partial_scorers}


def language_model(searcher: Any) -> Any:
    """The language model that the search asks, or None."""
    scorers = all_scorers(searcher)
    return next((scorers[name].lm for name in ("rnnlm", "transformerlm") if name in scorers), None)


def _scorers(where: str, builder: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"candidate_scale": float(builder.scorer_beam_scale)}
    partial = []
    for name, scorer in {**builder.full_scorers, **builder.partial_scorers}.items():
        weight = float(builder.weights[name])
        if name == "ctc":
            if weight == 1:
                raise ModelLoadError(f"{where}: a CTC weight of 1 leaves the decoder out: decode the CTC layer instead")
            found |= {"ctc_weight": weight, "blank": int(scorer.blank_index), "ctc_window": int(scorer.ctc_window_size)}
        elif name in ("rnnlm", "transformerlm"):
            if "lm_weight" in found:
                raise ModelLoadError(f"{where}: a search with two language models is not supported")
            found |= {"lm_weight": weight, "lm_temperature": float(scorer.temperature)}
        elif name == "coverage":
            found |= {"coverage_weight": weight, "coverage_threshold": float(scorer.threshold)}
        elif name == "length":
            found["length_weight"] = weight
        else:
            raise ModelLoadError(f"{where}: {type(scorer).__name__} is not supported in a graph's search: leave it out")
        if name in builder.partial_scorers:
            partial.append("lm" if name.endswith("lm") else name)
    return {**found, "partial": partial}
