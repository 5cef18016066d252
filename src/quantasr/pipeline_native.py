"""The way to PyTorch's own int8: the same steps as ``pipeline``, on the live model, without a graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from quantasr.artifact import TENSORS, Artifact
from quantasr.artifact_parts import Waves, describe, write_parts
from quantasr.atomic import create
from quantasr.engines import TORCH, TORCH_BACKENDS
from quantasr.engines.engine import ExecutedOp, frame_feed
from quantasr.engines.torch_native.backends import FLOAT, Backend, adapt, find_backend, usable_backends
from quantasr.engines.torch_native.convert import Calibrated, Chosen, calibrate_native, choose, strip
from quantasr.engines.torch_native.engine import NativeEngine
from quantasr.engines.torch_native.folder import Skeleton, save
from quantasr.engines.torch_native.half import compute_in, find_dtype
from quantasr.engines.torch_native.plan import Plan
from quantasr.engines.torch_native.trace import Trace, traced
from quantasr.errors import EngineError
from quantasr.measure.agreement import agreement
from quantasr.quantize import LayerPlan, Prepared, prepare
from quantasr.recipes import Recipe
from quantasr.recipes.recipe import FLOAT as QFLOAT
from quantasr.sources import AsrModel
from quantasr.sources.asr_model import evaluating
from quantasr.speech.manifest import Utterance
from quantasr.speech.transcript import Waveform

_ROUNDS = 5
_OUTSIDE = "a product outside of layers, such as those inside attention: PyTorch has no int8 kernel for it"


@dataclass(frozen=True)
class NativeOptions:
    """How to run in PyTorch: a backend or ``auto``, the type of the float rest, whether slow layers stay float.

    ``compute`` ``auto`` is what the recipe says, otherwise fp32. ``seconds`` is the length of the recording on which
    layers and backends are timed.
    """

    backend: str = "auto"
    compute: str = "auto"
    timing: bool = True
    seconds: float = 10.0

    def __post_init__(self) -> None:
        known = ("auto", *TORCH_BACKENDS, FLOAT.name)
        if self.backend not in known:
            raise EngineError(f"backend {self.backend!r} is unknown: choose one of {', '.join(known)}")
        if self.compute != "auto":
            find_dtype(self.compute)

    @classmethod
    def of(cls, engine: str, compute: str | None = None, **options: Any) -> NativeOptions:
        """From ``torch``, ``torch:auto``, ``torch:onednn`` and so on."""
        name, _, backend = engine.partition(":")
        if name != TORCH:
            raise EngineError(
                f"engine {engine!r}: quantize makes a graph for all graph engines; choose {TORCH}, or {TORCH}: and one "
                f"of {', '.join(TORCH_BACKENDS)}, for PyTorch's own int8"
            )
        return cls(backend or "auto", compute or "auto", **options)

    def for_recipe(self, recipe: Recipe) -> NativeOptions:
        """The options with what the recipe decides; one without rules quantizes nothing."""
        backend = self.backend if recipe.rules else FLOAT.name
        compute = recipe.compute if self.compute == "auto" else self.compute
        if compute == "auto":
            compute = "fp32" if recipe.rules else recipe.float_storage
        return replace(self, backend=backend, compute=compute)

    @property
    def backends(self) -> list[Backend]:
        """The backends to be measured; raises :class:`EngineError` when PyTorch lacks them."""
        names = usable_backends() if self.backend == "auto" else [self.backend]
        if not names:
            raise EngineError("this build of PyTorch has no int8 backend")
        return [find_backend(name) for name in names]


@dataclass
class Native:
    """A live model that runs in PyTorch's own int8, and what was found out on the way.

    ``rows`` say what became of each layer; ``parity`` and ``measured`` are figures of the whole model; ``notes`` are
    changes of the recipe that the backend needed.
    """

    prepared: Prepared
    calibrated: Calibrated
    chosen: Chosen
    compute: str
    rows: list[dict[str, Any]]
    parity: dict[str, Any]
    measured: dict[str, Any]
    notes: list[str]

    @property
    def backend(self) -> str:
        """The backend whose kernels it runs."""
        return self.chosen.plan.backend.name


def convert_native(
    model: AsrModel,
    waves: Iterable[Waveform],
    speech: Sequence[Waveform],
    recipe: Recipe,
    options: NativeOptions,
    *,
    progress: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Native:
    """Convert ``model`` in place for the fastest of the wanted backends.

    ``waves`` are calibrated on, one at a time; ``speech`` is what original, simulation and converted model are compared
    on. Raises what calibrating and choosing raise.
    """
    options = options.for_recipe(recipe)
    backends = options.backends
    paths = model.paths(speech)
    original = model.logprobs(speech, paths)
    fitted, notes = adapt(recipe, backends[:1])
    for text in notes:
        say(f"comparing {backends[0].name} with the recipe: {text}")
    before = _seconds(model, options)
    prepared = prepare(model, fitted)
    if options.backend == FLOAT.name:
        strip(prepared)  # nothing is calibrated
        calibrated = Calibrated(model.module, {}, {}, {})
    else:
        say("calibrating")
        calibrated = calibrate_native(prepared, waves, backends, seconds=options.seconds, progress=progress)
        round_stored(prepared)
    compute_in(model.module, model.graph, options.compute)
    chosen, times = fastest_backend(model, calibrated, options, say)
    times["original"] = before
    backend = chosen.plan.backend.name

    say(f"comparing {backend} with its simulation")
    calibrated.install(chosen.plan, simulated=True)
    simulation = model.logprobs(speech, paths)
    calibrated.install(chosen.plan)
    native = model.logprobs(speech, paths)
    parity = {
        "simulation_to_original": agreement(simulation, original).to_dict(),
        "native_to_simulation": agreement(native, simulation).to_dict(),
        "native_to_original": agreement(native, original).to_dict(),
    }
    trace, ops = _executed(model, backend, options)
    measured = {
        "entries": trace.count("entry"),
        "exits": trace.count("exit"),
        "int8_layers": len(chosen.plan.layers) + len(chosen.plan.dynamic),
        "int8_share": round(sum(op.macs for op in ops if op.precision == "int8") / sum(op.macs for op in ops), 4),
        "milliseconds": {name: round(seconds * 1e3, 2) for name, seconds in times.items()},
        "slower_than_float": _slower(backend, times),
    }
    rows = _rows(prepared, chosen)
    known = {row["path"] for row in rows}
    outside = {op.name for op in ops if op.precision != "int8"} - known
    rows += [LayerPlan(path, "product", QFLOAT, (), _OUTSIDE).to_dict() for path in sorted(outside)]
    return Native(prepared, calibrated, chosen, options.compute, rows, parity, measured, notes)


def quantize_native(
    model: AsrModel,
    output: Path,
    utterances: Sequence[Utterance],
    speech: Sequence[Waveform],
    recipe: Recipe,
    options: NativeOptions,
    *,
    overwrite: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Artifact:
    """Convert ``model`` in place and write it as a folder; see :func:`convert_native` and :func:`quantasr.quantize`."""
    waves = Waves(utterances, model.sample_rate)
    found = convert_native(model, waves, speech, recipe, options, progress=progress, say=say)
    prepared, plan = found.prepared, found.chosen.plan
    used = utterances if waves.seconds else []

    def fill(folder: Path) -> None:
        for name, content in model.files.items():
            (folder / name).write_bytes(content)
        folded, halves = [norm for _, norm in prepared.folded], sorted(prepared.stored)
        skeleton = Skeleton(str(model.provenance["source"]), folded, halves)
        save(folder, model.module, skeleton, plan, found.calibrated.weights, prepared.stored)
        write_parts(folder, prepared, found.rows, used)
        described = describe(prepared, folder, found.parity, len(used), sum(waves.seconds))
        engine = {"engine": f"{TORCH}:{found.backend}", "compute": found.compute, "changes": found.notes}
        size = (folder / TENSORS).stat().st_size
        sizes = {"weights_bytes": size, "float_weights_bytes": 4 * model.provenance["parameters"]}
        replace(described, provenance=described.provenance | engine, measured=found.measured | sizes).write_manifest()

    create(output, fill, overwrite=overwrite)
    return Artifact.load(output)


def round_stored(prepared: Prepared) -> None:
    """Give the float rest the values of its float16 storage, so that what is measured is what is saved."""
    parameters = dict(prepared.model.module.named_parameters())
    for name in list(prepared.stored):
        if name in parameters:
            parameters[name].data = prepared.stored[name].float()


def fastest_backend(
    model: AsrModel, calibrated: Calibrated, options: NativeOptions, say: Callable[[str], None]
) -> tuple[Chosen, dict[str, float]]:
    """The plan of the fastest backend, and seconds of every one and of the float model on one recording."""
    plans: dict[str, Chosen] = {}
    if options.backend == FLOAT.name:
        return Chosen(Plan(FLOAT), {}, {}), {FLOAT.name: _seconds(model, options)}
    for backend in options.backends:
        say(f"timing the layers on {backend.name}")
        found = choose(calibrated, backend, timing=options.timing, dtype=find_dtype(options.compute))
        if found.plan.layers or found.plan.dynamic:
            plans[backend.name] = found
    if not plans:
        raise EngineError(f"{model.name}: no layer gains in int8 on {', '.join(b.name for b in options.backends)}")
    inputs = model.probe(options.seconds)
    seconds: dict[str, list[float]] = {FLOAT.name: [], **{name: [] for name in plans}}
    for turn in range(_ROUNDS + 1):
        for name, row in seconds.items():
            calibrated.uninstall() if name == FLOAT.name else calibrated.install(plans[name].plan)
            for repeat in range(2):  # the first run after packing takes memory
                begin = time.perf_counter()
                with torch.inference_mode():
                    model.graph(*inputs)
                if turn and repeat:
                    row.append(time.perf_counter() - begin)
    times = {name: median(row) for name, row in seconds.items()}
    best = min(plans, key=lambda name: times[name])
    return plans[best], times


def _seconds(model: AsrModel, options: NativeOptions) -> float:
    """Median seconds of the model as it is."""
    inputs, found = model.probe(options.seconds), []
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        with evaluating(model.module), torch.inference_mode():
            model.graph(*inputs)
        found.append(time.perf_counter() - begin)
    return median(found[1:])


def _slower(backend: str, times: dict[str, float]) -> str:
    """What must be said when int8 gains nothing, otherwise empty."""
    fastest = min(times["original"], times[FLOAT.name])
    if times[backend] < fastest or (backend == FLOAT.name and times[backend] < times["original"]):
        return ""
    took = f"{times[backend] * 1e3:.1f} ms"
    if times["original"] <= times[FLOAT.name] or backend == FLOAT.name:
        return f"no faster than the original here: {took}, and {times['original'] * 1e3:.1f} ms: use that, or a graph"
    folded = f"{times[FLOAT.name] * 1e3:.1f} ms in float with its norms folded"
    return f"no faster than float here: {took}, and {folded}: use --engine {TORCH}:{FLOAT.name}, or a graph"


def _executed(model: AsrModel, backend: str, options: NativeOptions) -> tuple[Trace, list[ExecutedOp]]:
    """What one run of the converted model does."""
    inputs = model.probe(options.seconds)
    with traced() as trace, torch.inference_mode():
        model.graph(*inputs)
    features = inputs[0].numpy()
    engine = NativeEngine(model, backend, options.compute)
    return trace, engine.executed(frame_feed(features))


def _rows(prepared: Prepared, chosen: Chosen) -> list[dict[str, Any]]:
    """A row for each layer: the recipe's, and what became of it."""
    rows = []
    qconfigs = {plan.path: plan.qconfig for plan in prepared.plan} | prepared.native_only
    for plan in prepared.plan:
        row = plan.to_dict()
        layer = chosen.plan.layers.get(plan.path)
        if layer is not None:
            row["kernel"] = (
                f"{chosen.plan.backend.name} {layer.geometry.function}{'_relu' if layer.output.relu else ''}"
            )
            row["gives"] = "int8" if layer.output.quantized else "float"
        elif plan.path in chosen.plan.dynamic:
            row["kernel"], row["gives"] = f"{chosen.plan.backend.name} {plan.kind}", "float"
            row |= qconfigs[plan.path].summary()
            row.pop("reason", None)
        elif plan.path in chosen.reasons:
            row["reason"] = chosen.reasons[plan.path]
        rows.append(row)
    return rows
