"""How few bits a model can do with: its error rate at several widths, of weights and of activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from quantasr.artifact_parts import Waves
from quantasr.engines.torch_native.convert import strip
from quantasr.errors import RecipeError
from quantasr.measure.bit_widths import ACTIVATIONS, WEIGHTS, WIDTHS, Beside, BitWidths, Row
from quantasr.measure.evaluate import EvalResult, evaluate, evaluate_systems
from quantasr.numerics.qtypes import QType
from quantasr.numerics.quantizers import Phase
from quantasr.pipeline import Manifest, find_recipe, utterances_of
from quantasr.progress import track
from quantasr.quantize import Prepared, calibrate, prepare
from quantasr.quantize.integer import KINDS as INTEGER_KINDS
from quantasr.quantize.integer import integer_products
from quantasr.quantize.layers import KINDS, find_layers
from quantasr.quantize.prepare import check_fits
from quantasr.recipes import Recipe
from quantasr.recipes.recipe import QConfig, Rule
from quantasr.runtime import artifact_of
from quantasr.sources import AsrModel, load_model
from quantasr.speech.frontend import noise
from quantasr.speech.manifest import check_disjoint
from quantasr.speech.scoring import Unit
from quantasr.speech.transcript import Transcriber

GRANULARITIES = {
    "per_tensor": QType(8, symmetric=False),
    "per_channel": QType(8, symmetric=True, granularity="per_channel"),
}
"""Weights as the paper has them (arXiv 2006.09054), and as engines and our recipes do."""


def bit_widths(
    model: AsrModel | str | Path,
    evaluation: Manifest,
    *,
    bits: Sequence[int] = WIDTHS,
    calibration: Manifest | None = None,
    granularities: Sequence[str] = ("per_tensor",),
    recipe: Recipe | str | Path | None = None,
    beside: Sequence[Transcriber] = (),
    decoding: Mapping[str, Any] | None = None,
    unit: Unit = "word",
    normalizer: str = "basic",
    limit: int | None = None,
    trust: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> BitWidths:
    """Evaluate a model with weights, and with weights and activations, of each of ``bits``, against itself in float.

    Weights alone are rounded and multiplied in float32; with activations, layers are computed in integers, exactly
    (:mod:`quantasr.quantize.integer`). Activations take their ranges from each utterance, or from ``calibration`` where
    that is given; it must not share an utterance with ``evaluation``, of which the first ``limit`` are used.
    ``granularities`` are those of the weights' scales, from :data:`GRANULARITIES`. All layers are quantized, or those
    that ``recipe`` quantizes, with its observers. ``beside`` are evaluated too, and timed with the float model in
    turns; ``decoding`` are options of :meth:`AsrModel.transcriber`.

    A ``model`` that is given live is float again afterwards, with its norms folded. Raises the errors of each step: see
    :mod:`quantasr.errors`.
    """
    formats = _formats(bits, granularities)
    evaluating = utterances_of(evaluation, trust=trust)[:limit]
    calibrating = [] if calibration is None else utterances_of(calibration, trust=trust)
    check_disjoint(calibrating, evaluating)
    if not isinstance(model, AsrModel):
        say(f"loading {model}")
        model = load_model(model, trust=trust)
    chosen = None if recipe is None else find_recipe(recipe, model.family)
    if chosen is not None:
        check_fits(model, chosen)
    options = dict(decoding or {})
    scored: dict[str, Any] = {"normalizer": normalizer}
    say(f"evaluating {model.name} in float" + "".join(f" and {system.name}" for system in beside))
    original = model.transcriber(**{"name": f"{model.name} [PyTorch fp32]", **options})
    first, *others = evaluate_systems([original, *beside], evaluating, progress=progress, **scored).results

    size = sum(tensor.nbytes for tensor in (*model.module.parameters(), *model.module.buffers()))
    prepared = prepare(model, _everything(model, chosen, static=bool(calibrating)))
    try:
        wave = noise(model.frontend, max(model.min_samples, model.sample_rate))
        # Without calibration, which layers are called is to be seen all the same.
        calibrate(prepared, Waves(calibrating, model.sample_rate) if calibrating else [wave], progress=progress)
        if not prepared.weights:
            raise RecipeError(f"{model.name}: no layer of it can be quantized here")
        rows, unmet = [], set[str]()
        names = [(q, quantized) for q in formats for quantized in (WEIGHTS, ACTIVATIONS)]
        for qtype, quantized in track(names, "widths", total=len(names), show=progress):
            say(f"evaluating {quantized} in {qtype.bits} bits, {qtype.granularity}")
            _freeze(prepared, qtype)
            name = f"{model.name} [{quantized} {qtype.bits} bits]"
            with _quantized(prepared, quantized, qtype.bits, unmet):
                result = evaluate(model.transcriber(**{**options, "name": name}), evaluating, **scored)
            stored = size + sum(_saved(prepared, qtype).values())
            rows.append(Row(qtype.bits, quantized, qtype.granularity, stored, result))
        notes = _notes(prepared, unmet)
    finally:
        strip(prepared)
    return BitWidths(
        model=model.name,
        original=first,
        size=size,
        rows=tuple(rows),
        beside=tuple(_beside(system, result) for system, result in zip(beside, others, strict=True)),
        unit=unit,
        ranges="calibrated" if calibrating else "per_utterance",
        layers=len(prepared.weights),
        candidates=len(find_layers(model.module)),
        notes=notes,
    )


def _formats(bits: Sequence[int], granularities: Sequence[str]) -> list[QType]:
    """The formats of weights, in the order of the table."""
    unknown = [name for name in granularities if name not in GRANULARITIES]
    if unknown or not granularities:
        raise RecipeError(f"granularity {unknown[:1]}: choose one of {', '.join(GRANULARITIES)}")
    if not bits:
        raise RecipeError("no bits: give some, such as 16,8,4")
    return [replace(GRANULARITIES[name], bits=width) for name in granularities for width in dict.fromkeys(bits)]


def _everything(model: AsrModel, recipe: Recipe | None, *, static: bool) -> Recipe:
    """A rule for each layer that is to be quantized; formats come later, with each width."""
    base = recipe or Recipe("widths", (Rule("*"),))
    rules = []
    for path, (kind, _) in find_layers(model.module).items():
        qconfig = base.qconfig(path, kind)
        if qconfig.mode == "float" or KINDS[kind].native_only:
            continue
        observers = (qconfig.weight_observer, qconfig.input_observer)
        made = QConfig("static" if static else "weight_only", QType(), QType(8, symmetric=False), *observers)
        rules.append(Rule(path, made.to_dict(), kind))
    if not rules:
        raise RecipeError(f"{model.name}: no layer of it can be quantized here")
    return Recipe("widths", tuple(rules))


def _freeze(prepared: Prepared, qtype: QType) -> None:
    """Give every quantizer another format; what calibration saw stays."""
    for path, weight in prepared.weights.items():
        weight.qtype = qtype
        weight.freeze(_original(prepared, path))
    for quantizer in prepared.inputs.values():
        quantizer.qtype = QType(qtype.bits, symmetric=False)
        quantizer.freeze()


def _original(prepared: Prepared, path: str) -> Tensor:
    layer: Any = prepared.model.module.get_submodule(path)
    original: Tensor = layer.parametrizations.weight.original
    return original


@contextmanager
def _quantized(prepared: Prepared, quantized: str, bits: int, unmet: set[str]) -> Iterator[None]:
    """The model in integers for a while; ``unmet`` gains the layers that are not reached."""
    if quantized == WEIGHTS:
        with prepared.active(Phase.SIMULATE):
            for quantizer in prepared.inputs.values():
                quantizer.phase = Phase.FLOAT
            yield
        return
    inputs = None if prepared.inputs else QType(bits, symmetric=False)
    with integer_products(prepared, inputs=inputs) as products:
        yield
    unmet |= products.layers.keys() - products.met


def _saved(prepared: Prepared, qtype: QType) -> dict[int, int]:
    """Bytes that each weight gains when it is packed, with a scale (and a zero point) of 4 bytes; mostly negative."""
    saved = {}
    for path, weight in prepared.weights.items():
        tensor = _original(prepared, path)
        scales = weight.scale.numel() * (4 if qtype.symmetric else 8)
        saved[id(tensor)] = -(-tensor.numel() * qtype.bits // 8) + scales - tensor.nbytes
    return saved


def _notes(prepared: Prepared, unmet: set[str]) -> tuple[str, ...]:
    notes = []
    kinds = {row.path: row.kind for row in prepared.plan}
    left = [path for path, kind in kinds.items() if path in prepared.native_only and KINDS[kind].native_only]
    if left:
        notes.append(f"{len(left)} recurrent layers stay float, such as {left[0]}")
    if never := [row.path for row in prepared.plan if row.reason.startswith("it is never called")]:
        notes.append(f"{len(never)} layers are never called and stay float, such as {never[0]}")
    simulated = [path for path in prepared.weights if kinds[path] not in INTEGER_KINDS]
    if simulated:
        notes.append(f"{len(simulated)} layers have rounded weights and no integer products, such as {simulated[0]}")
    if unmet:
        notes.append(f"{len(unmet)} layers multiply in a way that integers do not reach: float, such as {min(unmet)}")
    return tuple(notes)


def _beside(system: Transcriber, result: EvalResult) -> Beside:
    artifact = artifact_of(system)
    return Beside(result, None if artifact is None else artifact.size)
