"""Quantize a live model where it is: it goes on working in its framework's own code, in int8."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from quantasr.artifact_parts import Waves
from quantasr.engines.torch_native.convert import converted
from quantasr.errors import CalibrationError, EngineError, ModelLoadError
from quantasr.measure.report import native_table
from quantasr.pipeline import Manifest, find_recipe, utterances_of
from quantasr.pipeline_native import NativeOptions, convert_native
from quantasr.quantize.layers import KINDS, find_layers
from quantasr.quantize.prepare import check_fits
from quantasr.quantize.restore import unchanged_on_error
from quantasr.recipes import Recipe
from quantasr.sources import AsrModel, adopt_model
from quantasr.speech.frontend import noise
from quantasr.speech.transcript import Waveform

if TYPE_CHECKING:
    from rich.table import Table

_COMPARED = 4


@dataclass(frozen=True)
class InPlace:
    """What :func:`quantize_in_place` did.

    ``layers`` has a row for each layer: its path, how it is quantized (``kernel``), or why it is float (``reason``).
    ``measured`` holds milliseconds before and after, ``parity`` how close the log-probs stayed, ``notes`` what the
    backend needed to be changed in the recipe.
    """

    name: str
    backend: str
    layers: tuple[dict[str, Any], ...]
    measured: dict[str, Any]
    parity: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def ratio(self) -> float:
        """Time after ÷ time before."""
        milliseconds = self.measured["milliseconds"]
        return float(milliseconds[self.backend] / milliseconds["original"])

    def table(self) -> Table:
        """Which layers run in int8, and why the others stay float."""
        return native_table(f"torch:{self.backend}", "fp32", self.measured, self.layers)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {**vars(self), "layers": list(self.layers), "notes": list(self.notes)}


def quantize_in_place(
    model: AsrModel | Any,
    recipe: Recipe | str | Path = "default",
    *,
    calibration: Manifest | Sequence[Waveform] | None = None,
    engine: str = "torch",
    all_layers: bool = False,
    seconds: float = 10.0,
    limit: int | None = None,
    trust: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> InPlace:
    """Let a live model run in PyTorch's own int8; its own methods, such as ``transcribe_file``, go on working.

    ``model`` is SpeechBrain's ``EncoderASR`` or ``EncoderDecoderASR``, or what :func:`quantasr.load_model` gave.
    ``calibration`` is a manifest, utterances, or waves at the model's sample rate; a recipe without static layers needs
    none. ``engine`` is ``torch``, which measures PyTorch's backends, or ``torch:`` and one of them. Layers are timed on
    ``seconds`` of audio; ``all_layers`` keeps those in int8 that lose time by it. When anything goes wrong, the model
    is as it was before.

    Raises the errors of each step: see :mod:`quantasr.errors`.
    """
    with ExitStack() as guard:
        if isinstance(model, nn.Module):
            # Adopting changes it too: what only a scorer holds gets a path.
            guard.enter_context(unchanged_on_error(model))
        if not isinstance(model, AsrModel):
            original, model = model, adopt_model(model)
            if model is None:
                raise ModelLoadError(
                    f"{type(original).__name__} is no recogniser that can be quantized where it is: give SpeechBrain's "
                    "EncoderASR or EncoderDecoderASR, or what quantasr.load_model gives"
                )
        if converted(model.module):
            raise EngineError(f"{model.name}: is in int8 already: load it again to quantize it in another way")
        options = NativeOptions.of(engine, timing=not all_layers, seconds=seconds)
        chosen = find_recipe(recipe, model.family)
        if not chosen.rules or chosen.compute not in ("auto", "fp32"):
            raise EngineError(
                f"recipe {chosen.name!r}: a model that goes on in its own code has a float rest in fp32: "
                "write a folder for half precision (quantasr quantize --engine torch)"
            )
        check_fits(model, chosen)
        waves = _waves(model, calibration, limit, trust)
        if not len(waves) and _is_static(model, chosen):
            raise CalibrationError(f"recipe {chosen.name!r} has static layers: give some speech as calibration")
        if not len(waves):
            # Nothing is to be measured, but which layers are called is to be seen.
            waves = [noise(model.frontend, 2 * model.sample_rate)]
        speech = list(islice(waves, _COMPARED))
        with unchanged_on_error(model.module, model.graph):
            found = convert_native(model, waves, speech, chosen, options, progress=progress, say=say)
        return InPlace(model.name, found.backend, tuple(found.rows), found.measured, found.parity, tuple(found.notes))


def _waves(
    model: AsrModel, calibration: Manifest | Sequence[Waveform] | None, limit: int | None, trust: bool
) -> Waves | Sequence[Waveform]:
    if calibration is None:
        return []
    if not isinstance(calibration, str | Path) and len(calibration) and isinstance(calibration[0], np.ndarray):
        waves: list[Waveform] = [np.asarray(wave, np.float32) for wave in calibration[:limit]]
        return waves
    return Waves(utterances_of(calibration, trust=trust)[:limit], model.sample_rate)  # type: ignore[arg-type]


def _is_static(model: AsrModel, recipe: Recipe) -> bool:
    """Whether some layer needs a scale that only calibration finds."""
    layers = find_layers(model.module)
    return any(
        recipe.qconfig(path, kind).mode == "static" and KINDS[kind].has_input for path, (kind, _) in layers.items()
    )
