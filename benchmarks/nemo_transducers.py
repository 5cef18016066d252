"""NeMo's RNN-T and TDT at real size, random weights: whole pipelines of artifacts beside NeMo's own in PyTorch.

    python benchmarks/nemo_transducers.py --threads 2 --rounds 15
    python benchmarks/nemo_transducers.py tdt --recipe fast

The encoder is FastConformer-L (17 layers, 512 wide, 8-fold subsampling, 80 mels), with 1024 tokens, an LSTM of 640
units (two for TDT) and a joint of 640, as in ``fastconformer_transducer_bpe`` of NeMo's repository. The blank's bias is
set so that about 4 tokens come in a second, as in speech. NeMo's time is that of its features, its encoder and its
batched greedy decoding, without data loaders; prints all systems, interleaved in one run on 10 s.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare import Figure, calibration_speech, report, ten_seconds
from nemo_models import conformer

from quantasr.cli.output import say
from quantasr.errors import EngineError
from quantasr.measure.latency import ratio, time_calls
from quantasr.pipeline import quantize
from quantasr.runtime import describe_engines, load
from quantasr.speech.transcript import Waveform

KINDS = ("rnnt", "tdt")
ENGINES = (("auto", "auto"), ("openvino", "bf16"), ("openvino", "fp32"), ("onnxruntime", "fp32"))
TOKENS, DURATIONS, WIDTH = 1024, [0, 1, 2, 3, 4], 640
TOKENS_PER_SECOND = 4.0
BAR = 0.25  # of NeMo's time
_LIKELY = 12
_MODULES = "nemo.collections.asr.modules"
_FAST: dict[str, Any] = {
    "subsampling": "dw_striding",
    "subsampling_factor": 8,
    "subsampling_conv_channels": 256,
    "conv_kernel_size": 9,
    "xscaling": False,
}


def configuration(kind: str) -> dict[str, Any]:
    """The ``model`` section of NeMo's configuration."""
    encoder, width, bins = conformer(512, 8, 17, **_FAST)
    tdt = kind == "tdt"
    row: dict[str, Any] = {
        "sample_rate": 16000,
        "labels": [" ", *(f"t{i}" for i in range(1, TOKENS))],
        "preprocessor": {
            "_target_": f"{_MODULES}.AudioToMelSpectrogramPreprocessor",
            "sample_rate": 16000,
            "normalize": "per_feature",
            "window_size": 0.025,
            "window_stride": 0.01,
            "window": "hann",
            "features": bins,
            "n_fft": 512,
            "dither": 0.0,
            "pad_to": 0,
        },
        "encoder": encoder,
        "model_defaults": {"enc_hidden": width, "pred_hidden": WIDTH, "joint_hidden": WIDTH},
        "decoder": {
            "_target_": f"{_MODULES}.RNNTDecoder",
            "normalization_mode": None,
            "random_state_sampling": False,
            "blank_as_pad": True,
            "prednet": {"pred_hidden": WIDTH, "pred_rnn_layers": 2 if tdt else 1, "t_max": None, "dropout": 0.2},
        },
        "joint": {
            "_target_": f"{_MODULES}.RNNTJoint",
            "log_softmax": None,
            "fuse_loss_wer": False,
            "jointnet": {"joint_hidden": WIDTH, "activation": "relu", "dropout": 0.2},
        },
        "decoding": {"strategy": "greedy_batch", "greedy": {"max_symbols": 10}},
        "loss": {"loss_name": "pytorch"},
    }
    if tdt:
        row["model_defaults"] |= {"tdt_durations": DURATIONS, "num_tdt_durations": len(DURATIONS)}
        row["joint"]["num_extra_outputs"] = len(DURATIONS)
        row["decoding"] |= {"model_type": "tdt", "durations": DURATIONS}
        row["loss"] = {"loss_name": "tdt", "tdt_kwargs": {"durations": DURATIONS, "sigma": 0.02}}
    return row


class Nemo:
    """NeMo's model and its decoding, as ``transcribe`` calls them on one recording."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @torch.inference_mode()
    def encode(self, wave: Waveform) -> tuple[Any, Any]:
        """Wave -> the encoder's output and its length."""
        signal, length = torch.from_numpy(wave)[None], torch.tensor([wave.size])
        encoded, counts = self.model(input_signal=signal, input_signal_length=length)
        return encoded, counts

    @torch.inference_mode()
    def decode(self, encoded: Any, counts: Any) -> Any:
        """The encoder's output -> NeMo's hypothesis."""
        decode = self.model.decoding.rnnt_decoder_predictions_tensor
        return decode(encoder_output=encoded, encoded_lengths=counts, return_hypotheses=True)[0]

    def transcribe(self, wave: Waveform) -> Any:
        """Wave -> NeMo's hypothesis."""
        return self.decode(*self.encode(wave))


def build(kind: str, wave: Waveform) -> Nemo:
    """The model with seeded random weights that gives about ``TOKENS_PER_SECOND`` on ``wave``."""
    logging.getLogger("nv_one_logger").setLevel(logging.CRITICAL)
    from nemo.collections.asr.models import EncDecRNNTModel
    from nemo.utils import logging as nemo_logging
    from omegaconf import OmegaConf

    nemo_logging.setLevel(logging.CRITICAL)
    torch.manual_seed(0)
    model: Any = EncDecRNNTModel(OmegaConf.create(configuration(kind))).eval()
    for part in model.modules():  # as if it had been trained: statistics that are not the identity
        if isinstance(part, torch.nn.BatchNorm1d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    nemo = Nemo(model)
    encoded, counts = nemo.encode(wave)
    with torch.no_grad():
        _spread(model.joint, encoded[0].T)
        bias = model.joint.joint_net[-1].bias
        found = {}
        for blank in torch.linspace(2, 12, 11).tolist():
            bias[TOKENS] = blank
            rate = len(nemo.decode(encoded, counts).y_sequence) * 16000 / wave.size
            found[blank] = rate
        bias[TOKENS] = min(found, key=lambda blank: abs(found[blank] - TOKENS_PER_SECOND))
        if kind == "tdt":  # each decision a token and 1 to 4 frames: as many in every system, whatever it rounds
            bias[TOKENS], bias[TOKENS + 1] = -20.0, -20.0
    return nemo


def _spread(joint: Any, rows: Any) -> None:
    """Let a random joint tell frames and predictions apart: it reads the encoder's output standardised."""
    weight = torch.randn(joint.enc.weight.shape) / (rows.std(0) + 1e-3) / rows.shape[1] ** 0.5
    joint.enc.weight.copy_(weight)
    joint.enc.bias.copy_(-weight @ rows.mean(0))
    joint.pred.weight.mul_(8)
    joint.joint_net[-1].weight.mul_(4)
    # Of a thousand random tokens there are always two that are equally good: most are never said.
    joint.joint_net[-1].bias[_LIKELY:TOKENS] -= 20


def measure(kind: str, folder: Path, arguments: argparse.Namespace) -> None:
    """One model, all systems."""
    wave = ten_seconds()
    nemo = build(kind, wave)
    path = folder / f"{kind}.nemo"
    nemo.model.save_to(str(path))
    speech = calibration_speech(folder, 8)
    artifact = quantize(path, folder / kind, calibration=speech, recipe=arguments.recipe, say=say)
    calls: dict[str, Any] = {"PyTorch fp32": lambda: nemo.transcribe(wave)}
    for engine, compute in ENGINES:
        try:
            loaded = load(artifact, engine=engine, compute=compute, threads=arguments.threads, chunk_seconds=0)
        except EngineError as error:
            say(f"{engine} {compute}: {error}")
            continue
        label = f"{engine} {compute}: {describe_engines(loaded.engines)}"
        calls[label] = lambda loaded=loaded: loaded.transcribe([wave])
        decisions = loaded.paths([wave])[0]  # type: ignore[attr-defined]
        say(f"{label}: {int(np.sum(decisions[:, 0] != TOKENS))} tokens, {len(decisions)} decisions")
    say(f"NeMo: {len(nemo.transcribe(wave).y_sequence)} tokens in {wave.size / 16000:.1f} s")
    timings = time_calls(calls, wave.size / 16000, rounds=arguments.rounds)
    base = timings["PyTorch fp32"]
    ratios = {name: ratio(found, base).median for name, found in timings.items() if found is not base}
    best = min(ratios, key=lambda name: ratios[name])
    report(f"{kind}, 10 s", timings, [Figure(f"{kind}: {best} / NeMo PyTorch fp32", ratios[best], BAR)])


def main() -> None:
    """Build, quantize, time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=KINDS, help=f"which of {', '.join(KINDS)}")
    parser.add_argument("--recipe", default="default", help="recipe of the artifact (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    for kind in arguments.kinds:
        with tempfile.TemporaryDirectory() as folder:
            measure(kind, Path(folder), arguments)


if __name__ == "__main__":
    main()
