"""What LF-MMI needs of Kaldi: phone language models, denominators, and what may be said when (numerators)."""

from quantasr.kaldi.chain.alignments import Alignments, Segment, read_alignments, segments_of
from quantasr.kaldi.chain.denominator import (
    Normalization,
    initial_probs,
    make_denominator,
    normalization_of,
    pdf_acceptor,
)
from quantasr.kaldi.chain.phone_lm import PhoneLm
from quantasr.kaldi.chain.supervision import Pronunciations, TimedGraph, phone_graph

__all__ = [
    "Alignments",
    "Normalization",
    "PhoneLm",
    "Pronunciations",
    "Segment",
    "TimedGraph",
    "initial_probs",
    "make_denominator",
    "normalization_of",
    "pdf_acceptor",
    "phone_graph",
    "read_alignments",
    "segments_of",
]
