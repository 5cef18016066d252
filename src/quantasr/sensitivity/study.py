"""A model with a quantizer on every layer that can have one, which are switched on in groups."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from quantasr.engines.torch_native.backends import BACKENDS, usable_backends
from quantasr.engines.torch_native.convert import Calibrated, strip
from quantasr.engines.torch_native.dynamic_plan import find_dynamic, try_dynamic, watch_inputs
from quantasr.engines.torch_native.plan import Plan
from quantasr.numerics.quantizers import Phase
from quantasr.quantize import Prepared, calibrate, convert, prepare
from quantasr.quantize.layers import KINDS, find_layers
from quantasr.recipes.recipe import NEVER_STATIC, QConfig, Recipe, Rule
from quantasr.sources.asr_model import AsrModel
from quantasr.speech.frontend import noise
from quantasr.speech.transcript import Waveform


@dataclass
class Study:
    """A calibrated model, float unless :meth:`quantized` says otherwise.

    ``native`` holds the layers that only PyTorch's own int8 quantizes, which then run in it; ``kinds`` all layers that
    can be quantized. ``left_out`` says why others cannot.
    """

    model: AsrModel
    prepared: Prepared
    native: Calibrated
    kinds: dict[str, str]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def products(self) -> list[str]:
        """The attention products that calibration has seen."""
        products = self.prepared.products
        return [] if products is None else list(products.quantizers)

    @contextmanager
    def quantized(self, paths: Collection[str]) -> Iterator[None]:
        """Round the layers and attention products at ``paths`` for a while; the rest is float."""
        layers = {path: layer for path, layer in self.native.dynamic.layers.items() if path in paths}
        try:
            if layers:
                self.native.install(Plan(BACKENDS[usable_backends()[0]], dynamic=layers))
            with self.prepared.active(Phase.SIMULATE, [path for path in paths if path not in layers]):
                yield
        finally:
            self.native.uninstall()

    @contextmanager
    def detached(self) -> Iterator[None]:
        """Take all quantizers off for a while, as they are."""
        self.close()
        try:
            yield
        finally:
            self.prepared.attach()

    def close(self) -> None:
        """Take all quantizers off: the model is float, with its norms folded."""
        strip(self.prepared)


def study(model: AsrModel, recipe: Recipe | None, waves: Iterable[Waveform], *, progress: bool = False) -> Study:
    """Calibrate every layer of ``model`` at once: as ``recipe`` has it, or where that leaves it float, by its defaults.

    Layers that are never called, or that nothing quantizes, are in ``left_out``. Raises what
    :func:`quantasr.quantize.calibrate` raises.
    """
    model.make_exportable()  # before its layers are named: projections inside attention become some
    prepared = prepare(model, complete(model, recipe))
    try:
        native = _native(prepared, model)
        calibrate(prepared, waves, progress=progress)
        convert(prepared)
    except BaseException:
        strip(prepared)
        raise
    left_out = {row.path: row.reason for row in prepared.plan if row.reason and row.path not in prepared.native_only}
    left_out |= native.dynamic.reasons
    layers = {*prepared.weights, *native.dynamic.layers}
    kinds = {row.path: row.kind for row in prepared.plan if row.path in layers}
    return Study(model, prepared, native, kinds, left_out)


def complete(model: AsrModel, recipe: Recipe | None) -> Recipe:
    """A recipe with a rule for each layer: what ``recipe`` says of it, and its defaults where it says float."""
    base = recipe or Recipe("defaults", (), QConfig())
    rules = []
    for path, (kind, _) in find_layers(model.module).items():
        qconfig = base.qconfig(path, kind)
        if qconfig.mode == "float":
            qconfig = default_qconfig(base, kind)
        rules.append(Rule(path, qconfig.to_dict(), kind))
    return replace(base, rules=tuple(rules), exclude=(), attention_products=True, float_storage="fp32")


def default_qconfig(recipe: Recipe, kind: str) -> QConfig:
    """The defaults of ``recipe`` as far as they are possible for a layer of ``kind``."""
    qconfig = recipe.defaults
    if qconfig.mode == "float":
        qconfig = replace(qconfig, mode="static")
    if kind in NEVER_STATIC and qconfig.mode == "static":
        qconfig = replace(qconfig, mode="dynamic", input=QConfig().input)
    if qconfig.weight.granularity == "per_group" and kind not in ("linear", "embedding"):
        qconfig = replace(qconfig, weight=replace(qconfig.weight, granularity="per_channel", group_size=None))
    return qconfig


def _native(prepared: Prepared, model: AsrModel) -> Calibrated:
    """The layers that only PyTorch's own int8 quantizes, each tried."""
    dynamic = find_dynamic(prepared)
    only = {path for path in prepared.native_only if KINDS[_kind(prepared, path)].native_only}
    for path in [path for path in dynamic.layers if path not in only]:
        del dynamic.layers[path]
    if dynamic.layers:
        hooks = watch_inputs(model.module, dynamic)
        try:
            with prepared.active(Phase.FLOAT):
                model.run(_noise(model))
        finally:
            for hook in hooks:
                hook.remove()
        tried = try_dynamic(model.module, dynamic, usable_backends()[0])
        dynamic.reasons |= {path: trial.fault for path, trial in tried.items() if trial.fault}
        for path in [path for path in dynamic.layers if path in dynamic.reasons]:
            del dynamic.layers[path]
    dynamic.reasons = {path: reason for path, reason in dynamic.reasons.items() if path in only}
    return Calibrated(model.module, {}, dynamic.weights, {}, dynamic=dynamic)


def _kind(prepared: Prepared, path: str) -> str:
    return next(row.kind for row in prepared.plan if row.path == path)


def _noise(model: AsrModel) -> Waveform:
    """A second of noise, to see what each layer is called with."""
    return noise(model.frontend, max(model.min_samples, model.sample_rate))
