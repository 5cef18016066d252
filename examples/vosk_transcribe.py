"""What Vosk hears: ``python vosk_transcribe.py MODEL MANIFEST`` prints the texts of a manifest as a JSON list.

In a process of its own, because Vosk and kaldifst both bring OpenFst, and one of them breaks when the process ends.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import vosk
from digit_strings import RATE, read_set


def main() -> None:
    """Transcribe the recordings one after the other."""
    vosk.SetLogLevel(-1)
    model, texts = vosk.Model(sys.argv[1]), []
    for example in read_set(Path(sys.argv[2])):
        recogniser = vosk.KaldiRecognizer(model, RATE)
        recogniser.AcceptWaveform((example.wave * 32767).astype("<i2").tobytes())
        texts.append(json.loads(recogniser.FinalResult())["text"])
    print(json.dumps(texts))


if __name__ == "__main__":
    main()
