"""Write strings of digits to train on: ``OUT/train.jsonl`` and ``OUT/validation.jsonl`` with their recordings.

DATA holds the Free Spoken Digit Dataset, as for ``train_digits.py``. No recording is in the sample's own sets.

Example:

    python examples/qat/write_digits.py --data ~/data/digits --out digits --strings 600
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).parents[1]))

from digit_strings import LONGEST, RATE, STRINGS, TAKES, fixed_set, read_corpus, string_together, write_set


def main() -> None:
    """Write both sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with all.jsonl and audio/")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--strings", type=int, default=600, help="strings to train on (600)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    corpus = read_corpus(options.data)
    write_set(fixed_set(corpus, "validation", options.seed), options.out, "validation")
    rng = np.random.default_rng([options.seed, STRINGS["validation"]])
    takes = [recording for recording in corpus if recording.take in TAKES["training"]]
    speakers = sorted({recording.speaker for recording in takes})
    (options.out / "train").mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(options.strings):
        own = [recording for recording in takes if recording.speaker == speakers[number % len(speakers)]]
        drawn = [own[i] for i in rng.integers(len(own), size=rng.integers(1, LONGEST + 1))]
        wave = string_together([recording.waves[0] for recording in drawn], rng)
        path = Path("train") / f"{number:05d}.flac"
        soundfile.write(options.out / path, wave, RATE)
        text = " ".join(recording.text for recording in drawn)
        row = {"audio_filepath": str(path), "duration": len(wave) / RATE, "text": text, "speaker": drawn[0].speaker}
        lines.append(json.dumps(row) + "\n")
    (options.out / "train.jsonl").write_text("".join(lines), "utf-8")


if __name__ == "__main__":
    main()
