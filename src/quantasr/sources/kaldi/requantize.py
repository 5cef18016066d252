"""A model of Kaldi's with other weights: those that integers of a few bits can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quantasr.kaldi.nnet3.components import Component
from quantasr.kaldi.nnet3.model import AcousticModel
from quantasr.numerics.observers import observer_factory
from quantasr.numerics.quantizers import Phase, WeightQuantizer
from quantasr.recipes.recipe import QConfig


@dataclass(frozen=True)
class Rounded:
    """What rounding did to the weight of one component.

    ``mean_error`` and ``max_error`` are those of single weights, absolute; ``rms`` is the weights' own size, to compare
    them with.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    bits: int
    granularity: str
    rms: float
    mean_error: float
    max_error: float

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {**vars(self), "shape": list(self.shape)}


def weight_field(component: Component) -> str | None:
    """The field that holds a component's matrix, if it multiplies by one."""
    fields = component.fields
    return next((name for name in ("LinearParams", "Params") if name in fields and np.ndim(fields[name]) == 2), None)


def requantized(model: AcousticModel, qconfigs: Mapping[str, QConfig]) -> tuple[AcousticModel, list[Rounded]]:
    """``model`` with the weights of the components in ``qconfigs`` (by name) rounded to integers times their scale.

    Rows are a component's outputs, so ``per_channel`` means one scale a row. Biases and all other numbers stay as they
    are. Raises KeyError for a component that is not there.
    """
    components = dict(model.network.components)
    rows = []
    for name, qconfig in qconfigs.items():
        component = components[name]
        field = weight_field(component)
        assert field is not None, f"{name} has no weight"
        weight = np.asarray(component.fields[field])
        rounded = _round(weight, qconfig)
        components[name] = replace(component, fields={**component.fields, field: rounded})
        error = np.abs(rounded.astype(np.float64) - weight)
        rows.append(
            Rounded(
                name=name,
                kind=component.kind,
                shape=weight.shape,
                bits=qconfig.weight.bits,
                granularity=qconfig.weight.granularity,
                rms=float(np.sqrt(np.mean(np.square(weight, dtype=np.float64)))),
                mean_error=float(error.mean()),
                max_error=float(error.max()),
            )
        )
    return replace(model, network=replace(model.network, components=components)), rows


def _round(weight: NDArray[Any], qconfig: QConfig) -> NDArray[Any]:
    """``[outputs, inputs]`` as the simulation has it, in the type that it came in."""
    quantizer = WeightQuantizer(qconfig.weight, observer_factory(qconfig.weight_observer), 0)
    tensor = torch.from_numpy(np.array(weight, np.float32))
    quantizer.freeze(tensor)
    quantizer.phase = Phase.SIMULATE
    rounded: NDArray[Any] = quantizer(tensor).numpy().astype(weight.dtype)
    return rounded
