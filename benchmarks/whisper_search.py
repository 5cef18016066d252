"""Whisper's search of ours beside transformers' ``generate`` on tiny.en, and what it writes where nobody speaks.

Texts and tokens without gates: greedy, beams of 5, with times, and long recordings joined from utterances. Then ten
minutes each of silence, noise, tones and a made-up melody, with the gates.

    python benchmarks/whisper_search.py [--utterances 32] [--learners 50] [--minutes 10]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration

from quantasr.sources import load_model
from quantasr.speech.manifest import read_manifest

SHARED = Path(os.environ.get("QUANTASR_SHARED", Path(__file__).parents[2] / "shared"))
MODEL = SHARED / "models" / "whisper-tiny.en"
LJSPEECH = SHARED / "data" / "ljspeech" / "eval.jsonl"
SPEECHOCEAN = SHARED / "data" / "speechocean762" / "test.jsonl"
RATE = 16000
NO_GATES: dict[str, Any] = {
    "temperatures": [0.0],
    "compression_ratio_threshold": None,
    "no_speech_threshold": None,
    "silence_threshold": None,
    "steady_threshold": None,
}


def waves(manifest: Path, count: int) -> list[np.ndarray]:
    """The first recordings of a manifest."""
    return [row.load(RATE) for row in read_manifest(manifest)[:count]]


def joined(parts: list[np.ndarray], random: np.random.Generator) -> np.ndarray:
    """Recordings in a row, with pauses of up to a second."""
    pauses = [np.zeros(int(random.uniform(0.1, 1.2) * RATE), np.float32) for _ in parts]
    return np.concatenate([piece for pair in zip(parts, pauses, strict=True) for piece in pair])


def unspoken(samples: int) -> Iterator[tuple[str, np.ndarray]]:
    """Recordings in which nobody speaks."""
    random, time = np.random.default_rng(0), np.arange(samples) / RATE
    yield "silence", np.zeros(samples, np.float32)
    yield "one bit of dither", (random.integers(-1, 2, samples) / 32768).astype(np.float32)
    for decibels in (-80, -60, -40, -20, -6):
        noise = random.normal(size=samples) * 10 ** (decibels / 20)
        yield f"white noise, {decibels} dBFS", np.clip(noise, -1, 1).astype(np.float32)
    for hertz in (50, 440, 1000, 4000):
        yield f"a tone of {hertz} Hz", (0.2 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)
    melody, note = np.zeros(samples), RATE // 2
    for start in range(0, samples, note):
        pitch, part = 220 * 2 ** (random.integers(0, 24) / 12), time[: min(note, samples - start)]
        for harmonic in range(1, 5):
            melody[start : start + part.size] += (
                0.2 / harmonic * np.sin(2 * np.pi * pitch * harmonic * part) * np.exp(-2 * part)
            )
    yield "a melody", np.clip(melody, -1, 1).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--utterances", type=int, default=32)
    parser.add_argument("--learners", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10.0)
    arguments = parser.parse_args()
    model = load_model(MODEL)
    original: Any = WhisperForConditionalGeneration.from_pretrained(MODEL, dtype=torch.float32).eval()
    read = waves(LJSPEECH, arguments.utterances)
    short = read + waves(SPEECHOCEAN, arguments.learners)

    def generated(wave: np.ndarray, **options: Any) -> str:
        levels = model.frontend.levels(wave)
        if wave.size > 30 * RATE:
            levels = levels[: wave.size // 160]
        features = torch.from_numpy(model.frontend.normalized(levels, float(levels.max()))).T[None]
        with torch.no_grad():
            return model.tokenizer.decode(original.generate(features, **options)[0].tolist()).strip()

    for name, ours, theirs in (
        ("greedy", {}, {}),
        ("beams of 5", {"beam_width": 5}, {"num_beams": 5}),
        ("with times", {"timestamps": True}, {"return_timestamps": True}),
    ):
        search = model.transcriber(**NO_GATES, **ours)
        same = sum(search.transcribe([wave])[0].text == generated(wave, **theirs) for wave in short)
        print(f"{name}: {same} of {len(short)} texts are those of generate", flush=True)
    random = np.random.default_rng(5)
    long = joined([read[i] for i in random.permutation(len(read))[:10]], random)
    for before in (False, True):
        search = model.transcriber(condition_on_previous_text=before, **NO_GATES)
        theirs = generated(long, return_timestamps=True, condition_on_prev_tokens=before)
        same = search.transcribe([long])[0].text == theirs
        print(f"{long.size / RATE:.0f} s, text before shown: {before}: same text: {same}", flush=True)
    gated, bare = model.transcriber(), model.transcriber(**NO_GATES)
    changed = sum(gated.transcribe([wave])[0].text != bare.transcribe([wave])[0].text for wave in short)
    print(f"gates change {changed} of {len(short)} texts", flush=True)
    for name, wave in unspoken(round(arguments.minutes * 60 * RATE)):
        print(f"{name}: {len(gated.transcribe([wave])[0].text.split())} words", flush=True)


if __name__ == "__main__":
    main()
