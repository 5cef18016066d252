"""Train a small NeMo transducer of spoken English digit strings on a CPU, from the encoder of a CTC model.

DATA holds the Free Spoken Digit Dataset as ``audio/`` and ``all.jsonl``, one line a recording: ``audio_filepath``,
``text``, ``speaker``, ``take``. OUT gets ``hybrid.nemo`` or ``tdt.nemo``, a checkpoint to resume from and the
tokenizer. Speech, strings and sets are those of ``train_digits.py``. The encoder begins with the first layers of
START, the ``conformer.nemo`` of ``train_nemo_digits.py``, so that mainly prediction network and joint are learnt.

    hybrid      EncDecHybridRNNTCTCBPEModel: RNN-T (Graves, arXiv 1211.3711) and CTC on one encoder; one LSTM layer
    tdt         EncDecRNNTBPEModel with durations of 0 to 4 frames (Xu et al., arXiv 2304.06795); two LSTM layers

NeMo's TDT loss runs on GPUs only, and its RNN-T loss takes four seconds for a batch on a CPU: ``tdt_loss`` and
``rnnt_loss`` compute the same.

Examples:

    python examples/train_nemo_transducer_digits.py hybrid --data ~/data/digits out/
    python examples/train_nemo_transducer_digits.py tdt --data ~/data/digits out/
"""

from __future__ import annotations

import argparse
import logging
import math
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from digit_strings import Counts, Example, Recording, Wave, read_corpus, read_set, wer, word_errors
from digit_training import fit
from torch import Tensor
from train_nemo_digits import SAMPLE, conformer_config, padded, save_half, write_tokenizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nemo.collections.asr.models import (
        ASRModel,
        EncDecCTCModelBPE,
        EncDecHybridRNNTCTCBPEModel,
        EncDecRNNTBPEModel,
    )
    from nemo.utils import logging as nemo_logging
    from omegaconf import OmegaConf

MODELS = ("hybrid", "tdt")
START = Path(__file__).parents[1] / "tests" / "data" / "nemo" / "conformer.nemo"
LAYERS = 3  # of the encoder, of START's four
WIDTH = 64  # of prediction network and joint
DURATIONS = [0, 1, 2, 3, 4]
SIGMA = 0.02  # what the TDT loss takes off every token's log-prob, so that longer durations win
CTC_WEIGHT = 0.3
NEVER = -1e4  # a log-prob of what cannot be, whose gradient is finite


def configuration(name: str, tokenizer: Path) -> dict[str, Any]:
    """The shape of NeMo's own ``conformer_hybrid_transducer_ctc_bpe`` and ``fastconformer_tdt`` files, smaller."""
    row = conformer_config(tokenizer)
    row["encoder"]["n_layers"] = LAYERS
    ctc = row.pop("decoder")
    tdt = name == "tdt"
    row |= {
        "model_defaults": {"enc_hidden": row["encoder"]["d_model"], "pred_hidden": WIDTH, "joint_hidden": WIDTH},
        "decoder": {
            "_target_": "nemo.collections.asr.modules.RNNTDecoder",
            "normalization_mode": None,
            "random_state_sampling": False,
            "blank_as_pad": True,
            "prednet": {"pred_hidden": WIDTH, "pred_rnn_layers": 2 if tdt else 1, "t_max": None, "dropout": 0.1},
        },
        "joint": {
            "_target_": "nemo.collections.asr.modules.RNNTJoint",
            "log_softmax": None,
            "preserve_memory": False,
            "fuse_loss_wer": False,
            "jointnet": {"joint_hidden": WIDTH, "activation": "relu", "dropout": 0.1},
        },
        "decoding": {"strategy": "greedy_batch", "greedy": {"max_symbols": 10}},
        "loss": {"loss_name": "default", "warprnnt_numba_kwargs": {"fastemit_lambda": 0.0, "clamp": -1.0}},
    }
    if tdt:
        row["model_defaults"] |= {"tdt_durations": DURATIONS, "num_tdt_durations": len(DURATIONS)}
        row["joint"]["num_extra_outputs"] = len(DURATIONS)
        row["decoding"] |= {"model_type": "tdt", "durations": DURATIONS}
        row["loss"] = {"loss_name": "tdt", "tdt_kwargs": {"durations": DURATIONS, "sigma": SIGMA, "omega": 0.0}}
        return row
    row["aux_ctc"] = {"ctc_loss_weight": CTC_WEIGHT, "decoder": ctc, "decoding": {"strategy": "greedy"}}
    return row


def build_model(name: str, out: Path, start: Path | None) -> Any:
    """A model of the table in this file's docstring; its tokenizer is written below ``out``."""
    nemo_logging.setLevel(nemo_logging.ERROR)
    row = OmegaConf.create(configuration(name, write_tokenizer(out / "tokenizer")))
    model = EncDecRNNTBPEModel(cfg=row) if name == "tdt" else EncDecHybridRNNTCTCBPEModel(cfg=row)
    if start is not None:
        learnt = EncDecCTCModelBPE.restore_from(str(start), map_location="cpu").encoder.state_dict()
        model.encoder.load_state_dict({key: learnt[key] for key in model.encoder.state_dict()})
    return model


def loss_of(model: Any, examples: Sequence[Example]) -> Tensor:
    """The loss of a batch, as NeMo's ``training_step`` computes it."""
    signal, lengths = padded([e.wave for e in examples])
    ids = [torch.tensor(model.tokenizer.text_to_ids(e.text)) for e in examples]
    targets, counts = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True), torch.tensor([len(i) for i in ids])
    encoded, frames = model(input_signal=signal, input_signal_length=lengths)
    with torch.autocast("cpu", enabled=False):
        encoded = encoded.float()
        predicted, _, _ = model.decoder(targets=targets, target_length=counts)
        joint = model.joint(encoder_outputs=encoded, decoder_outputs=predicted)
        if not hasattr(model, "ctc_decoder"):
            return tdt_loss(joint, targets, frames, counts).mean()
        logprobs = model.ctc_decoder(encoder_output=encoded)
        ctc = model.ctc_loss(log_probs=logprobs, targets=targets, input_lengths=frames, target_lengths=counts)
        rnnt = rnnt_loss(joint, targets, frames, counts).mean()
    return (1 - CTC_WEIGHT) * rnnt + CTC_WEIGHT * ctc


def rnnt_loss(joint: Tensor, targets: Tensor, frames: Tensor, counts: Tensor) -> Tensor:
    """Minus the log-prob of each row's tokens over all alignments (arXiv 1211.3711, equation 16).

    ``joint``: scores ``[batch, time, tokens + 1, vocabulary + 1]``, the blank last; ``targets`` ``[batch, tokens]``;
    ``frames`` and ``counts`` ``[batch]``.
    """
    blank, label = _arcs(joint.log_softmax(-1), targets)
    return _over_alignments([(1, blank)], [(0, label)], frames, counts)


def tdt_loss(
    joint: Tensor,
    targets: Tensor,
    frames: Tensor,
    counts: Tensor,
    durations: Sequence[int] = tuple(DURATIONS),
    sigma: float = SIGMA,
) -> Tensor:
    """As :func:`rnnt_loss`, over all durations too (arXiv 2304.06795, equation 7), whose scores come last in ``joint``.

    Blanks last a frame at least; the last one ends exactly behind the last frame.
    """
    blank, label = _arcs(joint[..., : -len(durations)].log_softmax(-1) - sigma, targets)
    lasting = joint[..., -len(durations) :].log_softmax(-1)
    blanks = [(d, blank + lasting[..., i]) for i, d in enumerate(durations) if d]
    return _over_alignments(blanks, [(d, label + lasting[..., i]) for i, d in enumerate(durations)], frames, counts)


def _arcs(tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs of the blank and of the next token at every place, ``[batch, time, tokens + 1]``."""
    label = tokens[:, :, :-1].gather(3, targets[:, None, :, None].expand(-1, tokens.shape[1], -1, 1))[..., 0]
    return tokens[..., -1], torch.nn.functional.pad(label, (0, 1), value=NEVER)


def _over_alignments(
    blanks: Sequence[tuple[int, Tensor]], labels: Sequence[tuple[int, Tensor]], frames: Tensor, counts: Tensor
) -> Tensor:
    """Sum over the paths of (frames to go on, log-probs) from the first frame to the end, in one loop.

    It runs over ``n = t + u``, frames and tokens that are behind, because every arc leads to a larger one.
    """
    batch, time, positions = blanks[0][1].shape
    place = torch.arange(positions)
    longest = max(duration for duration, _ in (*blanks, *labels))
    # diagonals[longest + 1 + n][b, u]: log-prob of being at frame n - u with u tokens said.
    diagonals = [torch.full((batch, positions), NEVER)] * (longest + 1)

    def along(n: int, scores: Tensor) -> Tensor:
        at = n - place
        return scores[:, at.clamp(0, time - 1), place].masked_fill((at < 0) | (at >= time), NEVER)

    for n in range(time + positions - 1):
        ways = [torch.where((place == 0) & (n == 0), 0.0, NEVER).expand(batch, -1)]
        ways += [diagonals[n + longest + 1 - d] + along(n - d, scores) for d, scores in blanks]
        for d, scores in labels:
            said = diagonals[n + longest - d] + along(n - d - 1, scores)
            ways.append(torch.nn.functional.pad(said[:, :-1], (1, 0), value=NEVER))
        diagonals.append(torch.logsumexp(torch.stack(ways), 0).clamp(min=NEVER))
    alphas = torch.stack(diagonals[longest + 1 :], 1)  # [batch, n, positions]
    rows, ends = torch.arange(batch), []
    for duration, scores in blanks:
        at = (frames - duration).clamp(min=0)
        found = alphas[rows, at + counts, counts] + scores[rows, at, counts]
        ends.append(found.masked_fill(frames < duration, NEVER))
    return -torch.logsumexp(torch.stack(ends), 0)


def recognise(model: Any, waves: Sequence[Wave], batch: int = 16, *, ctc: bool = False) -> list[str]:
    """Greedy search, by NeMo; with the CTC head of a hybrid if ``ctc``."""
    texts: list[str] = []
    model.eval()
    for start in range(0, len(waves), batch):
        signal, lengths = padded(waves[start : start + batch])
        with torch.inference_mode():
            encoded, frames = model(input_signal=signal, input_signal_length=lengths)
            if ctc:
                logprobs = model.ctc_decoder(encoder_output=encoded)
                found = model.ctc_decoding.ctc_decoder_predictions_tensor(logprobs, frames)
            else:
                found = model.decoding.rnnt_decoder_predictions_tensor(encoder_output=encoded, encoded_lengths=frames)
        texts += [hypothesis.text for hypothesis in found]
    return texts


def train(model: Any, corpus: Sequence[Recording], checkpoint: Path, options: argparse.Namespace) -> float:
    """Train ``model`` in place; see :func:`digit_training.fit`."""
    return fit(model, corpus, checkpoint, options, partial(loss_of, model), partial(recognise, model))


def evaluate(path: Path) -> dict[str, Counts]:
    """Word errors of the saved model, read back, on the sample's sets as they ship."""
    model = ASRModel.restore_from(str(path), map_location="cpu")
    counts = {}
    for ctc in (False, True)[: 1 + hasattr(model, "ctc_decoder")]:
        for name in ("evaluation", "calibration"):
            examples = read_set(SAMPLE / f"{name}.jsonl")
            texts = recognise(model, [e.wave for e in examples], ctc=ctc)
            counts[f"{'CTC' if ctc else 'transducer'}, {name}"] = word_errors([e.text for e in examples], texts)
    return counts


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS, help="which of the two")
    parser.add_argument("out", type=Path, help="folder to write to; an interrupted run is resumed from it")
    parser.add_argument("--data", type=Path, required=True, help="folder of the recordings, with all.jsonl")
    parser.add_argument("--start", type=Path, default=START, help="CTC model whose encoder it begins with")
    parser.add_argument("--steps", type=int, default=3000, help="optimiser steps (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="highest learning rate (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="strings a step (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of strings, weights and dropout (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads (default: %(default)s)")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="encoder in bfloat16")
    options = parser.parse_args()
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
    model = build_model(options.model, options.out, options.start)
    print(f"{options.model}: {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    seconds = train(model, corpus, options.out / f"{options.model}.pt", options)
    path = options.out / f"{options.model}.nemo"
    save_half(model, path)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {options.steps} steps, {seconds / 60:.0f} minutes")
    for name, errors in evaluate(path).items():
        print(f"{name}: WER {wer(errors):.2f} % {errors}")


if __name__ == "__main__":
    main()
