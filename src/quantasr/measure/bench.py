"""Speed, memory, size and int8 share of an artifact on every engine, beside the original it was made from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from quantasr.artifact import WHOLE, Artifact
from quantasr.engines import Engine, EngineOptions, load_engine
from quantasr.engines.selection import candidates
from quantasr.errors import ArtifactError
from quantasr.measure.audit import audit
from quantasr.measure.evaluate import evaluate_systems
from quantasr.measure.footprint import Footprint, footprint
from quantasr.measure.latency import Ratio, Timing, ratio, time_calls
from quantasr.runtime import load_native, recogniser
from quantasr.speech.manifest import Utterance
from quantasr.speech.scoring import Score
from quantasr.speech.transcript import Transcriber, Waveform


@dataclass(frozen=True)
class BenchRow:
    """One system: its times, as a ratio to the first system's, and what it needs.

    ``timing`` is from the wave to the text, ``encoder`` that of the encoder alone on features that are there.
    """

    label: str
    timing: Timing
    ratio: Ratio
    encoder: Timing
    encoder_ratio: Ratio
    size: int
    threads: int
    footprint: Footprint | None = None
    int8_share: float | None = None
    wer: Score | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "label": self.label,
            "threads": self.threads,
            **self.timing.to_dict(),
            "ratio_to_first": self.ratio.to_dict(),
            "encoder": {**self.encoder.to_dict(), "ratio_to_first": self.encoder_ratio.to_dict()},
            "size_bytes": self.size,
            "footprint": None if self.footprint is None else self.footprint.to_dict(),
            "int8_share": self.int8_share,
            "wer": None if self.wer is None else self.wer.to_dict(),
        }


@dataclass(frozen=True)
class Original:
    """The model that the artifacts were made from, loaded and running in its own framework."""

    where: str
    transcriber: Transcriber
    size: int


def bench(
    artifacts: Sequence[Artifact],
    wave: Waveform,
    *,
    original: Original | None = None,
    threads: int = 0,
    rounds: int = 15,
    memory: bool = True,
    utterances: Sequence[Utterance] = (),
    trust: bool = False,
    progress: bool = False,
) -> list[BenchRow]:
    """Time ``wave`` (mono, at the models' rate) on the original and on every engine and compute type, interleaved.

    ``memory`` starts one more process for each system to see its peak memory and load time; ``utterances`` with texts,
    if any, give each system's word error rate. ``trust`` lets folders run code while they are read. Raises
    :class:`ArtifactError` when the models' sample rates differ, and :class:`EngineError` when an engine fails.
    """
    rates = {artifact.name: artifact.frontend.sample_rate for artifact in artifacts}
    rates |= {original.transcriber.name: original.transcriber.sample_rate} if original else {}
    if len(set(rates.values())) > 1:
        found = ", ".join(f"{name} {rate} Hz" for name, rate in rates.items())
        raise ArtifactError(f"models of different sample rates cannot be timed on one recording: {found}")
    systems: list[Transcriber] = [original.transcriber] if original else []
    labels = ["original (PyTorch)"] if original else []
    sizes = [original.size] if original else []
    arguments: list[list[str]] = [[original.where]] if original else []
    shares: list[float | None] = [None] if original else []
    for artifact in artifacts:
        options = EngineOptions(threads, round_up=artifact.round_up)
        for name, chosen, engine in _engines(artifact, options, trust):
            systems.append(recogniser(artifact, {WHOLE: engine}, chunk_seconds=0))
            labels.append(f"{artifact.name} {name} {chosen}")
            sizes.append(artifact.size)
            asked = [] if artifact.native else ["--engine", name, "--compute", chosen]
            arguments.append([str(artifact.folder), *asked])
            shares.append(
                audit(artifact, engine, seconds=min(10.0, len(wave) / artifact.frontend.sample_rate)).int8_share
            )
    count = EngineOptions(threads).thread_count
    timings, encoders = _both_ways(systems, wave, rounds, progress)
    prints: list[Footprint | None] = [None] * len(systems)
    if memory:
        trusting = ["--trust"] if trust else []
        prints = _footprints([[*some, *trusting] for some in arguments], wave, systems[0].sample_rate, count)
    rates_of: list[Score | None] = [None] * len(systems)
    if utterances:
        rates_of = [result.wer for result in evaluate_systems(systems, utterances, progress=progress).results]
    return [
        BenchRow(
            label,
            timing,
            ratio(timing, timings[0]),
            encoder,
            ratio(encoder, encoders[0]),
            size,
            count,
            needs,
            share,
            wer,
        )
        for label, timing, encoder, size, needs, share, wer in zip(
            labels, timings, encoders, sizes, prints, shares, rates_of, strict=True
        )
    ]


def _both_ways(
    systems: Sequence[Transcriber], wave: Waveform, rounds: int, progress: bool
) -> tuple[list[Timing], list[Timing]]:
    """Times from the wave to the text, and of the encoders alone, all in turns of one run."""
    calls: dict[str, Callable[[], object]] = {}
    for i, system in enumerate(systems):
        calls[f"whole {i}"] = partial(system.transcribe, [wave])
        calls[f"encoder {i}"] = system.encoder_call(wave)
    found = time_calls(calls, len(wave) / systems[0].sample_rate, rounds=rounds, progress=progress)
    named = {key: replace(timing, system=systems[int(key.split()[1])].name) for key, timing in found.items()}
    whole, encoders = ([timing for key, timing in named.items() if key.startswith(way)] for way in ("whole", "encoder"))
    return whole, encoders


def _engines(artifact: Artifact, options: EngineOptions, trust: bool) -> Iterator[tuple[str, str, Engine]]:
    """Every engine and compute type that ``artifact`` runs on; a native one has one of each."""
    if artifact.native:
        yield artifact.engine, artifact.compute, load_native(artifact, threads=options.threads, trust=trust)
        return
    for name, chosen in candidates(options):
        yield name, chosen.compute, load_engine(name, artifact.graph, chosen)


def _footprints(
    arguments: Sequence[list[str]], wave: Waveform, sample_rate: int, threads: int
) -> list[Footprint | None]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.wav"
        soundfile.write(path, np.clip(wave, -1, 1), sample_rate, subtype="PCM_16")
        return [footprint([*some, str(path), "--threads", str(threads)]) for some in arguments]
