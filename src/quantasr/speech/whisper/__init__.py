"""Whisper's search, in NumPy: greedy and beam, over windows of 30 s, with times and gates against invented text."""

from quantasr.speech.whisper.options import WhisperFacts, WhisperOptions

__all__ = ["WhisperFacts", "WhisperOptions"]
