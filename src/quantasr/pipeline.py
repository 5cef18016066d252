"""The whole way in one verb: model, recipe and calibration speech in, checked artifact out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantasr.artifact import Artifact, graph_name
from quantasr.artifact_parts import Waves, describe, write_parts
from quantasr.atomic import check_target, create
from quantasr.engines import TORCH
from quantasr.engines.float_products import integers_of
from quantasr.errors import CalibrationError, EngineError
from quantasr.export import export_quantized, save_graph
from quantasr.measure.gain import gain
from quantasr.parity import UTTERANCES, Original, check_quantized, graphs_of
from quantasr.pipeline_native import NativeOptions, quantize_native
from quantasr.quantize import Prepared, calibrate, convert, prepare
from quantasr.quantize.prepare import check_fits
from quantasr.recipes import Recipe, builtin_names, builtin_recipe
from quantasr.sources import AsrModel, FrameModel, load_model
from quantasr.sources.parts_model import PartsModel
from quantasr.speech.manifest import Utterance, check_disjoint, read_manifest

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
        speech = [u.load(model.sample_rate) for u in utterances[:UTTERANCES]]
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
        parity.update(check_quantized(model, prepared, folder, original))
        write_parts(folder, prepared, [row.to_dict() for row in prepared.plan], [*utterances, *heard])
        described = describe(prepared, folder, parity, len(utterances), seconds)
        described = replace(described, integers=integers_of(described.graphs.values()))
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


def _graph_bytes(folder: Path) -> int:
    """Bytes of the graphs and of the weights beside them."""
    return sum(path.stat().st_size for path in folder.glob("*.onnx*"))
