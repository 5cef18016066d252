"""Train the sample recogniser: a small Wav2Vec2 CTC model of spoken English digit strings, from scratch.

DATA holds the Free Spoken Digit Dataset as ``audio/`` and ``all.jsonl``, one line a recording: ``audio_filepath``,
``text``, ``speaker``, ``take``. OUT becomes an ordinary Hugging Face folder with an evaluation and a calibration
manifest, their audio, a README and the licence; ``digit_strings.py`` says how the sets are made.

Example:

    python examples/train_digits.py --data ~/data/digits --out src/quantasr/sample/digits
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import transformers
from digit_strings import (
    RATE,
    Counts,
    Example,
    Recording,
    Wave,
    fixed_set,
    read_corpus,
    read_set,
    wer,
    word_errors,
    write_set,
)
from digit_training import fit
from safetensors.torch import load_file, save_file
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

LETTERS = "efghinorstuvwxz"  # those of the ten digit words
VOCABULARY = ["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS]
LICENCE = """\
Everything in this folder is under Creative Commons Attribution-ShareAlike 4.0 International (CC BY-SA 4.0),
https://creativecommons.org/licenses/by-sa/4.0/legalcode; README.md names the recordings' authors and the changes made.
"""


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
            conv_bias=True,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
            num_conv_pos_embeddings=32,
            num_conv_pos_embedding_groups=16,
            initializer_range=0.05,
            attention_dropout=0.0,
            activation_dropout=0.0,
            layerdrop=0.0,
            mask_time_prob=0.0,
            ctc_loss_reduction="mean",
            ctc_zero_infinity=True,
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


def loss_of(model: Wav2Vec2ForCTC, processor: Wav2Vec2Processor, examples: Sequence[Example]) -> torch.Tensor:
    """The model's own CTC loss of a batch."""
    inputs = processor([e.wave for e in examples], sampling_rate=RATE, return_tensors="pt", padding=True)
    labels = processor.tokenizer([e.text for e in examples], return_tensors="pt", padding=True)
    loss: torch.Tensor = model(**inputs, labels=labels.input_ids.masked_fill(labels.attention_mask == 0, -100)).loss
    return loss


def train(
    model: Wav2Vec2ForCTC, processor: Wav2Vec2Processor, corpus: Sequence[Recording], options: argparse.Namespace
) -> float:
    """Train ``model`` in place; see :func:`digit_training.fit`."""
    options.work.mkdir(parents=True, exist_ok=True)
    loss, texts = partial(loss_of, model, processor), partial(recognise, model, processor)
    return fit(model, corpus, options.work / "checkpoint.pt", options, loss, texts)


def save_half(model: Wav2Vec2ForCTC, out: Path) -> None:
    """Save as a Hugging Face folder whose weights are float16 on disk and float32 once loaded."""
    model.save_pretrained(out)
    weights = {name: tensor.half() for name, tensor in load_file(out / "model.safetensors").items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # safetensors gives it to its owner alone
    # transformers 5 loads as the configuration says, transformers 4 as float32: both compute in float32.
    config = json.loads((out / "config.json").read_text())
    config["dtype"] = "float32"
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_readme(options: argparse.Namespace, parameters: int, seconds: float, counts: dict[str, Counts]) -> None:
    """Write README.md (from the template beside this file, with the figures) and LICENSE."""
    fields: dict[str, object] = {"parameters": parameters, "minutes": seconds / 60}
    fields |= {"torch": torch.__version__, "transformers": transformers.__version__}
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
    fields |= {"figures": "\n".join(figures), "command": command, "precision": precision, **vars(options)}
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
