"""Real recordings of single digits, strung together: what the small recognisers learn from and are measured on.

The four sets come from different takes of the corpus (Free Spoken Digit Dataset), so that no recording is in two.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import kaldialign
import numpy as np
import soundfile as sf
import soxr
from numpy.typing import NDArray
from rich.progress import track

Wave = NDArray[np.float32]
Counts = dict[str, int]  # "sub", "del", "ins", "words"

RATE = 8000
# The corpus calls takes 0-4 its test part.
TAKES = {"evaluation": range(5), "calibration": range(5, 10), "validation": range(10, 15), "training": range(15, 50)}
STRINGS = {"evaluation": 220, "calibration": 48, "validation": 60}
LONGEST = 8  # digits in a string
SPEEDS = (1.0, 0.9, 1.1)
VORBIS = {"format": "OGG", "subtype": "VORBIS", "compression_level": 0.95}  # about 25 kbit/s, 3 kB of it headers


@dataclass(frozen=True)
class Recording:
    """One digit by one speaker; ``waves`` are the recording itself and, for training, its variants."""

    text: str
    speaker: str
    take: int
    waves: tuple[Wave, ...]


@dataclass(frozen=True)
class Example:
    """A string of digits by one speaker: mono samples at ``RATE``, and the words."""

    wave: Wave
    text: str
    speaker: str


def read_corpus(data: Path) -> list[Recording]:
    """Read every recording that ``data/all.jsonl`` names."""
    if not (data / "all.jsonl").is_file():
        raise SystemExit(f"{data}: no all.jsonl there; give the folder that holds it as --data")
    rows = [json.loads(line) for line in (data / "all.jsonl").read_text().splitlines()]
    corpus = []
    for row in track(rows, "reading"):
        wave, rate = sf.read(data / row["audio_filepath"], dtype="float32")
        if rate != RATE or wave.ndim != 1:
            raise SystemExit(f"{row['audio_filepath']}: {rate} Hz, shape {wave.shape}: wants mono at {RATE} Hz")
        waves = variants(wave) if row["take"] in TAKES["training"] else (wave,)
        corpus.append(Recording(row["text"], row["speaker"], row["take"], waves))
    return corpus


def variants(wave: Wave) -> tuple[Wave, ...]:
    """The recording at each of ``SPEEDS``, each also after lossy compression like that of the shipped sets."""
    # A recording is resampled and then read at the old rate, which changes pitch and tempo together.
    plain = [wave, *(soxr.resample(wave, RATE * speed, RATE) for speed in SPEEDS if speed != 1)]
    lossy = []
    for clean in plain:
        scale = 0.7 / np.abs(clean).max()
        buffer = io.BytesIO()
        sf.write(buffer, clean * scale, RATE, **VORBIS)
        buffer.seek(0)
        lossy.append(sf.read(buffer, dtype="float32")[0] / scale)
    return tuple(w.astype(np.float32) for w in (*plain, *lossy))


def string_together(waves: Sequence[Wave], rng: np.random.Generator) -> Wave:
    """Join recordings with gaps of 0.05 to 0.4 s over a bed of low noise, 25 to 40 dB under the speech; peak 0.7."""
    edge = np.linspace(0, 1, RATE // 200, dtype=np.float32)  # 5 ms: no clicks where a recording starts or stops
    gaps = [rng.uniform(0.05, 0.2), *rng.uniform(0.05, 0.4, len(waves) - 1), rng.uniform(0.05, 0.2)]
    pieces = [np.zeros(round(gap * RATE), np.float32) for gap in gaps]
    for number, wave in enumerate(waves):
        wave = wave.copy()
        wave[: len(edge)] *= edge
        wave[-len(edge) :] *= edge[::-1]
        pieces.insert(2 * number + 1, wave)
    joined = np.concatenate(pieces)
    level = math.sqrt(float(np.mean(np.concatenate(waves) ** 2)))
    joined += coloured(rng, len(joined)) * level * 10 ** (-rng.uniform(25, 40) / 20)
    return np.asarray(joined * (0.7 / np.abs(joined).max()), np.float32)


def coloured(rng: np.random.Generator, length: int) -> Wave:
    """Noise of unit power, from white to strongly low-pass."""
    kernel = rng.uniform(0, 0.9) ** np.arange(16, dtype=np.float32)
    noise = np.convolve(rng.standard_normal(length, dtype=np.float32), kernel.astype(np.float32), mode="same")
    return np.asarray(noise / noise.std(), np.float32)


def fixed_set(corpus: Sequence[Recording], name: str, seed: int) -> list[Example]:
    """The strings of one set, always the same for a seed; each speaker's recordings are dealt like cards."""
    rng = np.random.default_rng([seed, list(TAKES).index(name)])
    part = [r for r in corpus if r.take in TAKES[name]]
    speakers = sorted({r.speaker for r in part})
    decks: dict[str, list[Recording]] = {s: [] for s in speakers}
    examples = []
    for number in range(STRINGS[name]):
        speaker = speakers[number % len(speakers)]
        drawn = []
        # Lengths run through 1..8 so that every speaker has every length.
        for _ in range(1 + number // len(speakers) % LONGEST):
            if not decks[speaker]:
                deck = [r for r in part if r.speaker == speaker]
                decks[speaker] = [deck[i] for i in rng.permutation(len(deck))]
            drawn.append(decks[speaker].pop())
        wave = string_together([r.waves[0] for r in drawn], rng)
        examples.append(Example(wave, " ".join(r.text for r in drawn), speaker))
    return examples


def write_set(examples: Sequence[Example], out: Path, name: str) -> None:
    """Write ``out/name/*.ogg`` and the manifest ``out/name.jsonl`` (NeMo's form, paths relative to it)."""
    (out / name).mkdir(parents=True, exist_ok=True)
    lines = []
    for number, example in enumerate(examples):
        path = Path(name) / f"{number:03d}-{example.speaker}.ogg"
        sf.write(out / path, example.wave, RATE, **VORBIS)
        duration = round(sf.info(out / path).duration, 3)
        row = {"audio_filepath": str(path), "duration": duration, "text": example.text, "speaker": example.speaker}
        lines.append(json.dumps(row) + "\n")
    (out / f"{name}.jsonl").write_text("".join(lines))


def read_set(manifest: Path) -> list[Example]:
    """Read a manifest and its audio back."""
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    read = [sf.read(manifest.parent / row["audio_filepath"], dtype="float32")[0] for row in rows]
    return [Example(wave, row["text"], row["speaker"]) for wave, row in zip(read, rows, strict=True)]


def augment(wave: Wave, rng: np.random.Generator) -> Wave:
    """A random short filter (another microphone), noise 10 to 40 dB under the speech, up to two short drop-outs."""
    taps = rng.normal(0, 0.2, 9).astype(np.float32)
    taps[4] = 1
    wave = np.convolve(wave, taps, mode="same")
    wave = wave + coloured(rng, len(wave)) * wave.std() * np.float32(10 ** (-rng.uniform(10, 40) / 20))
    for _ in range(rng.integers(3)):
        start = rng.integers(len(wave))
        wave[start : start + rng.integers(round(0.05 * RATE))] = 0
    return np.asarray(wave, np.float32)


def training_batches(
    part: Sequence[Recording], batch: int, seed: int, first: int, steps: int
) -> Iterator[list[Example]]:
    """Batches ``first`` to ``steps`` of random strings; the same for a seed wherever training is resumed."""
    by_speaker = {s: [r for r in part if r.speaker == s] for s in sorted({r.speaker for r in part})}
    names = list(by_speaker)
    pool = 8  # batches drawn together and sorted by length, so that little of a batch is padding
    for start in range(first, steps, pool):
        rng = np.random.default_rng([seed, 100, start])
        # Short strings first: CTC leaves its all-blank plateau much sooner.
        longest = min(LONGEST, 1 + int(start / steps * 25))
        examples = []
        for _ in range(batch * pool):
            own = by_speaker[names[rng.integers(len(names))]]
            drawn = [own[i] for i in rng.integers(len(own), size=rng.integers(1, longest + 1))]
            waves = [r.waves[rng.integers(len(r.waves))] * np.float32(10 ** (rng.uniform(-3, 3) / 20)) for r in drawn]
            text = " ".join(r.text for r in drawn)
            examples.append(Example(augment(string_together(waves, rng), rng), text, drawn[0].speaker))
        examples.sort(key=lambda e: len(e.wave))
        for i in rng.permutation(pool)[: steps - start]:
            yield examples[i * batch : (i + 1) * batch]


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> Counts:
    """Errors over all the strings together."""
    counts = {"sub": 0, "del": 0, "ins": 0, "words": sum(len(reference.split()) for reference in references)}
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        errors = kaldialign.edit_distance(reference.split(), hypothesis.split())
        for kind in ("sub", "del", "ins"):
            counts[kind] += errors[kind]
    return counts


def wer(counts: Counts) -> float:
    """Corpus WER in percent."""
    return 100 * (counts["sub"] + counts["del"] + counts["ins"]) / counts["words"]


def schedule(step: int, steps: int) -> float:
    """Share of the highest learning rate: a linear rise over a twentieth of the steps, then half a cosine to 1 %."""
    warm_up = max(1, steps // 20)
    share = max(0.0, (step - warm_up) / (steps - warm_up))
    return min(1.0, (step + 1) / warm_up) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))
