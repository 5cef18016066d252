"""Attention encoder-decoders decoded in NumPy: greedy, or a beam search that also asks CTC and a language model."""

from quantasr.speech.seq2seq.options import SearchOptions
from quantasr.speech.seq2seq.transcriber import SearchTranscriber

__all__ = ["SearchOptions", "SearchTranscriber"]
