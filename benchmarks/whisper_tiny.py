"""Whisper tiny.en: our artifacts beside Hugging Face fp32, faster-whisper (CTranslate2) and NNCF, in one run.

Whole pipelines on LJSpeech, from the wave to the text, in turns; word error rates on LJSpeech and speechocean762 with
paired intervals; the encoder alone; peak memory of processes of their own.

    python benchmarks/whisper_tiny.py [--work FOLDER] [--recipes default fast w4] [--rounds 5]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from peers import nncf_int8
from whisper_search import unspoken

import quantasr
from quantasr.artifact import Artifact, graph_name
from quantasr.export import export_float, save_graph
from quantasr.measure.evaluate import Evaluation, evaluate_systems
from quantasr.measure.footprint import footprint
from quantasr.measure.latency import Timing, ratio, time_calls
from quantasr.speech.manifest import read_manifest
from quantasr.speech.transcript import Transcript, Waveform

SHARED = Path(os.environ.get("QUANTASR_SHARED", Path(__file__).parents[2] / "shared"))
MODEL = SHARED / "models" / "whisper-tiny.en"
LJSPEECH = SHARED / "data" / "ljspeech" / "eval.jsonl"
SPEECHOCEAN = SHARED / "data" / "speechocean762" / "test.jsonl"
CALIBRATION = SHARED / "data" / "speechocean762" / "train.jsonl"

LAST_NORM = "LayerNormalization"
FIGURES = ["time", "wer", "encoder", "memory", "quiet"]

# A process that transcribes one file, and what it says last is its peak memory.
_HF = """
import sys, torch, soundfile
from transformers import AutoProcessor, WhisperForConditionalGeneration
torch.set_num_threads(int(sys.argv[3]))
model = WhisperForConditionalGeneration.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
processor = AutoProcessor.from_pretrained(sys.argv[1])
wave, rate = soundfile.read(sys.argv[2], dtype="float32")
features = processor(wave, sampling_rate=rate, return_tensors="pt").input_features
with torch.inference_mode():
    model.generate(features)
"""
_FASTER = """
import sys, soundfile
from faster_whisper import WhisperModel
model = WhisperModel(sys.argv[1], device="cpu", compute_type="int8", cpu_threads=int(sys.argv[3]))
wave, rate = soundfile.read(sys.argv[2], dtype="float32")
list(model.transcribe(wave, language="en", beam_size=1)[0])
"""
_PEAK = "\nfrom quantasr.measure.footprint import peak_memory\nprint(peak_memory())\n"


class Peer:
    """Another package as a recogniser."""

    sample_rate = 16000

    def __init__(self, name: str) -> None:
        self.name = name

    def text(self, wave: Waveform) -> str:
        """``[time]`` -> text."""
        raise NotImplementedError

    def transcribe(self, waves: Sequence[Waveform]) -> list[Transcript]:
        """See :class:`quantasr.speech.transcript.Transcriber`."""
        return [Transcript(self.text(wave), len(wave) / self.sample_rate) for wave in waves]

    def transcribe_stream(self, blocks: Iterable[Waveform]) -> Transcript:
        """See :class:`quantasr.speech.transcript.Transcriber`."""
        raise NotImplementedError

    def transcribe_file(self, path: str | Path, *, start: float = 0.0, duration: float | None = None) -> Transcript:
        """See :class:`quantasr.speech.transcript.Transcriber`."""
        raise NotImplementedError

    def encoder_call(self, wave: Waveform) -> Any:
        """See :class:`quantasr.speech.transcript.Transcriber`."""
        raise NotImplementedError


class HuggingFace(Peer):
    """Transformers' own ``generate``, float32, greedy."""

    def __init__(self, where: Path) -> None:
        import torch
        from transformers import AutoProcessor, WhisperForConditionalGeneration

        super().__init__("Hugging Face fp32")
        self._model = WhisperForConditionalGeneration.from_pretrained(where, dtype=torch.float32).eval()
        self._processor = AutoProcessor.from_pretrained(where)

    def text(self, wave: Waveform) -> str:
        import torch

        given = self._processor(wave, sampling_rate=16000, return_tensors="pt", return_attention_mask=True)
        with torch.inference_mode():
            ids = self._model.generate(given.input_features, attention_mask=given.attention_mask)
        return str(self._processor.batch_decode(ids, skip_special_tokens=True)[0]).strip()


class FasterWhisper(Peer):
    """CTranslate2's Whisper, greedy, without previous text or times: the least that it does."""

    def __init__(self, where: Path, compute: str, threads: int) -> None:
        from faster_whisper import WhisperModel

        super().__init__(f"faster-whisper {compute}")
        self._model = WhisperModel(str(where), device="cpu", compute_type=compute, cpu_threads=threads)

    def text(self, wave: Waveform) -> str:
        segments, _ = self._model.transcribe(
            wave, language="en", beam_size=1, without_timestamps=True, condition_on_previous_text=False
        )
        return "".join(segment.text for segment in segments).strip()


def convert(folder: Path, compute: str) -> Path:
    """The model in CTranslate2's format."""
    from ctranslate2.converters import TransformersConverter

    target = folder / f"ctranslate2-{compute}"
    if not target.exists():
        files = ["tokenizer.json", "preprocessor_config.json"]
        TransformersConverter(str(MODEL), copy_files=files).convert(str(target), quantization=compute)
    return target


def artifacts(folder: Path, recipes: Sequence[str]) -> dict[str, Artifact]:
    """One artifact a recipe, calibrated on speech that nothing here is scored on."""
    found = {}
    for recipe in recipes:
        target = folder / f"artifact-{recipe}"
        if not target.exists():
            quantasr.quantize(MODEL, target, calibration=CALIBRATION, recipe=recipe, limit=64, say=print)
        found[recipe] = Artifact.load(target)
    return found


def float_encoders(folder: Path) -> dict[str, Path]:
    """Hugging Face's own encoder of 30 s, and the encoder as we export it, with the decoder's keys and values."""
    import torch

    ours, plain = folder / "float" / graph_name("encoder"), folder / "float" / "plain.onnx"
    ours.parent.mkdir(exist_ok=True)
    model = quantasr.load_model(MODEL)
    if not plain.exists():
        features = torch.zeros(1, 80, 3000)
        named = {"input_names": ["features"], "output_names": ["encoded"]}
        torch.onnx.export(model.module.model.encoder, (features,), str(plain), dynamo=False, opset_version=17, **named)
    if not ours.exists():
        model.make_exportable()
        save_graph(export_float(model, model.parts()["encoder"]), ours)
    return {"encoder": plain, "encoder, keys, values": ours}


def encoder_only(artifact: Artifact, target: Path) -> Path:
    """The artifact's encoder up to its last norm: what the bare encoder computes."""
    import onnx

    graph = artifact.graphs["encoder"]
    norms = [node for node in onnx.load(graph, load_external_data=False).graph.node if node.op_type == LAST_NORM]
    onnx.utils.extract_model(str(graph), str(target), ["features"], [norms[-1].output[0]], check_model=False)
    return target


def time_encoders(folder: Path, made: dict[str, Artifact], threads: int, rounds: int) -> None:
    """Ours and NNCF's int8, on OpenVINO in its default precision, 30 s: the bare encoder, and with keys and values."""
    import openvino as ov

    frontend = next(iter(made.values())).frontend
    waves = [utterance.load(frontend.sample_rate) for utterance in read_manifest(CALIBRATION)[:32]]
    features = [frontend(wave)[None] for wave in waves]
    core = ov.Core()
    precision = "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": precision,
    }
    graphs: dict[str, dict[str, Path]] = {}
    for label, graph in float_encoders(folder).items():
        target = folder / f"nncf-{graph.stem}.xml"
        if not target.exists():
            import nncf

            turned = label == "encoder"
            rows = [{"features": np.ascontiguousarray(row.transpose(0, 2, 1)) if turned else row} for row in features]
            nncf_int8(graph, rows, target, model_type=nncf.ModelType.TRANSFORMER)
        graphs[label] = {"NNCF": target}
    for recipe, artifact in made.items():
        graphs["encoder"][recipe] = encoder_only(artifact, folder / f"bare-{recipe}.onnx")
        graphs["encoder, keys, values"][recipe] = artifact.graphs["encoder"]
    calls: dict[str, Any] = {}
    for label, found in graphs.items():
        for name, graph in found.items():
            model = core.read_model(graph)
            turned = name == "NNCF" and label == "encoder"
            row = np.ascontiguousarray(features[0].transpose(0, 2, 1)) if turned else features[0]
            model.reshape({"features": list(row.shape)})
            request = core.compile_model(model, "CPU", options).create_infer_request()
            calls[f"{label}: {name}"] = partial(request.infer, {"features": row}, share_inputs=True, share_outputs=True)
    timings = time_calls(calls, 30.0, rounds=rounds)
    print(f"\nencoder, 30 s, OpenVINO {precision}, {threads} threads")
    for name, timing in timings.items():
        base = timings[f"{name.partition(':')[0]}: NNCF"]
        bare = timings["encoder: NNCF"]
        print(
            f"  {name:35s} {timing.p50 * 1e3:7.1f} ms   ÷ NNCF {ratio(timing, base)}   "
            f"÷ NNCF's bare encoder {ratio(timing, bare)}"
        )


def score(name: str, found: Evaluation) -> None:
    """Word error rates, and each system's difference from the first with its paired interval."""
    print(f"\n{name}")
    pairs = [None, *found.against_first()]
    for result, pair in zip(found.results, pairs, strict=True):
        beside = ""
        if pair is not None:
            low, high = (100 * end for end in pair.interval)
            beside = f"   − first {100 * pair.difference:+.2f} [{low:+.2f}, {high:+.2f}]"
        print(f"  {result.system[:70]:70s} WER {result.wer}   RTF {result.rtf:.4f}{beside}")


def peak(code: str, *arguments: str) -> int:
    """Bytes of a process that runs ``code``."""
    done = subprocess.run([sys.executable, "-c", code + _PEAK, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def memory(folder: Path, made: dict[str, Artifact], threads: int) -> None:
    """Peak memory of a process that transcribes one recording."""
    wave, count = str(folder / "speech.wav"), str(threads)
    soundfile.write(wave, read_manifest(LJSPEECH)[0].load(16000), 16000)
    original = peak(_HF, str(MODEL), wave, count)
    rows = {"Hugging Face fp32": original}
    rows["faster-whisper int8"] = peak(_FASTER, str(convert(folder, "int8")), wave, count)
    for recipe, artifact in made.items():
        rows[recipe] = footprint([str(artifact.folder), wave, "--threads", count]).peak_bytes
    print("\npeak memory")
    for name, value in rows.items():
        print(f"  {name:25s} {value / 1e6:7.0f} MB   ÷ Hugging Face {value / original:.3f}")


def quiet(systems: Sequence[Any], minutes: float) -> None:
    """Words that each system invents where nobody speaks, with its gates."""
    print(f"\n{minutes:g} minutes each of what is no speech: words invented")
    for name, wave in unspoken(round(minutes * 60 * 16000)):
        found = {system.name: len(system.transcribe([wave])[0].text.split()) for system in systems}
        print(f"  {name:25s} {', '.join(f'{system[:32]}: {words}' for system, words in found.items())}", flush=True)


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="keep artifacts and converted models here, and use those there")
    parser.add_argument("--recipes", nargs="+", default=["default"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=10.0, help="of silence, of noise and so on")
    parser.add_argument("--limit", type=int, help="the first utterances of each set only")
    parser.add_argument("--only", nargs="+", choices=FIGURES)
    arguments = parser.parse_args()
    if not MODEL.is_dir():
        sys.exit(
            f"{MODEL}: missing: this benchmark needs the real model; set QUANTASR_SHARED to the folder that has it"
        )
    import torch

    torch.set_num_threads(arguments.threads)
    only = arguments.only or FIGURES
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        made = artifacts(work, arguments.recipes)
        ours = [quantasr.load(artifact, threads=arguments.threads) for artifact in made.values()]
        faster = [FasterWhisper(convert(work, kind), kind, arguments.threads) for kind in ("int8", "float32")]
        systems = [HuggingFace(MODEL), *faster, *ours]
        if "time" in only:
            rounds = [
                evaluate_systems(systems, LJSPEECH, normalizer="english", limit=arguments.limit)
                for _ in range(arguments.rounds)
            ]
            score(f"LJSpeech, {arguments.threads} threads", rounds[0])
            timings = {
                system.name: Timing(
                    system.name, rounds[0].results[i].audio_seconds, tuple(one.results[i].seconds for one in rounds)
                )
                for i, system in enumerate(systems)
            }
            base = timings["faster-whisper int8"]
            for name, timing in timings.items():
                print(f"  {name[:70]:70s} RTF {timing.rtf:.4f}   ÷ faster-whisper int8 {ratio(timing, base)}")
        if "wer" in only:
            judged = [quantasr.load_model(MODEL).transcriber(name="float, PyTorch"), *ours, *faster]
            for name, manifest in (("LJSpeech", LJSPEECH), ("speechocean762 test", SPEECHOCEAN)):
                score(name, evaluate_systems(judged, manifest, normalizer="english", limit=arguments.limit))
        if "quiet" in only:
            quiet([quantasr.load_model(MODEL).transcriber(name="float, PyTorch"), *ours], arguments.minutes)
        if "encoder" in only:
            time_encoders(work, made, arguments.threads, 4 * arguments.rounds)
        if "memory" in only:
            memory(work, made, arguments.threads)


if __name__ == "__main__":
    main()
