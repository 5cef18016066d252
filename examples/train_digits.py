"""Train the sample recogniser: a small Wav2Vec2 CTC model of spoken English digit strings, from scratch.

Real recordings of single digits (Free Spoken Digit Dataset) are strung together with random gaps. The four sets
come from different takes, so that no recording is in two of them:

    takes 0-4 evaluation (the corpus's own test part), 5-9 calibration, 10-14 validation, 15-49 training

DATA holds ``all.jsonl``, one line a recording: ``audio_filepath``, ``text``, ``speaker``, ``take``.
OUT becomes an ordinary Hugging Face folder with two manifests, their audio, a README and the licence.

Example:

    python examples/train_digits.py --data ~/data/digits --out src/quantasr/sample/digits
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import kaldialign
import numpy as np
import soundfile as sf
import soxr
import torch
import transformers
from numpy.typing import NDArray
from rich.progress import track
from safetensors.torch import load_file, save_file
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

Wave = NDArray[np.float32]
Counts = dict[str, dict[str, int]]  # word errors of each set

RATE = 8000
TAKES = {"evaluation": range(5), "calibration": range(5, 10), "validation": range(10, 15), "training": range(15, 50)}
STRINGS = {"evaluation": 220, "calibration": 48, "validation": 60}
LONGEST = 8  # digits in a string
LETTERS = "efghinorstuvwxz"  # those of the ten digit words
VOCABULARY = ["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS]
SPEEDS = (1.0, 0.9, 1.1)
VORBIS = {"format": "OGG", "subtype": "VORBIS", "compression_level": 0.95}  # about 25 kbit/s, 3 kB of it headers
LICENCE = """\
Everything in this folder is under Creative Commons Attribution-ShareAlike 4.0 International (CC BY-SA 4.0),
https://creativecommons.org/licenses/by-sa/4.0/legalcode; README.md names the recordings' authors and the changes made.
"""


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
    return (joined * (0.7 / np.abs(joined).max())).astype(np.float32)


def coloured(rng: np.random.Generator, length: int) -> Wave:
    """Noise of unit power, from white to strongly low-pass."""
    kernel = rng.uniform(0, 0.9) ** np.arange(16, dtype=np.float32)
    noise = np.convolve(rng.standard_normal(length, dtype=np.float32), kernel.astype(np.float32), mode="same")
    return noise / noise.std()


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
    return wave


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


def build_processor(out: Path) -> Wav2Vec2Processor:
    """Write the tokenizer and the feature extractor to ``out``; load them back as one processor."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(VOCABULARY)}, indent=0))
    tokenizer = Wav2Vec2CTCTokenizer(str(out / "vocab.json"), word_delimiter_token="|", do_lower_case=False)
    tokenizer.save_pretrained(out)
    Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=True, return_attention_mask=True).save_pretrained(out)
    return Wav2Vec2Processor.from_pretrained(out)


def build_model() -> Wav2Vec2ForCTC:
    """A Wav2Vec2 of 1.1 M parameters, 20 ms a frame at 8 kHz."""
    return Wav2Vec2ForCTC(
        Wav2Vec2Config(
            vocab_size=len(VOCABULARY),
            hidden_size=160,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=384,
            conv_dim=(64, 96, 96, 96, 96),
            conv_kernel=(10, 8, 4, 4, 4),
            conv_stride=(5, 4, 2, 2, 2),
            num_feat_extract_layers=5,
            conv_bias=True,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
            num_conv_pos_embeddings=32,
            num_conv_pos_embedding_groups=16,
            initializer_range=0.05,
            hidden_dropout=0.1,
            attention_dropout=0.0,
            activation_dropout=0.0,
            feat_proj_dropout=0.0,
            final_dropout=0.1,
            layerdrop=0.0,
            mask_time_prob=0.0,
            ctc_loss_reduction="mean",
            ctc_zero_infinity=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def recognise(model: Wav2Vec2ForCTC, processor: Wav2Vec2Processor, waves: Sequence[Wave], batch: int = 16) -> list[str]:
    """Greedy CTC."""
    texts: list[str] = []
    model.eval()
    for start in range(0, len(waves), batch):
        inputs = processor(list(waves[start : start + batch]), sampling_rate=RATE, return_tensors="pt", padding=True)
        with torch.inference_mode():
            logits = model(**inputs).logits
        frames = model._get_feat_extract_output_lengths(inputs.attention_mask.sum(-1))
        ids = logits.argmax(-1)
        # Padded frames come out as blank: they are not part of the recording.
        ids[torch.arange(ids.shape[1])[None] >= frames[:, None]] = 0
        texts += processor.batch_decode(ids)
    return texts


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, int]:
    """Corpus counts: ``sub``, ``del``, ``ins``, ``words``."""
    counts = {"sub": 0, "del": 0, "ins": 0, "words": 0}
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        errors = kaldialign.edit_distance(reference.split(), hypothesis.split())
        for kind in ("sub", "del", "ins"):
            counts[kind] += errors[kind]
        counts["words"] += len(reference.split())
    return counts


def wer(counts: dict[str, int]) -> float:
    """Corpus WER in percent."""
    return 100 * (counts["sub"] + counts["del"] + counts["ins"]) / counts["words"]


def train(
    model: Wav2Vec2ForCTC, processor: Wav2Vec2Processor, corpus: Sequence[Recording], options: argparse.Namespace
) -> float:
    """Train ``model`` in place, resuming from the last checkpoint; returns the seconds spent in all."""
    part = [r for r in corpus if r.take in TAKES["training"]]
    validation = fixed_set(corpus, "validation", options.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    checkpoint = options.work / "checkpoint.pt"
    first, spent = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, spent = state["step"], state["spent"]
        print(f"resuming at step {first}")
    warm_up = options.steps // 20
    started, losses = time.monotonic(), []
    for step, examples in enumerate(training_batches(part, options.batch, options.seed, first, options.steps), first):
        if step % 8 == 0:
            torch.manual_seed(options.seed * 1_000_003 + step)  # dropout: the same wherever training is resumed
        share = max(0.0, (step - warm_up) / (options.steps - warm_up))
        rate = options.rate * min(1.0, (step + 1) / warm_up) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        model.train()
        inputs = processor([e.wave for e in examples], sampling_rate=RATE, return_tensors="pt", padding=True)
        labels = processor.tokenizer([e.text for e in examples], return_tensors="pt", padding=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            targets = labels.input_ids.masked_fill(labels.attention_mask == 0, -100)
            loss = model(**inputs, labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        done = step + 1
        if done % 50 == 0:
            minutes = (spent + time.monotonic() - started) / 60
            print(f"step {done}  loss {np.mean(losses[-50:]):.3f}  rate {rate:.2e}  {minutes:.1f} min", flush=True)
        if done % 400 == 0 or done == options.steps:
            texts = recognise(model, processor, [e.wave for e in validation])
            print(
                f"step {done}  validation WER {wer(word_errors([e.text for e in validation], texts)):.2f} %", flush=True
            )
            now = spent + time.monotonic() - started
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done, "spent": now}
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
    return spent + time.monotonic() - started


def save_half(model: Wav2Vec2ForCTC, out: Path) -> None:
    """Save as a Hugging Face folder whose weights are float16 on disk and float32 once loaded."""
    model.save_pretrained(out)
    weights = {name: tensor.half() for name, tensor in load_file(out / "model.safetensors").items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    # transformers 5 loads as the configuration says, transformers 4 as float32: both compute in float32.
    config = json.loads((out / "config.json").read_text())
    config["dtype"] = "float32"
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_readme(
    options: argparse.Namespace, parameters: int, seconds: float, counts: dict[str, dict[str, int]]
) -> None:
    """Write README.md (from the template beside this file, with the figures) and LICENSE."""
    fields: dict[str, object] = {"parameters": parameters, "minutes": seconds / 60, "torch": torch.__version__}
    figures = []
    for name, errors in counts.items():
        rows = [json.loads(line) for line in (options.out / f"{name}.jsonl").read_text().splitlines()]
        fields[f"{name}_strings"] = len(rows)
        fields[f"{name}_words"] = errors["words"]
        fields[f"{name}_minutes"] = sum(row["duration"] for row in rows) / 60
        cells = (f"{wer(errors):.2f} %", *(str(errors[kind]) for kind in ("sub", "del", "ins", "words")))
        figures.append(f"| {name} | " + " | ".join(cells) + " |")
    command = f"python examples/train_digits.py --data DATA --out OUT --steps {options.steps} --batch {options.batch}"
    command += f" --rate {options.rate:g} --seed {options.seed}"
    precision = "bfloat16 autocast" if options.bf16 else "float32"
    fields |= {"figures": "\n".join(figures), "command": command, "precision": precision}
    fields |= {"transformers": transformers.__version__, **vars(options)}
    template = Path(__file__).with_name("train_digits_readme.md").read_text()
    (options.out / "README.md").write_text(template.format(**fields))
    (options.out / "LICENSE").write_text(LICENCE)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="example: python examples/train_digits.py --data ~/data/digits --out src/quantasr/sample/digits",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the recordings, with all.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model and the two sets to")
    parser.add_argument("--work", type=Path, default=Path("runs/digits"), help="checkpoints; resumed from if present")
    parser.add_argument("--steps", type=int, default=6500, help="optimiser steps (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="strings a step (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of strings, weights and dropout (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads (default: %(default)s)")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="train in bfloat16")
    parser.add_argument("--keep-audio", action="store_true", help="leave manifests and audio in OUT as they are")
    return parser.parse_args()


def main() -> None:
    """Write the sets, train, save, and measure what was saved."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.work.mkdir(parents=True, exist_ok=True)
    corpus = read_corpus(options.data)
    processor = build_processor(options.out)
    if not options.keep_audio:
        for name in ("evaluation", "calibration"):
            write_set(fixed_set(corpus, name, options.seed), options.out, name)
    model = build_model()
    seconds = train(model, processor, corpus, options)
    save_half(model, options.out)

    saved = Wav2Vec2ForCTC.from_pretrained(options.out)
    processor = Wav2Vec2Processor.from_pretrained(options.out)
    counts = {}
    for name in ("evaluation", "calibration"):
        examples = read_set(options.out / f"{name}.jsonl")
        texts = recognise(saved, processor, [e.wave for e in examples])
        counts[name] = word_errors([e.text for e in examples], texts)
        print(f"{name}: WER {wer(counts[name]):.2f} % {counts[name]}")
    write_readme(options, saved.num_parameters(), seconds, counts)


if __name__ == "__main__":
    main()
