"""Whether graphs compute what they should: the original model, and the simulation of its quantization."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quantasr.artifact import WHOLE, graph_name
from quantasr.cpu import this_cpu
from quantasr.engines import ENGINES, EngineOptions, load_engine
from quantasr.engines.engine import Engine
from quantasr.errors import ArtifactError, EngineError
from quantasr.export import export_float, save_graph
from quantasr.export.wrong_layers import WrongLayer, wrong_layers
from quantasr.measure.agreement import Agreement, agreement
from quantasr.numerics.quantizers import Phase
from quantasr.quantize import Prepared
from quantasr.runtime import EngineAcousticModel, EnginePart
from quantasr.sources import AsrModel, FrameModel
from quantasr.sources.asr_model import Paths
from quantasr.sources.parts_model import PartsModel, TorchPart
from quantasr.speech.manifest import Utterance
from quantasr.speech.parts import Arrays
from quantasr.speech.transcript import Waveform

FLOAT_TOLERANCE = 1e-3
"""Largest difference of log-probs allowed between the original and its float graph."""

LARGEST_RATIO = 4.0
"""How many times as far as two right executions may be from each other, in mean log-probs, an engine may be from the
simulation until its layers are looked at one by one."""

FLOOR = 0.01
"""Mean difference of log-probs, in nats, up to which nothing is asked."""

MIN_AGREEMENT = 0.9
"""Share of frames with the same best token, as a part of what two right executions have, below which a graph is wrong
even if each of its layers is right."""

UTTERANCES = 4
"""Recordings that are compared."""

_SECONDS = 20.0  # of each at most: they are run whole
_LAST_BITS = 2e-6  # relative; what sums of float32 in another order differ by


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
        longest = round(_SECONDS * model.sample_rate)
        speech = [u.load(model.sample_rate)[:longest] for u in utterances[:UTTERANCES]]
        paths = model.paths(speech)
        logprobs = model.logprobs(speech, paths)
        model.make_exportable()
        for name, part in graphs_of(model).items():
            save_graph(export_float(model, part), scratch / graph_name(name))
        found = cls(scratch, speech, paths, logprobs, {})
        found.parity["float"] = _check_float(model, found).to_dict()
        return found


def graphs_of(model: AsrModel) -> dict[str, TorchPart | None]:
    """What becomes of a model's graphs, by their names; None is the whole of a model that is not in parts."""
    return dict(model.parts()) if isinstance(model, PartsModel) else {WHOLE: None}


def _check_float(model: AsrModel, original: Original) -> Agreement:
    """Compare the original with its float graphs; :class:`ArtifactError` if they differ."""
    found = agreement(original.logprobs, graph_logprobs(model, original.folder, "onnxruntime", original))
    if found.largest_difference > FLOAT_TOLERANCE:
        raise ArtifactError(
            f"{model.name}: the float graph differs from the original by {found.largest_difference:.2g} in log-probs, "
            f"more than {FLOAT_TOLERANCE}: it cannot be exported faithfully"
        )
    return found


def check_quantized(model: AsrModel, prepared: Prepared, folder: Path, original: Original) -> dict[str, Any]:
    """Compare the quantized graphs, on every engine in fp32, with their simulation and with the original.

    Two right executions of a deep int8 network differ where a value falls between two integers. How far is measured: by
    simulating once more, with float parameters that differ in their last bits. Where an engine's result is farther off,
    each layer is run alone. Raises :class:`ArtifactError` where one is wrong, or where best tokens are others though
    none is, and :class:`EngineError` where no engine takes the graphs.
    """
    with prepared.active(Phase.SIMULATE):
        simulation = model.logprobs(original.speech, original.paths)
        with _other_last_bits(prepared):
            again = model.logprobs(original.speech, original.paths)
    twin = agreement(simulation, again)
    rows: dict[str, Any] = {
        "simulation_to_original": agreement(simulation, original.logprobs).to_dict(),
        "simulation_to_itself": twin.to_dict(),
    }
    allowed = max(FLOOR, LARGEST_RATIO * twin.mean_difference)
    wanted, round_inputs = prepared.recipe.engine, prepared.recipe.weight_only_inputs == "int8"
    failures = {}
    for engine in ENGINES:
        try:
            logprobs = graph_logprobs(model, folder, engine, original, round_inputs)
        except EngineError as error:
            rows[f"quantized_{engine}"] = {"error": str(error)}
            failures[engine] = str(error)
            continue
        found = agreement(simulation, logprobs)
        rows[f"quantized_{engine}"] = found.to_dict()
        # Any engine that takes the graph may be chosen for its speed later, so each must give what it should.
        if found.mean_difference > allowed and wanted in ("auto", engine):
            wrong = _wrong_layers(model, folder, engine, original, round_inputs)
            if wrong or found.same_argmax < MIN_AGREEMENT * twin.same_argmax:
                raise ArtifactError(
                    f"{model.name}: on {engine} the quantized graph's log-probs differ from its simulation's by "
                    f"{found.mean_difference:.2g} on average, where two right executions differ by "
                    f"{twin.mean_difference:.2g} (same best token {found.same_argmax:.1%}, {twin.same_argmax:.1%}): "
                    f"{_cause(wrong)}: the artifact is not kept"
                )
    if wanted in failures or len(failures) == len(ENGINES):
        raise EngineError(f"{model.name}: {failures.get(wanted) or '; '.join(failures.values())}")
    return rows


@contextmanager
def _other_last_bits(prepared: Prepared) -> Iterator[None]:
    """Float parameters that differ by rounding errors, for a while."""
    random = torch.Generator().manual_seed(0)
    integers = {f"{path}.parametrizations.weight.original" for path in prepared.weights}
    parameters = {n: p for n, p in prepared.model.module.named_parameters() if n not in integers}
    before = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for parameter in parameters.values():
            noise = torch.randn(parameter.shape, generator=random, dtype=torch.float32)
            parameter.data = (parameter.data * (1 + _LAST_BITS * noise)).to(parameter.dtype)
        yield
    finally:
        for name, data in before.items():
            parameters[name].data = data


def _wrong_layers(
    model: AsrModel, folder: Path, engine: str, original: Original, round_inputs: bool
) -> list[WrongLayer]:
    """The layers that an engine computes wrongly: each runs alone, on what a literal execution gives it."""
    feeds: dict[str, Arrays] = {}
    graph_logprobs(model, folder, engine, original, round_inputs, feeds)
    options = EngineOptions(compute="fp32", round_inputs=round_inputs)

    def load(graph: Path) -> Engine:
        return load_engine(engine, graph, options)

    return [layer for part, feed in feeds.items() for layer in wrong_layers(folder / graph_name(part), feed, load)]


def _cause(wrong: Sequence[WrongLayer]) -> str:
    """What must be at fault, in words."""
    if not wrong:
        return "no layer is wrong by itself, so the graph as a whole is (an exporter's or an engine's fault)"
    worst = max(wrong, key=lambda layer: layer.error)
    saturation = f" ({this_cpu().integer_products})" if this_cpu().saturates else ""
    return (
        f"{len(wrong)} layers are wrong by themselves, the most {worst.name} ({worst.kind}): off by {worst.error:.2g} "
        f"times its mean magnitude{saturation}"
    )


def graph_logprobs(
    model: AsrModel,
    folder: Path,
    engine: str,
    original: Original,
    round_inputs: bool = False,
    feeds: dict[str, Arrays] | None = None,
) -> list[NDArray[np.float32]]:
    """Log-probs of the graphs in ``folder`` on ``engine`` in fp32; ``feeds`` takes the first inputs of each graph."""
    options = EngineOptions(compute="fp32", round_inputs=round_inputs)
    engines: dict[str, Engine] = {
        part: load_engine(engine, folder / graph_name(part), options) for part in graphs_of(model)
    }
    if feeds is not None:
        engines = {part: _Listening(loaded, part, feeds) for part, loaded in engines.items()}
    if isinstance(model, PartsModel):
        assert original.paths is not None
        parts = {part: EnginePart(loaded) for part, loaded in engines.items()}
        return model.transcriber(parts).logprobs(original.speech, original.paths)
    assert isinstance(model, FrameModel)
    acoustic = EngineAcousticModel(engines[WHOLE], model.padded_batches)
    return model.transcriber(acoustic, chunk_seconds=0).logprobs(original.speech)


class _Listening:
    """An engine that keeps what it is first fed with."""

    def __init__(self, engine: Engine, part: str, feeds: dict[str, Arrays]) -> None:
        self._engine, self._part, self._feeds = engine, part, feeds
        self.name, self.compute = engine.name, engine.compute

    def run(self, feed: Arrays) -> dict[str, NDArray[Any]]:
        self._feeds.setdefault(self._part, dict(feed))
        return self._engine.run(feed)

    def executed(self, feed: Arrays) -> list[Any]:
        return self._engine.executed(feed)
