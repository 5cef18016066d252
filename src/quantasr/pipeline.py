"""The whole way in one verb: model, recipe and calibration speech in, checked artifact out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantasr.artifact import WHOLE, Artifact, graph_name
from quantasr.artifact_parts import Waves, describe, write_parts
from quantasr.atomic import check_target, create
from quantasr.engines import ENGINES, TORCH, EngineOptions, load_engine
from quantasr.errors import ArtifactError, CalibrationError, EngineError
from quantasr.export import export_float, export_quantized, save_graph
from quantasr.measure.agreement import Agreement, agreement
from quantasr.measure.gain import gain
from quantasr.numerics.quantizers import Phase
from quantasr.pipeline_native import NativeOptions, quantize_native
from quantasr.quantize import Prepared, calibrate, convert, prepare
from quantasr.quantize.prepare import check_fits
from quantasr.recipes import Recipe, builtin_names, builtin_recipe
from quantasr.runtime import EngineAcousticModel, EnginePart
from quantasr.sources import AsrModel, FrameModel, load_model
from quantasr.sources.asr_model import Paths
from quantasr.sources.parts_model import PartsModel, TorchPart
from quantasr.speech.manifest import Utterance, check_disjoint, read_manifest
from quantasr.speech.transcript import Waveform

FLOAT_TOLERANCE = 1e-3
"""Largest difference of log-probs allowed between the original and its float graph."""

MIN_AGREEMENT = 0.9
"""Share of frames whose best token must be the same in the simulation and in the exported graph.

Two correct executions of a deep int8 network differ where a value falls between two integers, so this is a guard
against a wrong graph; the figure itself is recorded in the artifact.
"""

_PARITY_UTTERANCES = 4
_PARITY_SECONDS = 20.0  # of each at most: they are run whole

Manifest = str | Path | Sequence[Utterance]


def quantize(
    model: AsrModel | str | Path,
    output: str | Path,
    *,
    calibration: Manifest,
    recipe: Recipe | str | Path = "default",
    engine: str | None = None,
    compute: str | None = None,
    all_layers: bool = False,
    evaluation: Manifest | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    trust: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Artifact:
    """Quantize a recogniser and write it as an artifact folder.

    ``recipe`` is a :class:`Recipe`, a TOML file, or the name of a built-in variant (``default``, ``fast``).
    ``calibration`` is a manifest (any format that :func:`read_manifest` knows) or utterances, of which the first
    ``limit`` are used; ``evaluation``, when given, must not share an utterance with it. The ``model`` is changed in
    place. ``engine`` (``torch``, or ``torch:`` and a backend) makes a model for PyTorch's own int8 instead of a graph;
    ``compute`` is then the type of its float rest (fp32, bf16, fp16), and ``all_layers`` keeps those in int8 that lose
    time by it. ``trust`` allows what can run code: pickled weights, commands in a manifest. Nothing is kept unless the
    float graph agrees with the original, and the quantized graph, on every engine that takes it, with its simulation.
    ``say`` is told each step.

    Raises the errors of each step: see :mod:`quantasr.errors`.
    """
    output = Path(output)
    if engine is None and (compute is not None or all_layers):
        raise EngineError("compute and all_layers are for PyTorch's own int8: name its engine too (--engine torch)")
    native = None if engine is None else NativeOptions.of(engine, compute, timing=not all_layers)
    check_target(output, overwrite=overwrite)
    utterances = utterances_of(calibration, trust=trust)[:limit]
    if not utterances:
        raise CalibrationError("no calibration utterances: static scales need some speech")
    if evaluation is not None:
        check_disjoint(utterances, utterances_of(evaluation, trust=trust))
    if not isinstance(model, AsrModel):
        say(f"loading {model}")
        model = load_model(model, trust=trust)
    chosen = find_recipe(recipe, model.family)
    check_fits(model, chosen)
    if native is not None:
        if isinstance(model, PartsModel) and model.decoder != "attention":
            raise EngineError(
                f"{model.name}: its decoder ({model.decoder}) runs over graphs only: leave --engine {engine} out"
            )
        speech = [u.load(model.sample_rate) for u in utterances[:_PARITY_UTTERANCES]]
        return quantize_native(
            model, output, utterances, speech, chosen, native, overwrite=overwrite, progress=progress, say=say
        )

    if not isinstance(model, FrameModel | PartsModel):
        raise EngineError(
            f"{model.name}: its decoder ({model.decoder}) runs in its own framework only: "
            f"quantize it with --engine {TORCH}"
        )
    with tempfile.TemporaryDirectory() as scratch:
        original = Original.of(model, utterances, Path(scratch), say)
        prepared = prepare(model, chosen)
        say(f"calibrating on {len(utterances)} utterances")
        waves = Waves(utterances, model.sample_rate)
        calibrate(prepared, waves, progress=progress)
        convert(prepared)
        return write_artifact(prepared, original, output, utterances, sum(waves.seconds), overwrite=overwrite, say=say)


@dataclass(frozen=True)
class Original:
    """What the float original gives, which others are compared with.

    Its graphs lie in ``folder``; ``logprobs`` are those of some ``speech``, along its own ``paths``.
    """

    folder: Path
    speech: list[Waveform]
    paths: Paths
    logprobs: list[NDArray[np.float32]]
    parity: dict[str, Any]

    @classmethod
    def of(
        cls, model: AsrModel, utterances: Sequence[Utterance], scratch: Path, say: Callable[[str], None]
    ) -> Original:
        """Export ``model`` into ``scratch``; :class:`ArtifactError` if the graphs differ from it."""
        say(f"exporting the float graph of {model.name}")
        longest = round(_PARITY_SECONDS * model.sample_rate)
        speech = [u.load(model.sample_rate)[:longest] for u in utterances[:_PARITY_UTTERANCES]]
        paths = model.paths(speech)
        logprobs = model.logprobs(speech, paths)
        model.make_exportable()
        for name, part in graphs_of(model).items():
            save_graph(export_float(model, part), scratch / graph_name(name))
        found = cls(scratch, speech, paths, logprobs, {})
        found.parity["float"] = _check_float(model, found).to_dict()
        return found


def write_artifact(
    prepared: Prepared,
    original: Original,
    output: Path,
    utterances: Sequence[Utterance],
    seconds: float,
    *,
    heard: Sequence[Utterance] = (),
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Artifact:
    """Export a converted model and keep it, if on every engine it does what its simulation does.

    ``utterances`` of ``seconds`` in all are what it was calibrated on, ``heard`` what else it must not be measured on;
    ``provenance`` is added to the artifact's. Raises :class:`ArtifactError` and :class:`EngineError`.
    """
    model = prepared.model
    parity = dict(original.parity)

    def fill(folder: Path) -> None:
        say("exporting the quantized graph")
        for name, part in graphs_of(model).items():
            save_graph(export_quantized(prepared, part), folder / graph_name(name))
        say("comparing the graph with its simulation")
        parity.update(_check_quantized(model, prepared, folder, original))
        write_parts(folder, prepared, [row.to_dict() for row in prepared.plan], [*utterances, *heard])
        described = describe(prepared, folder, parity, len(utterances), seconds)
        say("timing the graph against float")
        graph_bytes, float_bytes = _graph_bytes(folder), _graph_bytes(original.folder)
        sizes = {"graph_bytes": graph_bytes, "float_graph_bytes": float_bytes, "ratio": graph_bytes / float_bytes}
        measured = {**sizes, **gain(described, original.folder).to_dict()}
        replace(described, provenance=described.provenance | dict(provenance or {}), measured=measured).write_manifest()

    create(output, fill, overwrite=overwrite)
    return Artifact.load(output)


def find_recipe(recipe: Recipe | str | Path, family: str) -> Recipe:
    """A recipe from itself, a TOML file, a built-in's full name, or a variant's name for ``family``."""
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Path) or str(recipe).endswith(".toml"):
        return Recipe.load(recipe)
    if recipe in builtin_names():
        return builtin_recipe(*recipe.rsplit("-", 1))
    return builtin_recipe(family, recipe)


def utterances_of(manifest: Manifest, *, trust: bool = False) -> list[Utterance]:
    """Utterances from a manifest's path, or as they are; ``trust`` allows the commands in a Kaldi ``wav.scp``."""
    return read_manifest(manifest, trust=trust) if isinstance(manifest, str | Path) else list(manifest)


def graphs_of(model: AsrModel) -> dict[str, TorchPart | None]:
    """What becomes of a model's graphs, by their names; None is the whole of a model that is not in parts."""
    return dict(model.parts()) if isinstance(model, PartsModel) else {WHOLE: None}


def _check_float(model: AsrModel, original: Original) -> Agreement:
    """Compare the original with its float graphs; :class:`ArtifactError` if they differ."""
    found = agreement(original.logprobs, _graph_logprobs(model, original.folder, "onnxruntime", original))
    if found.largest_difference > FLOAT_TOLERANCE:
        raise ArtifactError(
            f"{model.name}: the float graph differs from the original by {found.largest_difference:.2g} in log-probs, "
            f"more than {FLOAT_TOLERANCE}: it cannot be exported faithfully"
        )
    return found


def _graph_bytes(folder: Path) -> int:
    """Bytes of the graphs and of the weights beside them."""
    return sum(path.stat().st_size for path in folder.glob("*.onnx*"))


def _check_quantized(model: AsrModel, prepared: Prepared, folder: Path, original: Original) -> dict[str, Any]:
    """Compare the quantized graphs, on every engine in fp32, with their simulation and with the original."""
    with prepared.active(Phase.SIMULATE):
        simulation = model.logprobs(original.speech, original.paths)
    rows: dict[str, Any] = {"simulation_to_original": agreement(simulation, original.logprobs).to_dict()}
    wanted = prepared.recipe.engine
    failures = {}
    for engine in ENGINES:
        try:
            logprobs = _graph_logprobs(model, folder, engine, original, prepared.recipe.weight_only_inputs == "int8")
        except EngineError as error:
            rows[f"quantized_{engine}"] = {"error": str(error)}
            failures[engine] = str(error)
            continue
        found = agreement(simulation, logprobs)
        rows[f"quantized_{engine}"] = found.to_dict()
        # Any engine that takes the graph may be chosen for its speed later, so each must give what it should.
        if found.same_argmax < MIN_AGREEMENT and wanted in ("auto", engine):
            raise ArtifactError(
                f"{model.name}: on {engine} the quantized graph has the simulation's best token in only "
                f"{found.same_argmax:.1%} of frames, less than {MIN_AGREEMENT:.0%}: the artifact is not kept"
            )
    if wanted in failures or len(failures) == len(ENGINES):
        raise EngineError(f"{model.name}: {failures.get(wanted) or '; '.join(failures.values())}")
    return rows


def _graph_logprobs(
    model: AsrModel, folder: Path, engine: str, original: Original, round_inputs: bool = False
) -> list[NDArray[np.float32]]:
    options = EngineOptions(compute="fp32", round_inputs=round_inputs)
    engines = {part: load_engine(engine, folder / graph_name(part), options) for part in graphs_of(model)}
    if isinstance(model, PartsModel):
        assert original.paths is not None
        parts = {part: EnginePart(loaded) for part, loaded in engines.items()}
        return model.transcriber(parts).logprobs(original.speech, original.paths)
    assert isinstance(model, FrameModel)
    acoustic = EngineAcousticModel(engines[WHOLE], model.padded_batches)
    return model.transcriber(acoustic, chunk_seconds=0).logprobs(original.speech)
