"""Which parts of a model can be quantized: one at a time, what it does to log-probs, to WER and to time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from quantasr.artifact_parts import Waves
from quantasr.engines import ENGINES, TORCH, TORCH_BACKENDS
from quantasr.engines.engine import EngineOptions
from quantasr.engines.torch_native.backends import FLOAT
from quantasr.errors import CalibrationError, EngineError, RecipeError
from quantasr.measure.sensitivity import MAX_KL, Harm, Part, Sensitivity
from quantasr.pipeline import Manifest, find_recipe, utterances_of
from quantasr.pipeline_native import NativeOptions
from quantasr.progress import track
from quantasr.quantize.layers import find_layers
from quantasr.recipes import Recipe
from quantasr.recipes.pattern import Pattern
from quantasr.sensitivity.advised import advised_recipe
from quantasr.sensitivity.groups import BY, PRODUCTS, group_layers
from quantasr.sensitivity.harm import WINDOW_SECONDS, compare
from quantasr.sensitivity.macs import count_macs
from quantasr.sensitivity.parts import parts_of
from quantasr.sensitivity.study import Study, study
from quantasr.sensitivity.times import GraphTimer, NativeTimer, Timer
from quantasr.sources import AsrModel, FrameModel, load_model
from quantasr.sources.parts_model import PartsModel
from quantasr.speech.manifest import Utterance, check_disjoint
from quantasr.speech.text import normalizer as find_normalizer
from quantasr.speech.transcript import Waveform

EVERYTHING, ADVISED = "everything", "as advised"

_NATIVE_SPEECH = 4  # recordings on which PyTorch's own int8 is calibrated: its time does not depend on the scales


def sensitivity(
    model: AsrModel | str | Path,
    *,
    calibration: Manifest,
    evaluation: Manifest | None = None,
    by: str = "module",
    match: str | None = None,
    recipe: Recipe | str | Path | None = None,
    engine: str | None = None,
    compute: str | None = None,
    threads: int = 0,
    time: bool = True,
    rounds: int = 15,
    limit: int | None = 32,
    max_kl: float = MAX_KL,
    normalizer: str = "basic",
    trust: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Sensitivity:
    """Quantize one part of a recogniser at a time and measure what that does.

    All layers are calibrated once, on ``calibration``: as ``recipe`` has them, or, where it leaves them float or is not
    given, by its defaults (int8, static). ``evaluation`` is what log-probs and, if it has texts, error rates are
    compared on; without it, log-probs are compared on the calibration speech. Of both, the first ``limit`` utterances
    are used. ``by`` is one of :data:`quantasr.sensitivity.groups.BY`; ``match`` restricts it to some layers. ``engine``
    is what is timed: ``onnxruntime``, ``openvino``, ``torch`` or ``torch:`` and a backend; ``auto`` is the fastest
    engine for graphs, or PyTorch where the model makes no graph. ``compute`` is the type of a graph's float rest.

    A ``model`` that is given live is float again afterwards, with its norms folded. Raises the errors of each step: see
    :mod:`quantasr.errors`.
    """
    _check(by, engine, max_kl)
    find_normalizer(normalizer)
    calibrating = utterances_of(calibration, trust=trust)[:limit]
    if not calibrating:
        raise CalibrationError("no calibration utterances: static scales need some speech")
    evaluating = calibrating
    if evaluation is not None:
        evaluating = utterances_of(evaluation, trust=trust)[:limit]
        check_disjoint(calibrating, evaluating)
    if not isinstance(model, AsrModel):
        say(f"loading {model}")
        model = load_model(model, trust=trust)
    chosen = None if recipe is None else find_recipe(recipe, model.family)
    group_layers({path: kind for path, (kind, _) in find_layers(model.module).items()}, by, match)  # before the work
    say(f"calibrating on {len(calibrating)} utterances")
    with _threads(threads):
        found = study(model, chosen, Waves(calibrating, model.sample_rate), progress=progress)
        try:
            groups = group_layers(found.kinds, by, match, parts_of(model) if by == "part" else None)
            if found.products and match is None:
                groups[PRODUCTS] = found.products
            totals = {EVERYTHING: [path for paths in groups.values() for path in paths]}
            if chosen is not None:
                totals[f"recipe {chosen.name}"] = _choice(chosen, found)
            texts, notes = _texts(evaluating, evaluation is not None)
            sets = {name: partial(found.quantized, paths) for name, paths in {**groups, **totals}.items()}
            say(f"comparing {len(groups)} groups with float on {len(evaluating)} utterances")
            hear = partial(compare, model, texts=texts, normalizer=normalizer)
            heard = hear(evaluating, sets, progress=progress)
            wave = _longest(heard.used, model)
            timer = None
            if time:
                say(f"timing {len(groups)} groups on {len(wave) / model.sample_rate:.1f} s of audio")
                engine = engine or (chosen.engine if chosen else "auto")
                options = EngineOptions(threads, compute or (chosen.compute if chosen else "auto"))
                timer = _timer(found, wave, heard.used, engine, options, rounds)
            part = partial(_part, found, count_macs(model, wave), timer, max_kl)
            parts = [
                part(name, paths, heard.harms[name])
                for name, paths in track(groups.items(), "timing", total=len(groups), show=progress and time)
            ]
            sums = [part(name, paths, heard.harms[name]) for name, paths in totals.items()]
            advised = [path for one in parts if not one.leave_float for path in one.layers]
            if advised and all(set(advised) != set(one.layers) for one in sums):
                harm = hear(heard.used, {ADVISED: partial(found.quantized, advised)}).harms[ADVISED]
                sums.append(part(ADVISED, advised, harm))
        finally:
            found.close()
    table = Sensitivity(
        model=model.name,
        by=by,
        parts=tuple(sorted(parts, key=lambda one: one.harm.kl, reverse=True)),
        totals=tuple(sums),
        utterances=len(heard.used),
        engine=timer.engine if timer else "",
        compute=timer.compute if timer else "",
        audio_seconds=len(wave) / model.sample_rate if timer else 0.0,
        max_kl=max_kl,
        left_out={path: why for path, why in found.left_out.items() if match is None or Pattern(match).matches(path)},
        notes=notes,
        failures=heard.failures,
    )
    return replace(table, recipe=advised_recipe(table, model, chosen))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let PyTorch use ``count`` threads for a while; 0 leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check(by: str, engine: str | None, max_kl: float) -> None:
    """Refuse before the work begins what would fail after it."""
    if by not in BY:
        raise RecipeError(f"by = {by!r}: choose one of {', '.join(BY)}")
    if not max_kl >= 0:
        raise RecipeError(f"max_kl = {max_kl}: give 0 or more nats")
    if engine is not None and engine.partition(":")[0] == TORCH:
        _native_options(engine)
    elif engine not in (None, "auto", *ENGINES):
        raise EngineError(f"engine {engine!r} is unknown: choose one of auto, {', '.join(ENGINES)}, {TORCH}")


def _native_options(engine: str) -> NativeOptions:
    options = NativeOptions.of(engine)
    if options.backend == FLOAT.name:
        raise EngineError(f"engine {engine!r} has no int8 to be measured: choose one of {', '.join(TORCH_BACKENDS)}")
    return options


def _choice(recipe: Recipe, found: Study) -> list[str]:
    """The layers and attention products that ``recipe`` quantizes."""
    layers = [path for path, kind in found.kinds.items() if recipe.qconfig(path, kind).mode != "float"]
    return layers + (found.products if recipe.attention_products else [])


def _texts(utterances: Sequence[Utterance], wanted: bool) -> tuple[bool, tuple[str, ...]]:
    """Whether error rates can be compared, and what to say where they cannot."""
    if not wanted:
        return False, ("log-probs are compared on the calibration speech; WER needs a manifest of other speech",)
    missing = sum(utterance.text is None for utterance in utterances)
    if missing:
        return False, (f"{missing} of {len(utterances)} utterances have no text: WER is left out",)
    return True, ()


def _longest(utterances: Sequence[Utterance], model: AsrModel) -> Waveform:
    """The longest recording, cut to one window: what is timed."""
    longest = max(utterances, key=lambda utterance: utterance.duration or 0.0)
    return longest.load(model.sample_rate)[: round(WINDOW_SECONDS * model.sample_rate)]


def _timer(
    found: Study, wave: Waveform, speech: Sequence[Utterance], engine: str, options: EngineOptions, rounds: int
) -> Timer:
    """What times: ``auto`` is PyTorch where the model makes no graph, and a graph's engine otherwise."""
    model = found.model
    if engine == "auto" and not isinstance(model, FrameModel | PartsModel):
        engine = TORCH
    if engine.partition(":")[0] == TORCH:
        few = [utterance.load(model.sample_rate) for utterance in speech[:_NATIVE_SPEECH]]
        return NativeTimer(found, wave, few, _native_options(engine), rounds)
    if not isinstance(model, FrameModel | PartsModel):
        raise EngineError(f"{model.name}: makes no graph, so engine {engine} cannot run it: use --engine {TORCH}")
    return GraphTimer(found, wave, engine, options, rounds)


def _part(
    found: Study,
    macs: Counter[str],
    timer: Timer | None,
    max_kl: float,
    name: str,
    paths: Sequence[str],
    harm: Harm,
) -> Part:
    """A row of the table."""
    time = "" if timer is None else timer.ratio(paths)
    layers = [path for path in paths if path in found.kinds]
    # A product's path is that of the module that it happens in, and the operation.
    modules = {*layers, *(path.rpartition(".")[0] for path in paths if path not in found.kinds)}
    return Part(
        name=name,
        layers=tuple(paths),
        parameters=sum(p.numel() for path in layers for p in found.model.module.get_submodule(path).parameters()),
        macs=sum(macs[path] for path in modules) / max(macs.total(), 1),
        harm=harm,
        time=None if isinstance(time, str) else time,
        why_no_time=time if isinstance(time, str) else "",
        max_kl=max_kl,
    )


__all__ = ["ADVISED", "BY", "EVERYTHING", "PRODUCTS", "advised_recipe", "sensitivity"]
