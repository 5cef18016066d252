"""Train a small NeMo recogniser of spoken English digit strings from scratch, on a CPU.

DATA holds the Free Spoken Digit Dataset as ``audio/`` and ``all.jsonl``, one line a recording: ``audio_filepath``,
``text``, ``speaker``, ``take``. OUT gets ``quartznet.nemo`` or ``conformer.nemo``, a checkpoint to resume from and,
for the Conformer, its tokenizer. Speech, strings and sets are those of ``train_digits.py`` (``digit_strings.py`` says
how they are made), so the evaluation set of the package's sample was heard by neither.

Models, layer for layer the shape of NeMo's own configurations, only smaller, and for 8 kHz:

    quartznet   EncDecCTCModel: separable convolutions, batch norm, residual sums; letters; 20 ms a frame
    conformer   EncDecCTCModelBPE: relative positions, SentencePiece tokens; 40 ms a frame

Examples:

    python examples/train_nemo_digits.py quartznet --data ~/data/digits out/
    python examples/train_nemo_digits.py conformer --data ~/data/digits out/ --steps 8000
    quantasr quantize out/quartznet.nemo out/int8 --calibration src/quantasr/sample/digits/calibration.jsonl
"""

from __future__ import annotations

import argparse
import logging
import math
import warnings
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from digit_strings import (
    RATE,
    Counts,
    Example,
    Recording,
    Wave,
    read_corpus,
    read_set,
    wer,
    word_errors,
)
from digit_training import fit

# Asked before NeMo is first imported: it complains about its own dependencies, and about telemetry that nobody wants.
logging.getLogger("nv_one_logger").setLevel(logging.CRITICAL)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nemo.collections.asr.models import EncDecCTCModel, EncDecCTCModelBPE
    from nemo.utils import logging as nemo_logging
    from omegaconf import OmegaConf

LABELS = [" ", *"abcdefghijklmnopqrstuvwxyz", "'"]  # NeMo's English alphabet
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PIECES = 28  # SentencePiece: the letters, and the commonest pairs and triples of them
RATES = {"quartznet": 3e-3, "conformer": 1.5e-3}  # the highest learning rate
SAMPLE = Path(__file__).parents[1] / "src" / "quantasr" / "sample" / "digits"


def preprocessor(features: int, window: float) -> dict[str, Any]:
    """Log-mel features, normalised per feature: NeMo's own, at the rate of the recordings."""
    return {
        "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
        "sample_rate": RATE,
        "normalize": "per_feature",
        "window_size": window,
        "window_stride": 0.01,
        "window": "hann",
        "features": features,
        "n_fft": 512,
        "frame_splicing": 1,
        "dither": 1e-5,
    }


def spec_augment() -> dict[str, Any]:
    """SpecAugment (Park et al., 2019), light: one band, two stretches of 4 % of the time; by PyTorch's seed."""
    return {
        "_target_": "nemo.collections.asr.modules.SpectrogramAugmentation",
        "freq_masks": 1,
        "freq_width": 12,
        "time_masks": 2,
        "time_width": 0.04,
    }


def block(filters: int, kernel: int, repeat: int = 1, *, residual: bool = False, **others: Any) -> dict[str, Any]:
    """One block of NeMo's ``jasper`` list: ``repeat`` separable convolutions with batch norm and ReLU."""
    common = {"dilation": [1], "dropout": 0.0, "stride": [1], "separable": True}
    return {**common, "filters": filters, "kernel": [kernel], "repeat": repeat, "residual": residual, **others}


def quartznet_config() -> dict[str, Any]:
    """QuartzNet (Kriman et al., 2020) with 5 blocks of 3 convolutions in place of 15 blocks of 5."""
    return {
        "sample_rate": RATE,
        "labels": LABELS,
        "preprocessor": preprocessor(64, 0.02),
        "spec_augment": spec_augment(),
        "encoder": {
            "_target_": "nemo.collections.asr.modules.ConvASREncoder",
            "feat_in": 64,
            "activation": "relu",
            "conv_mask": True,
            "jasper": [
                block(128, 11, stride=[2]),
                *(block(128, kernel, 3, residual=True) for kernel in (11, 13, 17, 21, 25)),
                block(160, 29, dilation=[2]),
                block(256, 1, separable=False),
            ],
        },
        "decoder": {
            "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
            "feat_in": 256,
            "num_classes": len(LABELS),
            "vocabulary": LABELS,
        },
    }


def conformer_config(tokenizer: Path) -> dict[str, Any]:
    """Conformer-CTC (Gulati et al., 2020) with 4 layers of 96 channels; ``tokenizer`` is a SentencePiece folder."""
    return {
        "sample_rate": RATE,
        "tokenizer": {"dir": str(tokenizer), "type": "bpe"},
        "preprocessor": {**preprocessor(80, 0.025), "pad_to": 0, "pad_value": 0.0, "log": True},
        "spec_augment": spec_augment(),
        "encoder": {
            "_target_": "nemo.collections.asr.modules.ConformerEncoder",
            "feat_in": 80,
            "feat_out": -1,
            "n_layers": 4,
            "d_model": 96,
            "subsampling": "striding",
            "subsampling_factor": 4,
            "subsampling_conv_channels": 32,
            "ff_expansion_factor": 2,
            "self_attention_model": "rel_pos",
            "n_heads": 4,
            "xscaling": True,
            "untie_biases": True,
            "pos_emb_max_len": 5000,
            "conv_kernel_size": 15,
            "conv_norm_type": "batch_norm",
            "dropout": 0.05,
            "dropout_pre_encoder": 0.05,
            "dropout_emb": 0.0,
            "dropout_att": 0.05,
        },
        "decoder": {
            "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
            "feat_in": None,
            "num_classes": -1,
            "vocabulary": [],
        },
    }


def write_tokenizer(folder: Path) -> Path:
    """Train SentencePiece on all pairs of digits and return its folder, in the form that NeMo reads."""
    folder.mkdir(parents=True, exist_ok=True)
    written = BytesIO()  # a model that SentencePiece writes itself holds the path of the folder
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(f"{one} {two}" for one, two in product(DIGITS, DIGITS)),
        model_writer=written,
        model_type="unigram",
        vocab_size=PIECES,
        max_sentencepiece_length=3,  # shorter than words: a word is several tokens, as with a real vocabulary
        normalization_rule_name="identity",  # the tables of Unicode's forms would be 240 kB
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    pieces = [processor.id_to_piece(i) for i in range(len(processor))]
    (folder / "tokenizer.vocab").write_text("".join(f"{piece}\t0\n" for piece in pieces))
    # NeMo keeps this list in the .nemo file too, with its own mark for the inside of a word.
    words = [piece[1:] or piece if piece.startswith("▁") else f"##{piece}" for piece in pieces if piece != "<unk>"]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    return folder


def build_model(name: str, out: Path) -> EncDecCTCModel:
    """A model of the table in this file's docstring, untrained; the Conformer's tokenizer is written below ``out``."""
    nemo_logging.setLevel(nemo_logging.ERROR)
    # Training runs in the loop below, so that the data sets of NeMo's configuration are left out.
    if name == "quartznet":
        return EncDecCTCModel(cfg=OmegaConf.create(quartznet_config()))
    return EncDecCTCModelBPE(cfg=OmegaConf.create(conformer_config(write_tokenizer(out / "tokenizer"))))


def padded(waves: Sequence[Wave]) -> tuple[torch.Tensor, torch.Tensor]:
    """Waves as one tensor [batch, samples] filled up with zeros, and their lengths [batch]."""
    tensors = [torch.from_numpy(wave) for wave in waves]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True), torch.tensor([len(t) for t in tensors])


def token_ids(model: EncDecCTCModel, text: str) -> list[int]:
    """The tokens to be spoken, as the model numbers them."""
    if isinstance(model, EncDecCTCModelBPE):
        return list(model.tokenizer.text_to_ids(text))
    return [LABELS.index(letter) for letter in text]


def ctc_loss(model: EncDecCTCModel, examples: Sequence[Example]) -> torch.Tensor:
    """NeMo's own CTC loss of a batch, as its ``training_step`` computes it."""
    signal, lengths = padded([e.wave for e in examples])
    targets = [torch.tensor(token_ids(model, e.text)) for e in examples]
    log_probs, frames, _ = model(input_signal=signal, input_signal_length=lengths)
    loss: torch.Tensor = model.loss(
        log_probs=log_probs.float(),
        targets=torch.nn.utils.rnn.pad_sequence(targets, batch_first=True),
        input_lengths=frames,
        target_lengths=torch.tensor([len(t) for t in targets]),
    )
    return loss


def recognise(model: EncDecCTCModel, waves: Sequence[Wave], batch: int = 16) -> list[str]:
    """Greedy CTC, decoded by NeMo."""
    texts: list[str] = []
    model.eval()
    for start in range(0, len(waves), batch):
        signal, lengths = padded(waves[start : start + batch])
        with torch.inference_mode():
            log_probs, frames, _ = model(input_signal=signal, input_signal_length=lengths)
        hypotheses = model.decoding.ctc_decoder_predictions_tensor(log_probs, frames)
        texts += [hypothesis.text for hypothesis in hypotheses]
    return texts


def train(model: EncDecCTCModel, corpus: Sequence[Recording], checkpoint: Path, options: argparse.Namespace) -> float:
    """Train ``model`` in place; see :func:`digit_training.fit`."""
    return fit(model, corpus, checkpoint, options, partial(ctc_loss, model), partial(recognise, model))


def save_half(model: EncDecCTCModel, path: Path) -> None:
    """Save as ``.nemo`` with trained weights in float16: half the size, and ``restore_from`` makes float32 of them."""
    # Buffers (mel filters, statistics of batch norms) stay as they are: small, and not all of them fit float16.
    for parameter in model.parameters():
        parameter.data = parameter.data.half()
    if "tokenizer" in model.cfg:
        model.cfg.tokenizer.dir = None  # its files are in the .nemo file; where they were is nobody's business
    model.save_to(str(path))


def evaluate(path: Path) -> dict[str, Counts]:
    """Word errors of the saved model, read back, on the sample's sets as they ship."""
    model = EncDecCTCModel.restore_from(str(path), map_location="cpu")
    counts = {}
    for name in ("evaluation", "calibration"):
        examples = read_set(SAMPLE / f"{name}.jsonl")
        texts = recognise(model, [e.wave for e in examples])
        counts[name] = word_errors([e.text for e in examples], texts)
    return counts


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=tuple(RATES), help="which of the two")
    parser.add_argument("out", type=Path, help="folder to write to; an interrupted run is resumed from it")
    parser.add_argument("--data", type=Path, required=True, help="folder of the recordings, with all.jsonl")
    parser.add_argument("--steps", type=int, default=5000, help="optimiser steps (default: %(default)s)")
    parser.add_argument("--rate", type=float, help="highest learning rate (default: 0.003 for quartznet, 0.0015)")
    parser.add_argument("--batch", type=int, default=16, help="strings a step (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of strings, weights and dropout (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads (default: %(default)s)")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="train in bfloat16")
    options = parser.parse_args()
    options.rate = RATES[options.model] if options.rate is None else options.rate
    for name in ("steps", "rate", "batch", "threads"):
        if not 0 < getattr(options, name) < math.inf:
            parser.error(f"--{name} {getattr(options, name)}: must be more than 0")
    return options


def main() -> None:
    """Train, save, and measure what was saved."""
    options = parse_arguments()
    logging.getLogger().setLevel(logging.ERROR)
    warnings.simplefilter("ignore", UserWarning)  # of PyTorch, about NeMo's code
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    corpus = read_corpus(options.data)
    options.out.mkdir(parents=True, exist_ok=True)
    model = build_model(options.model, options.out)
    print(f"{options.model}: {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    seconds = train(model, corpus, options.out / f"{options.model}.pt", options)
    path = options.out / f"{options.model}.nemo"
    save_half(model, path)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {options.steps} steps, {seconds / 60:.0f} minutes")
    for name, errors in evaluate(path).items():
        print(f"{name}: WER {wer(errors):.2f} % {errors}")


if __name__ == "__main__":
    main()
