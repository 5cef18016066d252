"""Speed, memory, size and int8 share of an artifact on every engine, beside the original it was made from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import soundfile

from quantasr.artifact import WHOLE, Artifact
from quantasr.engines import Engine, EngineOptions, load_engine
from quantasr.engines.feeds import for_part, options_for
from quantasr.engines.selection import candidates
from quantasr.errors import ArtifactError
from quantasr.measure.audit import audit
from quantasr.measure.evaluate import evaluate_systems
from quantasr.measure.footprint import Footprint, footprint
from quantasr.measure.latency import Ratio, Timing, ratio, time_calls
from quantasr.measure.split import Clock, ClockedEngine, ClockedFrontend, Share, SplitRun
from quantasr.runtime import describe_engines, load, load_native, recogniser
from quantasr.speech.frontend import Frontend
from quantasr.speech.manifest import Utterance
from quantasr.speech.scoring import Score
from quantasr.speech.transcript import Transcriber, Waveform


@dataclass(frozen=True)
class BenchRow:
    """One system: its times, as a ratio to the first system's, and what it needs.

    ``timing`` is from the wave to the text, ``encoder`` that of the encoder alone on features that are there. Of a
    recogniser in parts ``split`` says where the time went, in the same runs as ``timing``.
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
    split: tuple[Share, ...] = ()

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
            **({"split": {share.stage: share.to_dict() for share in self.split}} if self.split else {}),
        }


@dataclass(frozen=True)
class Original:
    """The model that the artifacts were made from, loaded and running in its own framework.

    ``split`` runs it with its parts timed, if it has parts.
    """

    where: str
    transcriber: Transcriber
    size: int
    split: SplitRun | None = None


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
    splits: list[SplitRun | None] = [original.split] if original else []
    labels = ["original (PyTorch)"] if original else []
    sizes = [original.size] if original else []
    arguments: list[list[str]] = [[original.where]] if original else []
    shares: list[float | None] = [None] if original else []
    for artifact in artifacts:
        for name, chosen, engines in _engines(artifact, options_for(artifact, threads, "auto"), trust):
            system, split = _system(artifact, engines)
            systems.append(system)
            splits.append(split)
            labels.append(" ".join(filter(None, (artifact.name, name, chosen))))
            sizes.append(artifact.size)
            asked = (
                []
                if artifact.native
                else ["--engine", name.partition(" ")[0], *(["--compute", chosen] if chosen else [])]
            )
            arguments.append([str(artifact.folder), *asked])
            seconds = min(10.0, len(wave) / artifact.frontend.sample_rate)
            shares.append(audit(artifact, engines, seconds=seconds).int8_share)
    count = EngineOptions(threads).thread_count
    timings, encoders = _both_ways(systems, splits, wave, rounds, progress)
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
            () if split is None else split.shares(rounds),
        )
        for label, timing, encoder, size, needs, share, wer, split in zip(
            labels, timings, encoders, sizes, prints, shares, rates_of, splits, strict=True
        )
    ]


def _both_ways(
    systems: Sequence[Transcriber],
    splits: Sequence[SplitRun | None],
    wave: Waveform,
    rounds: int,
    progress: bool,
) -> tuple[list[Timing], list[Timing]]:
    """Times from the wave to the text, and of the encoders alone, all in turns of one run."""
    calls: dict[str, Callable[[], object]] = {}
    for i, (system, split) in enumerate(zip(systems, splits, strict=True)):
        calls[f"whole {i}"] = partial(system.transcribe, [wave]) if split is None else partial(split, wave)
        calls[f"encoder {i}"] = system.encoder_call(wave)
    found = time_calls(calls, len(wave) / systems[0].sample_rate, rounds=rounds, progress=progress)
    named = {key: replace(timing, system=systems[int(key.split()[1])].name) for key, timing in found.items()}
    whole, encoders = ([timing for key, timing in named.items() if key.startswith(way)] for way in ("whole", "encoder"))
    return whole, encoders


def _system(artifact: Artifact, engines: Mapping[str, Engine]) -> tuple[Transcriber, SplitRun | None]:
    """An artifact as it is timed, whole; one in parts with a second one whose parts are clocked."""
    if not artifact.parts:
        return recogniser(artifact, engines, chunk_seconds=0), None
    clock = Clock()
    clocked = replace(artifact, frontend=cast(Frontend, ClockedFrontend(artifact.frontend, clock)))
    watched = {part: cast(Engine, ClockedEngine(part, engine, clock)) for part, engine in engines.items()}
    return recogniser(artifact, engines), SplitRun(recogniser(clocked, watched), clock, tuple(engines))


def _engines(
    artifact: Artifact, options: EngineOptions, trust: bool
) -> Iterator[tuple[str, str, Mapping[str, Engine]]]:
    """Every engine and compute type that ``artifact`` runs on; a native one has one of each.

    One in parts has all of them on the same engine, and then each on its fastest, ``auto``, unless that is the same.
    """
    if artifact.native:
        native = load_native(artifact, threads=options.threads, trust=trust)
        yield artifact.engine, artifact.compute, {WHOLE: native}
        return
    for name, chosen in candidates(options):
        graphs = artifact.graphs.items()
        yield (
            name,
            chosen.compute,
            {part: load_engine(name, graph, for_part(chosen, artifact, part)) for part, graph in graphs},
        )
    if artifact.parts:
        best = load(artifact, engine="auto", threads=options.threads).engines
        if len({(engine.name, engine.compute) for engine in best.values()}) > 1:
            yield f"auto ({describe_engines(best)})", "", best


def _footprints(
    arguments: Sequence[list[str]], wave: Waveform, sample_rate: int, threads: int
) -> list[Footprint | None]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.wav"
        soundfile.write(path, np.clip(wave, -1, 1), sample_rate, subtype="PCM_16")
        return [footprint([*some, str(path), "--threads", str(threads)]) for some in arguments]
