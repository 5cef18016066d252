"""Transducers: RNN-T (Graves, arXiv 1211.3711) and TDT (Xu et al., arXiv 2304.06795), searched over their parts."""

from quantasr.speech.transducer.transcriber import TransducerTranscriber

__all__ = ["TransducerTranscriber"]
