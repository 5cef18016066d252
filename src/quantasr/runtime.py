"""Run an artifact: graph, engine, frontend, tokenizer and decoder put together, without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from quantasr.artifact import WHOLE, Artifact
from quantasr.engines import TORCH, load_engine
from quantasr.engines.engine import Engine, frame_feed
from quantasr.engines.feeds import TIME, for_part, options_for, shortest_feed
from quantasr.engines.pages import release_pages
from quantasr.engines.selection import fastest
from quantasr.errors import EngineError, RecipeError
from quantasr.speech.attention import AttentionTranscriber
from quantasr.speech.ctc import CtcTranscriber
from quantasr.speech.frontend import noise
from quantasr.speech.lattice.transcriber import LatticeTranscriber
from quantasr.speech.parts import Arrays
from quantasr.speech.steps import StepTranscriber, step_transcriber
from quantasr.speech.transcript import Transcriber, Waveform


class EngineAcousticModel:
    """A graph on an engine, as the acoustic half of a :class:`CtcTranscriber`."""

    def __init__(self, engine: Engine, padded_batches: bool) -> None:
        self.engine = engine
        self.padded_batches = padded_batches

    def __call__(
        self, features: NDArray[np.float32], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        found = self.engine.run(frame_feed(features, lengths))
        logprobs = found["logprobs"].astype(np.float32, copy=False)
        counts = found.get("frame_counts")
        if counts is None:
            counts = np.full(len(logprobs), logprobs.shape[1], dtype=np.int64)
        return logprobs, counts


class ArtifactTranscriber(CtcTranscriber):
    """A CTC artifact on an engine, as a recogniser."""

    def __init__(self, artifact: Artifact, engine: Engine, **options: Any) -> None:
        """``options`` are those of :class:`CtcTranscriber`."""
        defaults: dict[str, Any] = {
            "name": f"{artifact.name} [{engine.name} {engine.compute}]",
            "frame_seconds": artifact.frame_seconds,
            "min_samples": artifact.min_samples,
        }
        assert artifact.tokenizer is not None
        if "decoder" not in options:
            defaults["decoder"] = artifact.own_decoder()
        acoustic = EngineAcousticModel(engine, artifact.padded_batches)
        super().__init__(acoustic, artifact.frontend, artifact.tokenizer, **(defaults | options))
        self.artifact = artifact
        self.engine = engine
        self.engines = {WHOLE: engine}


class LatticeArtifactTranscriber(LatticeTranscriber):
    """An artifact with a decoding graph, on an engine, as a recogniser."""

    def __init__(self, artifact: Artifact, engine: Engine, **options: Any) -> None:
        """``options`` are those of :class:`LatticeTranscriber`."""
        defaults: dict[str, Any] = {
            "name": f"{artifact.name} [{engine.name} {engine.compute}]",
            "frame_seconds": artifact.frame_seconds,
            "min_samples": artifact.min_samples,
            "decoder": artifact.decoding_files(),
        }
        acoustic = EngineAcousticModel(engine, artifact.padded_batches)
        super().__init__(acoustic, artifact.frontend, **(defaults | options))
        self.artifact = artifact
        self.engine = engine
        self.engines = {WHOLE: engine}


class EnginePart:
    """A graph on an engine, as a part of a :class:`StepTranscriber`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __call__(self, feed: Arrays) -> dict[str, NDArray[Any]]:
        return self.engine.run(feed)


class SearchingEngine(Engine, Protocol):
    """A model that finds its text itself, as those with an attention decoder do."""

    def recognise(self, wave: Waveform) -> str:
        """``[time]`` -> text."""
        ...

    def encode(self, wave: Waveform) -> object:
        """Features and encoder alone."""
        ...


class AttentionArtifactTranscriber(AttentionTranscriber):
    """A native artifact with an attention decoder, as a recogniser."""

    def __init__(self, artifact: Artifact, engine: SearchingEngine, **options: Any) -> None:
        """``options`` are those of :class:`AttentionTranscriber`."""
        defaults: dict[str, Any] = {
            "name": f"{artifact.name} [{engine.name} {engine.compute}]",
            "sample_rate": artifact.frontend.sample_rate,
            "min_samples": artifact.min_samples,
        }
        super().__init__(engine.recognise, encode=engine.encode, **(defaults | options))
        self.artifact = artifact
        self.engine = engine
        self.engines = {WHOLE: engine}


Loaded: TypeAlias = ArtifactTranscriber | LatticeArtifactTranscriber | AttentionArtifactTranscriber | StepTranscriber
"""All have an ``artifact`` and ``engines``, by the names of its graphs."""


def artifact_of(system: Transcriber) -> Artifact | None:
    """The artifact that a recogniser was loaded from; None for a model in its own framework."""
    return getattr(system, "artifact", None)


def recogniser(artifact: Artifact, engines: Mapping[str, Engine], **options: Any) -> Loaded:
    """An artifact with each of its graphs on an engine; ``options`` are those of the transcriber for its decoder.

    Raises :class:`quantasr.errors.RecipeError` for a ``grammar`` where there is no decoding graph.
    """
    if "grammar" in options and artifact.decoder != "lattice":
        raise RecipeError(f"{artifact.name}: has no decoding graph: a grammar is for Kaldi and Vosk models")
    if artifact.parts:
        return _steps(artifact, engines, **options)
    (engine,) = engines.values()
    if artifact.decoder == "attention":
        return AttentionArtifactTranscriber(artifact, cast(SearchingEngine, engine), **options)
    if artifact.decoder == "lattice":
        return LatticeArtifactTranscriber(artifact, engine, **options)
    return ArtifactTranscriber(artifact, engine, **options)


def _steps(artifact: Artifact, engines: Mapping[str, Engine], **options: Any) -> StepTranscriber:
    defaults: dict[str, Any] = {
        "name": f"{artifact.name} [{describe_engines(engines)}]",
        "frame_seconds": artifact.frame_seconds,
        "min_samples": artifact.min_samples,
    }
    found = step_transcriber(artifact.decoder)(
        {part: EnginePart(engine) for part, engine in engines.items()},
        artifact.frontend,
        artifact.tokenizer,
        artifact.decoding,
        **(defaults | options),
    )
    found.artifact, found.engines = artifact, engines
    return found


def describe_engines(engines: Mapping[str, Engine]) -> str:
    """``onnxruntime fp32``, or ``encoder openvino bf16, decoder onnxruntime fp32`` where they are not the same."""
    return of_parts({part: f"{engine.name} {engine.compute}" for part, engine in engines.items()})


def of_parts(named: Mapping[str, str]) -> str:
    """``openvino``, or ``encoder openvino, decoder onnxruntime`` where they differ."""
    if len(set(named.values())) == 1:
        return next(iter(named.values()))
    return ", ".join(f"{part} {value}" for part, value in named.items())


def load(
    artifact: str | Path | Artifact,
    *,
    engine: str | Mapping[str, str] | None = None,
    threads: int = 0,
    compute: str | None = None,
    verify: bool = True,
    trust: bool = False,
    **options: Any,
) -> Loaded:
    """Load an artifact folder as a recogniser.

    ``engine`` and ``compute`` default to the recipe's; ``auto`` measures the engines on this machine once and
    remembers the fastest, for each part of its own. ``engine`` may name one for each part: ``{"encoder": "openvino"}``;
    those that it leaves out have the recipe's. ``trust`` allows a folder to run code while it is read, which only
    those do that were made of a SpeechBrain model for PyTorch's own int8. ``options`` are those of
    :class:`CtcTranscriber`, of :class:`AttentionTranscriber`, of :class:`LatticeTranscriber`, or of a
    :class:`StepTranscriber`: ``decoder``, ``chunk_seconds``, ``batch_size``, ``grammar``, ``beam_width``, ``language``
    and so on.

    Raises :class:`quantasr.errors.ArtifactError`, :class:`quantasr.errors.EngineError`, or
    :class:`quantasr.errors.ModelLoadError` where trust is needed.
    """
    if not isinstance(artifact, Artifact):
        artifact = Artifact.load(artifact, verify=verify)
    if isinstance(engine, Mapping) and (strange := sorted(set(engine) - set(artifact.parts))):
        known = f"it has {', '.join(artifact.parts)}" if artifact.parts else "it is one graph: name one engine"
        raise EngineError(f"{artifact.folder}: has no part {strange[0]!r} to be run on {engine[strange[0]]}: {known}")
    if artifact.native:
        assert not isinstance(engine, Mapping)
        native = load_native(artifact, engine, compute, threads, trust=trust)
        return recogniser(artifact, {TORCH: native}, **options)
    wanted = options_for(artifact, threads, compute or artifact.compute)
    engines: dict[str, Engine] = {}
    for part, graph in artifact.graphs.items():
        name = (engine.get(part) if isinstance(engine, Mapping) else engine) or artifact.engine
        if name == "auto":
            engines[part] = fastest(artifact, wanted, part)
        else:
            engines[part] = load_engine(name, graph, for_part(wanted, artifact, part))
        weights = artifact.weights(part)
        if weights is not None or part in artifact.parts:
            _settle(artifact, part, engines[part])
        if weights is not None:
            release_pages(weights)
    return recogniser(artifact, engines, **options)


def load_native(
    artifact: Artifact,
    engine: str | None = None,
    compute: str | None = None,
    threads: int = 0,
    *,
    trust: bool = False,
) -> Engine:
    """A model for PyTorch's own int8, on the backend that it was made for.

    PyTorch and the model's framework are imported here, and only here. Raises :class:`EngineError` when one of them or
    the backend is missing, or another engine is wanted.
    """
    for what, wanted, has in (("engine", engine, artifact.engine), ("compute", compute, artifact.compute)):
        if wanted not in (None, "auto", has) and not (what == "engine" and wanted == TORCH):
            raise EngineError(f"{artifact.folder}: was made for {what} {has}, not {wanted}: quantize the model again")
    try:
        native = import_module("quantasr.engines.torch_native")
        loaded: Engine = native.load(artifact, threads, trust=trust)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "safetensors", "tomli_w"):
            raise
        raise EngineError(
            f"{artifact.folder}: runs in PyTorch, which lacks {error.name}: pip install 'quantasr[quantize]'"
        ) from None
    return loaded


def _settle(artifact: Artifact, part: str, engine: Engine) -> None:
    """Let the engine lay out its weights on the shortest input there is, so that the file's copy can be let go.

    Without this the first recording would need both copies and its own activations at the same time: 396 instead of
    340 MB for wav2vec2-base. And OpenVINO's fused attention, whose first run ever had a single key, is wrong in later
    ones of 16 keys and more: the shortest input of a decoder's step has several.
    """
    row = artifact.parts.get(part, {"inputs": ["features"], "typical": {}})
    if "features" in row["inputs"] and TIME not in row["typical"]:
        engine.run(frame_feed(artifact.frontend(noise(artifact.frontend, artifact.min_samples))[None]))
    else:
        engine.run(shortest_feed(row))
