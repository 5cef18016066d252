"""Wav2Vec2 at the real size of facebook/wav2vec2-base-960h, random weights: every figure of speed, size and parity.

    python benchmarks/wav2vec2_base.py --threads 2 --rounds 21

Prints a table of all systems, interleaved in one run, and then each figure beside its bar.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import peers
from compare import RATE, Figure, calibration_speech, engines_here, on_engine, report, size_of, ten_seconds

from quantasr.artifact import WHOLE, Artifact
from quantasr.cli.output import say
from quantasr.engines import EngineOptions, load_engine
from quantasr.export import export_float, save_graph
from quantasr.measure.audit import audit
from quantasr.measure.footprint import footprint
from quantasr.measure.latency import Timing, ratio, time_interleaved
from quantasr.measure.original import load_original
from quantasr.pipeline import quantize
from quantasr.runtime import ArtifactTranscriber
from quantasr.sources import CtcModel, load_model
from quantasr.speech.manifest import Utterance
from quantasr.speech.transcript import Transcriber, Waveform


def random_base(folder: Path) -> Path:
    """Save Wav2Vec2-base (its real configuration, seeded random weights) with base-960h's processor."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(letters)}))
    Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=len(letters))).save_pretrained(folder)
    Wav2Vec2CTCTokenizer(folder / "vocab.json").save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=False, do_normalize=True).save_pretrained(folder)
    return folder


def build(folder: Path, utterances: list[Utterance]) -> tuple[CtcModel, dict[str, Path], dict[str, Artifact]]:
    """The float graph, the peers' graphs, and our artifacts."""
    source = random_base(folder / "base")
    model = load_model(source)
    graphs = {"float": folder / "float.onnx", "our float": folder / "our-float.onnx"}
    # The peers get what their users have: the model as its framework computes it.
    rewrite, model.rewrite = model.rewrite, None
    save_graph(export_float(model), graphs["float"])
    model.rewrite = rewrite
    save_graph(export_float(model), graphs["our float"])
    features = [{"features": model.inputs([u.load(RATE)])[0].numpy()} for u in utterances]
    say("NNCF int8")
    graphs["NNCF int8"] = peers.nncf_int8(graphs["float"], features, folder / "nncf.xml")
    graphs["NNCF int8 of our float graph"] = peers.nncf_int8(graphs["our float"], features, folder / "nncf-ours.xml")
    say("ONNX Runtime dynamic and static int8")
    graphs["ORT dynamic int8"] = peers.onnxruntime_dynamic(graphs["float"], folder / "dynamic.onnx")
    graphs["ORT static int8"] = peers.onnxruntime_static(graphs["float"], features[:4], folder / "static.onnx")
    artifacts = {
        recipe: quantize(str(source), folder / recipe, calibration=utterances, recipe=recipe, say=say)
        for recipe in ("default", "fast", "fastest")
    }
    return load_model(source), graphs, artifacts


def systems_of(
    model: CtcModel, graphs: dict[str, Path], artifacts: dict[str, Artifact], threads: int
) -> dict[str, Transcriber]:
    """Everything that is timed."""
    original = load_original(str(Path(model.provenance["model"])), threads)
    found: dict[str, Transcriber] = {"PyTorch fp32": original.transcriber}
    for label, graph, engine, compute in (
        ("ORT fp32", graphs["float"], "onnxruntime", "fp32"),
        ("OpenVINO fp32", graphs["float"], "openvino", "fp32"),
        ("OpenVINO bf16", graphs["float"], "openvino", "bf16"),
        ("our float graph, OpenVINO fp32", graphs["our float"], "openvino", "fp32"),
        ("our float graph, OpenVINO bf16", graphs["our float"], "openvino", "bf16"),
        ("NNCF int8 of our float graph, OpenVINO fp32", graphs["NNCF int8 of our float graph"], "openvino", "fp32"),
        ("NNCF int8 of our float graph, OpenVINO bf16", graphs["NNCF int8 of our float graph"], "openvino", "bf16"),
        ("NNCF int8, OpenVINO fp32", graphs["NNCF int8"], "openvino", "fp32"),
        ("NNCF int8, OpenVINO bf16", graphs["NNCF int8"], "openvino", "bf16"),
        ("ORT dynamic int8", graphs["ORT dynamic int8"], "onnxruntime", "fp32"),
        ("ORT static int8", graphs["ORT static int8"], "onnxruntime", "fp32"),
    ):
        if (engine, compute) in engines_here():
            found[label] = on_engine(model, graph, engine, compute, threads, label)
    for recipe, artifact in artifacts.items():
        for engine, compute in engines_here():
            loaded = load_engine(engine, artifact.graph, EngineOptions(threads, compute))
            found[f"{recipe}, {engine} {compute}"] = ArtifactTranscriber(artifact, loaded, chunk_seconds=0)
    return found


def figures(
    timings: dict[str, Timing], graphs: dict[str, Path], artifacts: dict[str, Artifact], threads: int, wave: Waveform
) -> list[Figure]:
    """Every bar."""
    import soundfile

    best = min((t for name, t in timings.items() if name.startswith(("default", "fast"))), key=lambda t: t.p50)
    label = next(name for name, timing in timings.items() if timing is best)
    floats = ("ORT fp32", "OpenVINO fp32", "our float graph, OpenVINO fp32")
    best_float = min((timings[name] for name in floats), key=lambda t: t.p50)
    nncf = min((t for name, t in timings.items() if name.startswith("NNCF int8, ")), key=lambda t: t.p50)
    rows = []
    for name, base, bar in (
        ("best artifact ÷ PyTorch fp32, time", timings["PyTorch fp32"], 0.20),
        ("best artifact ÷ best float engine, time", best_float, 0.40),
        ("best artifact ÷ NNCF int8, time", nncf, 1.00),
        ("best artifact ÷ OpenVINO bf16, time", timings.get("OpenVINO bf16"), 1.00),
    ):
        if base is None:  # this CPU has no bf16
            continue
        found = ratio(best, base)
        rows.append(Figure(name, found.median, bar, note=f"{found} {label}"))
    fast = artifacts["fast"]
    rows.append(Figure("artifact ÷ float export, size (fast)", fast.size / size_of(graphs["our float"]), 0.27))
    with tempfile.TemporaryDirectory() as folder:
        audio = str(Path(folder) / "speech.wav")
        soundfile.write(audio, wave, RATE, subtype="PCM_16")
        engine, compute = label.split(", ")[1].split()
        common = [audio, "--threads", str(threads)]
        artifact = artifacts[label.split(",")[0]]
        ours = footprint([str(artifact.folder), *common, "--engine", engine, "--compute", compute])
        theirs = footprint([str(artifact.provenance["model"]), *common])
        rows.append(
            Figure(
                "peak memory, artifact ÷ PyTorch fp32",
                ours.peak_bytes / theirs.peak_bytes,
                0.40,
                note=f"{ours.peak_bytes / 1e6:.0f} of {theirs.peak_bytes / 1e6:.0f} MB",
            )
        )
    for recipe, artifact in artifacts.items():
        parity = artifact.parity
        if recipe == "default":
            rows.append(Figure("float graph − original, log-probs", parity["float"]["largest_difference"], 1e-3))
        for engine in ("onnxruntime", "openvino"):
            same = parity[f"quantized_{engine}"]["same_argmax"]
            rows.append(Figure(f"{recipe}: graph and simulation agree, {engine}", same, 0.995, at_most=False))
    for engine, compute in engines_here():
        share = audit(fast, {WHOLE: load_engine(engine, fast.graph, EngineOptions(threads, compute))}).int8_share
        rows.append(Figure(f"fast: multiply-accumulates in int8, {engine} {compute}", share, 0.85, at_most=False))
    return rows


def main() -> None:
    """Build, time, and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=21)
    options.add_argument("--calibration", type=int, default=16, help="utterances")
    options.add_argument("--work", type=Path, help="keep what is built in this new folder")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.work or Path(scratch)
        model, graphs, artifacts = build(folder, calibration_speech(folder, arguments.calibration))
        wave = ten_seconds()
        systems = systems_of(model, graphs, artifacts, arguments.threads)
        say(f"timing {len(systems)} systems")
        found = time_interleaved(list(systems.values()), wave, rounds=arguments.rounds)
        timings = dict(zip(systems, found, strict=True))
        systems.clear()
        title = f"Wav2Vec2-base, 10 s, batch 1, {arguments.threads} threads"
        report(title, timings, figures(timings, graphs, artifacts, arguments.threads, wave))


if __name__ == "__main__":
    main()
