"""Train a small SpeechBrain recogniser of spoken English digit strings, on a CPU.

DATA holds the Free Spoken Digit Dataset as ``audio/`` and ``all.jsonl``, one line a recording: ``audio_filepath``,
``text``, ``speaker``, ``take``. OUT becomes a folder as SpeechBrain publishes its recognisers: ``hyperparams.yaml``,
a ``.ckpt`` file for each of its pretrainer's loadables, and a README; a checkpoint to resume from lies beside it as
``OUT.pt``. Speech, strings and sets are those of ``train_digits.py`` (``digit_strings.py`` says how they are made), so
the evaluation set of the package's sample was not heard in training.

Models, in shape those of SpeechBrain's own recipes, only smaller, and for 8 kHz; each is a file in
``speechbrain_digits/``:

    wav2vec2_ctc           EncoderASR: the first two layers of the sample's Wav2Vec2, trained on; letters; 20 ms a frame
    crdnn_ctc              EncoderASR: log-mel, convolutions, LSTM, linear layers; SentencePiece tokens; 40 ms a frame
    crdnn_attention        EncoderDecoderASR: the same, and a GRU with location-aware attention; beam search
    transformer_attention  EncoderDecoderASR: Transformer encoder and decoder; beam search with CTC scores

Examples:

    python examples/train_speechbrain_digits.py crdnn_ctc --data ~/data/digits out/crdnn_ctc
    python examples/train_speechbrain_digits.py wav2vec2_ctc --data ~/data/digits out/wav2vec2_ctc --steps 1500
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import sentencepiece
import speechbrain
import torch
import transformers
from digit_strings import (
    TAKES,
    Counts,
    Example,
    Recording,
    Wave,
    read_corpus,
    read_set,
    training_batches,
    wer,
    word_errors,
)
from digit_training import fit
from hyperpyyaml import load_hyperpyyaml
from safetensors.torch import load_file, save_file
from speechbrain.augment.freq_domain import SpectrogramDrop
from speechbrain.dataio.encoder import CTCTextEncoder
from speechbrain.inference.ASR import EncoderASR, EncoderDecoderASR
from speechbrain.nnet.losses import ctc_loss, nll_loss
from torch.nn.utils.rnn import pad_sequence

Asr = EncoderASR | EncoderDecoderASR

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHAPES = Path(__file__).with_name("speechbrain_digits")
SAMPLE = Path(__file__).parents[1] / "src" / "quantasr" / "sample" / "digits"
CTC_WEIGHT = 0.3  # of the loss, where attention has the rest (Watanabe et al., 2017)
SMOOTHING = 0.1  # of the labels that attention learns
LICENCE = """\
Everything in this folder is under Creative Commons Attribution-ShareAlike 4.0 International (CC BY-SA 4.0),
https://creativecommons.org/licenses/by-sa/4.0/legalcode; README.md names the recordings' authors and the changes made.
"""


@dataclass(frozen=True)
class Plan:
    """How one model is trained: optimiser steps, the highest learning rate, and what it is in a few words."""

    steps: int
    rate: float
    what: str


PLANS = {
    "wav2vec2_ctc": Plan(1500, 5e-4, "Wav2Vec2 (2 layers of 160), two linear layers with batch norm, CTC over letters"),
    "crdnn_ctc": Plan(3000, 2e-3, "CRDNN (2-d convolutions, 2 bidirectional LSTM layers, 2 linear layers), CTC"),
    "crdnn_attention": Plan(2400, 2e-3, "CRDNN and a GRU decoder with location-aware attention"),
    "transformer_attention": Plan(3000, 1.5e-3, "Transformer, 4 encoder and 2 decoder layers of 96; joint CTC"),
}


def write_tokenizer(path: Path, hparams: dict[str, Any]) -> None:
    """Write ``path`` as the model's tokenizer reads it: letters, or SentencePiece trained on all pairs of digits."""
    if isinstance(hparams["tokenizer"], CTCTextEncoder):
        letters = CTCTextEncoder()
        letters.add_unk()
        letters.update_from_iterable([" ", *sorted(set("".join(DIGITS)))], sequence_input=False)
        letters.insert_blank(index=hparams["blank_index"])
        letters.save(path)
        return
    written = BytesIO()  # a model that SentencePiece writes itself holds the path of the folder
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(f"{one} {two}" for one, two in product(DIGITS, DIGITS)),
        model_writer=written,
        model_type="unigram",
        vocab_size=hparams["output_neurons"],
        max_sentencepiece_length=3,  # shorter than words: a word is several tokens, as with a real vocabulary
        normalization_rule_name="identity",  # the tables of Unicode's forms would be 240 kB
        bos_id=hparams.get("bos_index", -1),
        eos_id=hparams.get("eos_index", -1),
        minloglevel=2,
    )
    path.write_bytes(written.getvalue())


def save_wav2vec2(model: transformers.Wav2Vec2Model, folder: Path) -> None:
    """Save as a Hugging Face folder whose weights are float16 on disk and float32 once loaded."""
    model.save_pretrained(folder)
    weights = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors gives it to its owner alone
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"  # what transformers 5 then loads, and transformers 4 anyway
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    settings = (SAMPLE / "preprocessor_config.json").read_text()
    (folder / "preprocessor_config.json").write_text(settings)


def build(name: str, out: Path) -> dict[str, Any]:
    """Make ``out`` with everything but trained weights, and return its hyperparameters: the live modules by name."""
    out.mkdir(parents=True, exist_ok=True)
    text = (SHAPES / f"{name}.yaml").read_text()
    (out / "hyperparams.yaml").write_text(text)
    if name == "wav2vec2_ctc":
        start = transformers.Wav2Vec2Model.from_pretrained(SAMPLE, num_hidden_layers=2)
        save_wav2vec2(start, out / "wav2vec2")
    hparams: dict[str, Any] = load_hyperpyyaml(text, {"pretrained_path": str(out.resolve())})
    tokenizer = out / "tokenizer.ckpt"
    write_tokenizer(tokenizer, hparams)
    hparams["tokenizer"].load(str(tokenizer))
    if isinstance(hparams["tokenizer"], CTCTextEncoder):
        hparams["tokenizer"].expect_len(hparams["output_neurons"])
    return hparams


def interface(hparams: dict[str, Any]) -> Asr:
    """SpeechBrain's recogniser around the modules that are trained."""
    kind = EncoderDecoderASR if "decoder" in hparams["modules"] else EncoderASR
    return kind(modules=hparams["modules"], hparams=hparams, freeze_params=False)


def trained(hparams: dict[str, Any]) -> torch.nn.ModuleList:
    """Everything that learns, each once."""
    return torch.nn.ModuleList([hparams["asr"], *([hparams["wav2vec2"]] if "wav2vec2" in hparams else [])])


def padded(waves: Sequence[Wave]) -> tuple[torch.Tensor, torch.Tensor]:
    """Waves as one tensor [batch, samples] filled up with zeros, and their lengths [batch] as shares of the longest."""
    tensors = [torch.from_numpy(wave) for wave in waves]
    lengths = torch.tensor([len(t) for t in tensors])
    return pad_sequence(tensors, batch_first=True), lengths / lengths.max()


def token_ids(hparams: dict[str, Any], text: str) -> list[int]:
    """The tokens to be spoken, as the model numbers them."""
    tokenizer = hparams["tokenizer"]
    ids = tokenizer.encode_sequence(text) if isinstance(tokenizer, CTCTextEncoder) else tokenizer.encode(text)
    return list(ids)


def targets(sequences: Sequence[Sequence[int]], fill: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids as one tensor [batch, tokens], and their lengths [batch] as shares of the longest."""
    lengths = torch.tensor([len(s) for s in sequences])
    rows = [torch.tensor(s) for s in sequences]
    return pad_sequence(rows, batch_first=True, padding_value=fill), lengths / lengths.max()


def features(hparams: dict[str, Any], waves: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Normalised log-mel features [batch, frames, mel]; in training, a few bands and stretches of time are left out.

    SpecAugment: Park et al., 2019.
    """
    feats: torch.Tensor = hparams["normalizer"](hparams["compute_features"](waves), lengths)
    if not hparams["asr"].training:
        return feats
    bands = SpectrogramDrop(drop_length_low=1, drop_length_high=6, drop_count_low=0, drop_count_high=2, dim=2)
    times = SpectrogramDrop(drop_length_low=1, drop_length_high=12, drop_count_low=0, drop_count_high=3, dim=1)
    masked: torch.Tensor = times(bands(feats))
    return masked


def loss_of(hparams: dict[str, Any], examples: Sequence[Example]) -> torch.Tensor:
    """The loss of a batch as SpeechBrain's recipes compute it: CTC, or CTC and attention jointly."""
    waves, lengths = padded([e.wave for e in examples])
    blank = hparams["blank_index"]
    tokens = [token_ids(hparams, e.text) for e in examples]
    shifted, _ = targets([[hparams.get("bos_index", 0), *t] for t in tokens], blank)
    if "wav2vec2" in hparams:
        hidden = hparams["enc"](hparams["wav2vec2"](waves, lengths))
    elif "transformer" in hparams:
        hidden, heard = hparams["transformer"](hparams["cnn"](features(hparams, waves, lengths)), shifted, lengths)
    else:
        hidden = hparams["enc"](features(hparams, waves, lengths))
    log_probs = hparams["log_softmax"](hparams["ctc_lin"](hidden)).float()
    spoken, shares = targets(tokens, blank)
    ctc: torch.Tensor = ctc_loss(log_probs, spoken, lengths, shares, blank)
    if "seq_lin" not in hparams:
        return ctc
    if "transformer" not in hparams:
        heard, _ = hparams["dec"](hparams["emb"](shifted), hidden, lengths)
    log_probs = hparams["log_softmax"](hparams["seq_lin"](heard)).float()
    ended, shares = targets([[*t, hparams["eos_index"]] for t in tokens], blank)
    attention: torch.Tensor = nll_loss(log_probs, ended, length=shares, label_smoothing=SMOOTHING)
    return CTC_WEIGHT * ctc + (1 - CTC_WEIGHT) * attention


def learn_statistics(hparams: dict[str, Any], part: Sequence[Recording], seed: int) -> None:
    """Give the normalisation the mean and deviation of each mel band over 128 training strings, and fix them."""
    normalizer = hparams["normalizer"]
    normalizer.train()
    for examples in training_batches(part, 16, seed + 1, 72, 80):  # strings of all lengths
        waves, lengths = padded([e.wave for e in examples])
        normalizer(hparams["compute_features"](waves), lengths)
    normalizer.eval()


def recognise(asr: Asr, waves: Sequence[Wave]) -> list[str]:
    """SpeechBrain's own transcripts, a recording at a time: its LSTM and its norms hear the padding of a batch."""
    asr.eval()
    whole = torch.ones(1)
    return [str(asr.transcribe_batch(torch.from_numpy(wave)[None], whole)[0][0]) for wave in waves]


def train(hparams: dict[str, Any], corpus: Sequence[Recording], checkpoint: Path, options: argparse.Namespace) -> float:
    """Train in place; see :func:`digit_training.fit`."""
    asr = interface(hparams)
    if "normalizer" in hparams:
        learn_statistics(hparams, [r for r in corpus if r.take in TAKES["training"]], options.seed)
    return fit(trained(hparams), corpus, checkpoint, options, partial(loss_of, hparams), partial(recognise, asr))


def save_half(hparams: dict[str, Any], out: Path) -> None:
    """Write what the pretrainer reads, trained weights in float16: half the size, and float32 again once loaded."""
    # Statistics of batch norms and features stay as they are: small, and not all of them fit float16.
    weights = hparams["asr"].state_dict()
    halves = {name: t.half() if t.is_floating_point() and "running" not in name else t for name, t in weights.items()}
    torch.save(halves, out / "asr.ckpt")
    if "normalizer" in hparams:
        hparams["normalizer"]._save(out / "normalizer.ckpt")
    if "wav2vec2" in hparams:
        save_wav2vec2(hparams["wav2vec2"].model, out / "wav2vec2")


def load(out: Path) -> Asr:
    """The recogniser of a folder, by SpeechBrain."""
    text = (out / "hyperparams.yaml").read_text()
    kind = EncoderDecoderASR if "\ndecoder:" in text else EncoderASR
    asr: Asr = kind.from_hparams(str(out), overrides={"pretrained_path": str(out.resolve())})
    return asr


def evaluate(out: Path) -> dict[str, Counts]:
    """Word errors of the saved model, read back, on the sample's sets as they ship."""
    asr = load(out)
    counts = {}
    for name in ("evaluation", "calibration"):
        examples = read_set(SAMPLE / f"{name}.jsonl")
        counts[name] = word_errors([e.text for e in examples], recognise(asr, [e.wave for e in examples]))
    return counts


def write_readme(out: Path, parameters: int, seconds: float, options: argparse.Namespace) -> None:
    """Write README.md (what the model is, its errors, how it was made) and LICENSE; measures the saved folder."""
    figures = []
    for name, errors in evaluate(out).items():
        print(f"{name}: WER {wer(errors):.2f} % {errors}", flush=True)
        cells = (f"{wer(errors):.2f} %", *(str(errors[kind]) for kind in ("sub", "del", "ins", "words")))
        figures.append(f"| {name} | " + " | ".join(cells) + " |")
    fields = {
        "title": f"SpeechBrain recogniser of spoken English digit strings: `{options.model}`",
        "what": PLANS[options.model].what,
        "parameters": parameters,
        "interface": type(load(out)).__name__,
        "figures": "\n".join(figures),
        "minutes": seconds / 60,
        "precision": "bfloat16 autocast" if options.bf16 else "float32",
        "torch": torch.__version__,
        "speechbrain": speechbrain.__version__,
        "transformers": transformers.__version__,
    }
    template = (SHAPES / "readme.md").read_text()
    (out / "README.md").write_text(template.format(**fields, **vars(options)))
    (out / "LICENSE").write_text(LICENCE)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=tuple(PLANS), help="which of the four")
    parser.add_argument("out", type=Path, help="folder to write; an interrupted run is resumed from the file beside it")
    parser.add_argument("--data", type=Path, required=True, help="folder of the recordings, with all.jsonl")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: 1500 to 3000, by model)")
    parser.add_argument("--rate", type=float, help="highest learning rate (default: 0.0005 to 0.002, by model)")
    parser.add_argument("--batch", type=int, default=16, help="strings a step (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of strings, weights and dropout (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads (default: %(default)s)")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="train in bfloat16")
    options = parser.parse_args()
    options.steps = PLANS[options.model].steps if options.steps is None else options.steps
    options.rate = PLANS[options.model].rate if options.rate is None else options.rate
    for name in ("steps", "rate", "batch", "threads"):
        if not 0 < getattr(options, name) < math.inf:
            parser.error(f"--{name} {getattr(options, name)}: must be more than 0")
    return options


def main() -> None:
    """Train, save, and measure what was saved."""
    options = parse_arguments()
    logging.getLogger().setLevel(logging.ERROR)
    warnings.simplefilter("ignore", UserWarning)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    corpus = read_corpus(options.data)
    hparams = build(options.model, options.out)
    parameters = sum(p.numel() for p in trained(hparams).parameters())
    print(f"{options.model}: {parameters:,} parameters", flush=True)
    seconds = train(hparams, corpus, options.out.with_name(f"{options.out.name}.pt"), options)
    save_half(hparams, options.out)
    size = sum(f.stat().st_size for f in options.out.rglob("*") if f.is_file())
    print(f"{options.out}: {size / 1e6:.2f} MB, {options.steps} steps, {seconds / 60:.0f} minutes", flush=True)
    write_readme(options.out, parameters, seconds, options)


if __name__ == "__main__":
    main()
