"""What is exported of a Transformers CTC model."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class CtcGraph(nn.Module):
    """What is exported: features (and lengths, where padding is allowed) to log-probs (and frame counts)."""

    def __init__(self, model: nn.Module, padded_batches: bool) -> None:
        super().__init__()
        self.model = model
        self.padded_batches = padded_batches
        if padded_batches:
            base = model.base_model
            # transformers marks the last frame of each row and spreads it by cumulative sums; a comparison gives
            # the same mask and is one small node in the graph.
            base._get_feature_vector_attention_mask = partial(_frame_mask, base)  # type: ignore[assignment]

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if lengths is None:
            return torch.log_softmax(self.model(features).logits.float(), dim=-1)
        positions = torch.arange(features.shape[1], device=features.device)
        mask = (positions[None, :] < lengths[:, None]).to(torch.int64)
        with _TraceableMasking():
            logits = self.model(features, attention_mask=mask).logits
        return torch.log_softmax(logits.float(), dim=-1), _frame_counts(self.model, lengths)


class _TraceableMasking(TorchFunctionMode):
    """Turns ``hidden[~mask] = 0`` into ``masked_fill_``: the same values, without NonZero and ScatterND in the graph."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__setitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            target, mask, value = args
            if not isinstance(value, Tensor):
                mask = mask.reshape(*mask.shape, *[1] * (target.ndim - mask.ndim))
                return target.masked_fill_(mask, value)
        return func(*args, **(kwargs or {}))


def _frame_counts(model: nn.Module, lengths: Tensor) -> Tensor:
    config: Any = model.config
    if hasattr(config, "conv_kernel"):
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
    if getattr(config, "add_adapter", False):
        for _ in range(config.num_adapter_layers):
            if config.model_type == "wav2vec2-bert":
                padding = 2 * (config.adapter_kernel_size // 2) - config.adapter_kernel_size
                lengths = torch.div(lengths + padding, config.adapter_stride, rounding_mode="floor") + 1
            else:
                lengths = torch.div(lengths - 1, config.adapter_stride, rounding_mode="floor") + 1
    return lengths


def _frame_mask(model: Any, frames: int, attention_mask: Tensor, add_adapter: bool | None = None) -> Tensor:
    """Boolean ``[batch, frames]``: which frames of the feature extractor come from the recording, not from padding."""
    lengths = attention_mask.sum(-1)
    for kernel, stride in zip(model.config.conv_kernel, model.config.conv_stride, strict=True):
        lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
    return torch.arange(frames, device=lengths.device)[None, :] < lengths[:, None]
