"""Convert: fix every scale and turn weights into integers."""

from __future__ import annotations

import torch
from torch import Tensor

from quantasr.errors import RecipeError
from quantasr.numerics.qtypes import FLOAT16_FROM
from quantasr.numerics.quantizers import Phase
from quantasr.quantize.prepare import LayerPlan, Prepared


def convert(prepared: Prepared) -> None:
    """Fix the scales of a calibrated model and compute the integers of its weights, in place.

    From here on, :attr:`Phase.SIMULATE` gives what the exported graph computes. Raises
    :class:`quantasr.errors.CalibrationError` when an input was never observed.
    """
    module = prepared.model.module
    for quantizer in prepared.inputs.values():
        quantizer.freeze()
    for path, weight in prepared.weights.items():
        weight.phase = Phase.FLOAT
        weight.freeze(module.get_submodule(path).weight)  # type: ignore[arg-type]
    if prepared.products is not None:
        prepared.products.close()
        for path, (left, right) in prepared.products.quantizers.items():
            left.freeze()
            right.freeze()
            prepared.plan.append(LayerPlan(path, "attention_product", prepared.recipe.defaults, ()))
    if not prepared.weights and not (prepared.products and prepared.products.quantizers):
        raise RecipeError(f"recipe {prepared.recipe.name!r} quantized nothing: no layer that it names is ever called")
    if prepared.recipe.float_storage == "fp16":
        prepared.stored.update(_float16_weights(prepared))


def _float16_weights(prepared: Prepared) -> dict[str, Tensor]:
    """The float rest as its float16 storage will hold it."""
    module = prepared.model.module
    # A quantized weight is stored as integers; its original is still there as a parameter.
    quantized = {f"{path}.parametrizations.weight.original" for path in prepared.weights}
    return {
        name: parameter.detach().half()
        for name, parameter in module.named_parameters()
        if name not in quantized and fits_float16(parameter)
    }


def fits_float16(weight: Tensor) -> bool:
    """Whether a float weight is worth storing in float16, and within its range (65504)."""
    largest = torch.finfo(torch.float16).max
    return weight.numel() >= FLOAT16_FROM and bool(weight.abs().max() <= largest)
