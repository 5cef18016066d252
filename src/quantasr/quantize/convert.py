"""Convert: fix every scale and turn weights into integers."""

from __future__ import annotations

import torch
from torch import Tensor

from quantasr.errors import RecipeError
from quantasr.numerics.qtypes import HALF_FROM
from quantasr.numerics.quantizers import Phase
from quantasr.quantize.prepare import LayerPlan, Prepared

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""The 16-bit types of a recipe's ``float_storage``."""


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
    nothing = not prepared.weights and not (prepared.products and prepared.products.quantizers)
    if nothing and not prepared.recipe.halves:
        native = [path for path, qconfig in prepared.native_only.items() if qconfig.mode != "float"]
        why = "no layer that it names is ever called"
        if native:
            why = f"only PyTorch's own int8 quantizes what it names, such as {native[0]}: use --engine torch"
        raise RecipeError(f"recipe {prepared.recipe.name!r} quantized nothing: {why}")
    if prepared.recipe.float_storage in HALVES:
        prepared.stored.update(_halved_weights(prepared, HALVES[prepared.recipe.float_storage]))


def _halved_weights(prepared: Prepared, dtype: torch.dtype) -> dict[str, Tensor]:
    """The float rest as its 16-bit storage will hold it."""
    module = prepared.model.module
    # A quantized weight is stored as integers; its original is still there as a parameter.
    quantized = {f"{path}.parametrizations.weight.original" for path in prepared.weights}
    return {
        name: parameter.detach().to(dtype)
        for name, parameter in module.named_parameters()
        if name not in quantized and fits_half(parameter, dtype)
    }


def fits_half(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether a float weight is worth storing in 16 bits, and within their range: 65504 in float16."""
    return weight.numel() >= HALF_FROM and bool(weight.abs().max() <= torch.finfo(dtype).max)
