"""SpecAugment inside of Transformers' models: in training they hide stretches of time from themselves.

Park et al., arXiv 1904.08779. The features of such models are waves, in which nothing can be masked beforehand. Which
frames are hidden, numpy's global generator decides.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_EMBEDDING = "masked_spec_embed"
"""What stands in a masked frame's place; learned."""


def guard_masking(module: nn.Module) -> None:
    """Let recordings pass that are shorter than one stretch; transformers raises on them."""
    for part in _masking(module):
        part._mask_hidden_states = partial(_mask_what_fits, part, part._mask_hidden_states)


def set_time_masking(module: nn.Module, probability: float, length: int) -> bool:
    """Hide stretches of ``length`` frames, ``probability`` of all frames; 0 for none. False where no part can.

    A part without an embedding for hidden frames gets one, drawn with a seed of its own.
    """
    parts = _masking(module)
    for part in parts:
        config = part.config
        if probability > 0 and not getattr(config, "apply_spec_augment", True):
            # It was off as a whole: only what was asked for is switched on.
            config.apply_spec_augment, config.mask_feature_prob = True, 0.0
        config.mask_time_prob, config.mask_time_length = probability, length
        if probability > 0 and not hasattr(part, _EMBEDDING):
            setattr(part, _EMBEDDING, nn.Parameter(fresh_embedding(config.hidden_size).to(part.device)))
    return bool(parts)


def fresh_embedding(size: int) -> Tensor:
    """What an embedding of hidden frames starts from: the same for every process and every time."""
    return torch.rand(size, generator=torch.Generator().manual_seed(0))


def _masking(module: nn.Module) -> list[Any]:
    return [part for part in module.modules() if hasattr(part, "_mask_hidden_states")]


def _mask_what_fits(part: Any, mask: Any, hidden_states: Tensor, *arguments: Any, **options: Any) -> Tensor:
    if part.training and hidden_states.shape[1] < part.config.mask_time_length:
        return hidden_states
    masked: Tensor = mask(hidden_states, *arguments, **options)
    return masked
