"""A SpeechBrain EncoderASR of Wav2Vec2-base's size: time of SpeechBrain, of other tools, of ours, in one run.

    python benchmarks/speechbrain_speed.py --threads 2

Random weights, so nothing is said about WER here (see speechbrain_digits.py). Timed both ways: the encoder alone, as
SpeechBrain's users quote their real-time factor, and from the wave to the text. All systems run in turns, in one
process.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from compare import RATE, Figure, calibration_speech, engines_here, peer_systems, report, ten_seconds

import quantasr
from quantasr.cli.output import say
from quantasr.engines import TORCH_BACKENDS
from quantasr.errors import EngineError
from quantasr.export import export_float, save_graph
from quantasr.measure.latency import Timing, ratio, time_calls
from quantasr.pipeline import quantize
from quantasr.runtime import load
from quantasr.sources import CtcModel, load_model
from quantasr.speech.manifest import Utterance
from quantasr.speech.transcript import Waveform

LETTERS = [" ", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
HYPERPARAMS = """
    pretrained_path: random/wav2vec2-base
    tokenizer: !new:speechbrain.dataio.encoder.CTCTextEncoder
    wav2vec2: !new:speechbrain.integrations.huggingface.wav2vec2.Wav2Vec2
        source: !ref <pretrained_path>/wav2vec2
        output_norm: True
        freeze: True
        save_path: wav2vec2_checkpoint
    enc: !new:speechbrain.nnet.containers.Sequential
        input_shape: [null, null, 768]
        linear1: !name:speechbrain.nnet.linear.Linear {n_neurons: 1024, bias: True}
        bn1: !name:speechbrain.nnet.normalization.BatchNorm1d
        activation: !new:torch.nn.LeakyReLU
        drop: !new:torch.nn.Dropout {p: 0.15}
        linear2: !name:speechbrain.nnet.linear.Linear {n_neurons: 1024, bias: True}
        bn2: !name:speechbrain.nnet.normalization.BatchNorm1d
        activation2: !new:torch.nn.LeakyReLU
        drop2: !new:torch.nn.Dropout {p: 0.15}
        linear3: !name:speechbrain.nnet.linear.Linear {n_neurons: 1024, bias: True}
        bn3: !name:speechbrain.nnet.normalization.BatchNorm1d
        activation3: !new:torch.nn.LeakyReLU
    ctc_lin: !new:speechbrain.nnet.linear.Linear {input_size: 1024, n_neurons: 29}
    log_softmax: !new:speechbrain.nnet.activations.Softmax {apply_log: True}
    encoder: !new:speechbrain.nnet.containers.LengthsCapableSequential
        wav2vec2: !ref <wav2vec2>
        enc: !ref <enc>
        ctc_lin: !ref <ctc_lin>
        log_softmax: !ref <log_softmax>
    asr: !new:torch.nn.ModuleList
        - [!ref <enc>, !ref <ctc_lin>]
    modules:
        encoder: !ref <encoder>
    decoding_function: !name:speechbrain.decoders.ctc_greedy_decode {blank_id: 0}
    pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
        loadables:
            wav2vec2: !ref <wav2vec2>
            asr: !ref <asr>
            tokenizer: !ref <tokenizer>
"""


def random_base(folder: Path) -> Path:
    """Save an EncoderASR around Wav2Vec2-base (its real configuration, seeded random weights)."""
    from hyperpyyaml import load_hyperpyyaml
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    Wav2Vec2Model(Wav2Vec2Config()).save_pretrained(folder / "wav2vec2")
    Wav2Vec2FeatureExtractor(return_attention_mask=False, do_normalize=True).save_pretrained(folder / "wav2vec2")
    text = textwrap.dedent(HYPERPARAMS)
    (folder / "hyperparams.yaml").write_text(text, "utf-8")
    loadables = load_hyperpyyaml(text, {"pretrained_path": str(folder)})["pretrainer"].loadables
    encoder = loadables.pop("tokenizer")
    encoder.update_from_iterable(LETTERS, sequence_input=False)
    encoder.insert_blank("<blank>", 0)
    encoder.save(folder / "tokenizer.ckpt")
    for name, part in loadables.items():
        torch.save(part.state_dict(), folder / f"{name}.ckpt")
    return folder


def speechbrain(folder: Path) -> Any:
    """The model as SpeechBrain's users have it."""
    from speechbrain.inference.ASR import EncoderASR
    from speechbrain.utils.fetching import LocalStrategy

    overrides = {"pretrained_path": str(folder)}
    return EncoderASR.from_hparams(str(folder), overrides=overrides, local_strategy=LocalStrategy.NO_LINK)


def torch_dynamic(folder: Path) -> Any:
    """What its users do by hand: PyTorch's dynamic quantization of every linear layer."""
    asr = speechbrain(folder)
    torch.backends.quantized.engine = "x86"
    asr.mods = torch.ao.quantization.quantize_dynamic(asr.mods, {torch.nn.Linear}, dtype=torch.qint8)
    return asr


def natives(folder: Path, utterances: list[Utterance], recipe: str) -> dict[str, Any]:
    """SpeechBrain's own interface in PyTorch's int8, on each backend that this build has."""
    found = {}
    for backend in TORCH_BACKENDS:
        asr = speechbrain(folder)
        try:
            done = quantasr.quantize_in_place(asr, recipe, calibration=utterances, engine=f"torch:{backend}", say=say)
        except EngineError as error:
            say(str(error))
            continue
        say(f"{backend}: {sum('kernel' in row for row in done.layers)} layers in int8, notes {list(done.notes)}")
        found[f"native {recipe}, {backend}"] = asr
    return found


def both_ways(asr: Any, wave: Waveform) -> tuple[Callable[[], object], Callable[[], object]]:
    """The encoder alone, and from the wave to the text, in SpeechBrain's own methods."""
    batch, whole = torch.from_numpy(wave)[None], torch.ones(1)

    def encode() -> object:
        with torch.no_grad():
            return asr.encode_batch(batch, whole)

    return encode, lambda: asr.transcribe_batch(batch, whole)


def measure(arguments: argparse.Namespace, folder: Path) -> list[Figure]:
    """Build everything, time it, and print."""
    source = random_base(folder / "base")
    utterances = calibration_speech(folder, arguments.calibration)
    wave = ten_seconds()
    live = {"PyTorch fp32": speechbrain(source), "torch.ao dynamic int8": torch_dynamic(source)}
    live |= natives(source, utterances, "published")
    encoders, whole = {}, {}
    for label, asr in live.items():
        encoders[label], whole[label] = both_ways(asr, wave)
    model = load_model(source, trust=True)
    assert isinstance(model, CtcModel)
    rewrite, model.rewrite = model.rewrite, None
    save_graph(export_float(model), folder / "float.onnx")
    model.rewrite = rewrite
    inputs = [{"features": model.inputs([u.load(RATE)])[0].numpy()} for u in utterances]
    systems = peer_systems(model, folder / "float.onnx", inputs, folder, arguments.threads)
    for recipe in ("default", "fast"):
        artifact = quantize(source, folder / recipe, calibration=utterances, recipe=recipe, trust=True, say=say)
        say(json.dumps({name: row.get("same_argmax", row) for name, row in artifact.parity.items()}))
        for engine, compute in engines_here():
            label = f"artifact {recipe}, {engine} {compute}"
            systems[label] = load(artifact, engine=engine, compute=compute, threads=arguments.threads, chunk_seconds=0)
    for label, system in systems.items():
        encoders[label] = system.encoder_call(wave)
        whole[label] = lambda system=system: system.transcribe([wave])
    say(f"timing {len(encoders)} systems both ways")
    calls = {("encoder", label): call for label, call in encoders.items()}
    calls |= {("whole", label): call for label, call in whole.items()}
    timings = time_calls(
        {"\t".join(key): call for key, call in calls.items()}, len(wave) / RATE, rounds=arguments.rounds
    )
    by_way: dict[str, dict[str, Timing]] = {"encoder": {}, "whole": {}}
    for key, timing in timings.items():
        way, label = key.split("\t")
        by_way[way][label] = timing
    found = figures(by_way["encoder"], by_way["whole"])
    size = f"Wav2Vec2-base EncoderASR, 10 s, batch 1, {arguments.threads} threads"
    report(f"{size}: encoder alone", by_way["encoder"], [])
    report(f"{size}: wave to text", by_way["whole"], found)
    return found


def figures(encoders: dict[str, Timing], whole: dict[str, Timing]) -> list[Figure]:
    """Every bar."""

    def best(timings: dict[str, Timing], *starts: str) -> tuple[str, Timing]:
        label = min((label for label in timings if label.startswith(starts)), key=lambda label: timings[label].p50)
        return label, timings[label]

    rows = []
    for title, timings, mine, base, bar in (
        ("native published ÷ float, encoder", encoders, "native", "PyTorch fp32", 0.60),
        ("artifact ÷ float, wave to text", whole, "artifact", "PyTorch fp32", 0.20),
        ("artifact ÷ NNCF int8, wave to text", whole, "artifact", "NNCF int8, ", 1.00),
        ("native published ÷ torch.ao dynamic, encoder", encoders, "native", "torch.ao", 1.00),
    ):
        label, timing = best(timings, mine)
        other, against = best(timings, base)
        found = ratio(timing, against)
        rows.append(Figure(title, found.median, bar, note=f"{found} {label} ÷ {other}"))
    return rows


def main() -> None:
    """Build, time, and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--calibration", type=int, default=16, help="utterances")
    options.add_argument("--work", type=Path, help="keep what is built in this new folder")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        measure(arguments, arguments.work or Path(scratch))


if __name__ == "__main__":
    main()
