"""Time of the whole model with some of its layers in int8 ÷ its time in float, on a graph's engine or in PyTorch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quantasr.artifact import WHOLE
from quantasr.engines import load_engine
from quantasr.engines.engine import Engine, EngineOptions, frame_feed
from quantasr.engines.feeds import fixed_shapes, part_feed
from quantasr.engines.selection import candidates
from quantasr.engines.torch_native.backends import adapt
from quantasr.engines.torch_native.convert import calibrate_native, choose
from quantasr.engines.torch_native.plan import Plan
from quantasr.errors import EngineError
from quantasr.export import save_graph
from quantasr.export.alone import alone, labels
from quantasr.export.graph import trace_quantized
from quantasr.measure.latency import Ratio, Timing, ratio, time_calls
from quantasr.pipeline_native import NativeOptions
from quantasr.quantize import prepare
from quantasr.runtime import of_parts
from quantasr.sensitivity.study import Study
from quantasr.sources.parts_model import PartsModel, TorchPart
from quantasr.speech.transcript import Waveform

_CHOICE_ROUNDS = 3
_TURN_SECONDS = 0.05
"""A turn lasts this long at least: shorter runs are repeated in it, because single ones of a few milliseconds vary."""


def _turn(call: Callable[[], object], seconds: float) -> int:
    """How often ``call`` is repeated in a turn."""
    return max(1, round(_TURN_SECONDS / time_calls({"": call}, seconds, rounds=3, warm_up=1)[""].p50))


def _repeat(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


class Timer(Protocol):
    """Times the model with some layers in int8, in turns with the float model."""

    engine: str
    compute: str

    def ratio(self, paths: Collection[str]) -> Ratio | str:
        """Time with the layers and attention products at ``paths`` in int8 ÷ time in float, or why there is none."""
        ...


class GraphTimer:
    """On engines for graphs: the graph of the model, or of each of its parts, with its calls in speech so long."""

    def __init__(self, study: Study, wave: Waveform, engine: str, options: EngineOptions, rounds: int) -> None:
        """``auto`` takes the engine that runs the graph with all layers in int8 fastest; the same for compute types.

        Of a model in parts it is chosen for each. Raises :class:`EngineError` when none can run a graph.
        """
        model = study.model
        self._rounds = rounds
        parts: dict[str, TorchPart | None] = {WHOLE: None}
        if isinstance(model, PartsModel):
            parts = dict(model.parts())
        self._graphs = {name: TimedGraph(study, part, wave, engine, options) for name, part in parts.items()}
        self.engine, self.compute = (
            of_parts({name: getattr(graph, what) for name, graph in self._graphs.items()})
            for what in ("engine", "compute")
        )

    def ratio(self, paths: Collection[str]) -> Ratio | str:
        """See :class:`Timer`."""
        if not any(graph.graphed.intersection(paths) for graph in self._graphs.values()):
            return "only --engine torch has int8 for it"
        turns = [graph.turns(paths, self._rounds) for graph in self._graphs.values()]
        seconds = np.sum(turns, axis=0)
        return ratio(*(Timing("", 1.0, tuple(row.tolist())) for row in seconds))


class TimedGraph:
    """One graph. All its variants come from one trace; one at a time is loaded beside the float one."""

    def __init__(
        self, study: Study, part: TorchPart | None, wave: Waveform, engine: str, options: EngineOptions
    ) -> None:
        """``part`` None is the whole of a model that is one graph; ``wave`` is what it hears."""
        self._study = study
        self._seconds = len(wave) / study.model.sample_rate
        if part is None:
            self._feed, self._calls = frame_feed(study.model.inputs([wave])[0].numpy()), 1.0
        elif "features" in part.inputs:
            self._feed, self._calls = frame_feed(study.model.frontend(wave)[None]), 1.0
        else:
            self._feed, self._calls = part_feed(part.to_dict()), max(1.0, self._seconds * part.calls)
        recipe, shapes = study.prepared.recipe, {} if part is None else fixed_shapes(part.to_dict())
        options = replace(options, shapes=shapes, round_inputs=recipe.weight_only_inputs == "int8")
        self._traced = trace_quantized(study.prepared, part)
        self.graphed = labels(self._traced)
        """The layers and attention products that have a quantizer in it."""
        with tempfile.TemporaryDirectory() as folder:
            self.engine, self._options = self._fastest(self._write(self.graphed, folder), engine, options)
        self.compute = self._options.compute
        self._float = self._load(())
        self._times = _turn(self._float, self._seconds)
        self._alone: float | None = None

    def turns(self, paths: Collection[str], rounds: int) -> NDArray[np.float64]:
        """Seconds of all its calls, ``[2, rounds]``: with the layers at ``paths`` in int8, and in float.

        Where it has none of them both are its usual time, which is measured once.
        """
        inside = self.graphed.intersection(paths)
        if not inside and self._alone is not None:
            return np.full((2, rounds), self._alone)
        runs = {"int8": self._load(inside), "float": self._float} if inside else {"float": self._float}
        calls = {name: partial(_repeat, run, self._times) for name, run in runs.items()}
        found = time_calls(calls, self._seconds, rounds=rounds)
        scale = self._calls / self._times
        if not inside:
            self._alone = scale * found["float"].p50
            return np.full((2, rounds), self._alone)
        return scale * np.array([found["int8"].seconds, found["float"].seconds])

    def _write(self, paths: Collection[str], folder: str) -> Path:
        graph = Path(folder) / "graph.onnx"
        save_graph(alone(self._traced, self._study.prepared, paths), graph)
        return graph

    def _load(self, paths: Collection[str]) -> Callable[[], object]:
        """One run of the graph in which the layers at ``paths`` are quantized."""
        with tempfile.TemporaryDirectory() as folder:
            return self._run(load_engine(self.engine, self._write(paths, folder), self._options))

    def _run(self, engine: Engine) -> Callable[[], object]:
        run = partial(engine.run, self._feed)
        run()  # while the file is there: engines may read their weights when they are first used
        return run

    def _fastest(self, graph: Path, engine: str, options: EngineOptions) -> tuple[str, EngineOptions]:
        allowed = {f"{n} {kind.compute}": (n, kind) for n, kind in candidates(options) if engine in ("auto", n)}
        calls, failures = {}, []
        for label, (name, kind) in allowed.items():
            try:
                calls[label] = self._run(load_engine(name, graph, kind))
            except EngineError as error:
                failures.append(str(error))
        if not calls:
            raise EngineError("; ".join(failures) or f"engine {engine} does not compute in {options.compute}")
        times = time_calls(calls, self._seconds, rounds=_CHOICE_ROUNDS)
        return allowed[min(times, key=lambda label: times[label].p50)]


class NativeTimer:
    """In PyTorch's own int8, everything that transcribing calls.

    The model is calibrated again, on little speech, because outputs are observed too and backends want other formats;
    times do not depend on the scales.
    """

    compute = "fp32"

    def __init__(
        self, study: Study, wave: Waveform, speech: Sequence[Waveform], options: NativeOptions, rounds: int
    ) -> None:
        """``auto`` takes the backend that runs all layers in int8 fastest."""
        self._study, self._wave, self._rounds = study, wave, rounds
        self._seconds = len(wave) / study.model.sample_rate
        backends = options.backends
        fitted, _ = adapt(study.prepared.recipe, backends)
        with study.detached():
            prepared = prepare(study.model, fitted)
            self._calibrated = calibrate_native(prepared, speech, backends, seconds=self._seconds)
            self._chosen = choose(self._calibrated, backends[0], timing=False)
            if len(backends) > 1:
                plans = [choose(self._calibrated, backend, timing=False) for backend in backends]
                self._chosen = min(plans, key=lambda one: self._time(one.plan, _CHOICE_ROUNDS).median)
        self.engine = f"torch:{self._chosen.plan.backend.name}"

    def ratio(self, paths: Collection[str]) -> Ratio | str:
        """See :class:`Timer`."""
        chosen = self._chosen
        skip = {path for path in self._calibrated.inputs if path not in paths} | set(chosen.reasons)
        plan = self._calibrated.plan(chosen.plan.backend, skip)
        plan.dynamic = {path: layer for path, layer in chosen.plan.dynamic.items() if path in paths}
        if not plan.layers and not plan.dynamic:
            reasons = {chosen.reasons[path] for path in paths if path in chosen.reasons}
            return "; ".join(sorted(reasons)) or "PyTorch has no int8 for it"
        with self._study.detached():
            return self._time(plan, self._rounds)

    def _time(self, plan: Plan, rounds: int) -> Ratio:
        """``plan`` ÷ float, turn by turn; the order turns too."""
        seconds: dict[bool, list[float]] = {True: [], False: []}
        run = partial(self._study.model.run, self._wave)
        times = _turn(run, self._seconds)
        try:
            for turn in range(rounds):
                for quantized in (True, False) if turn % 2 else (False, True):
                    self._calibrated.install(plan) if quantized else self._calibrated.uninstall()
                    # The first run after packing takes memory.
                    run()
                    call = {"": partial(_repeat, run, times)}
                    seconds[quantized] += time_calls(call, self._seconds, rounds=1, warm_up=0)[""].seconds
        finally:
            self._calibrated.uninstall()
        return ratio(*(Timing("", self._seconds, tuple(seconds[quantized])) for quantized in (True, False)))
