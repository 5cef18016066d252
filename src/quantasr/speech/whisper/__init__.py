"""Whisper's search, in NumPy: greedy and beam, over windows of 30 s, with times and gates against invented text."""

from quantasr.speech.whisper.options import WhisperFacts, WhisperOptions
from quantasr.speech.whisper.tokenizer import WhisperTokenizer
from quantasr.speech.whisper.transcriber import WhisperTranscriber

__all__ = ["WhisperFacts", "WhisperOptions", "WhisperTokenizer", "WhisperTranscriber"]
