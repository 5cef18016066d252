"""What is exported of a Transformers CTC model, with the same values in a batch as alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quantasr.sources.asr_model import FrameGraph


class CtcGraph(FrameGraph):
    """Features (and lengths, where padding is allowed) to log-probs (and frame counts).

    Padding never reaches a frame: where transformers itself would let it (adapters, Data2Vec's stacked positional
    convolutions, a batch norm before one), padded frames are zeros, as a convolution sees them behind the end of a
    recording that is alone.
    """

    def __init__(self, model: nn.Module, padded_batches: bool) -> None:
        super().__init__()
        self.model = model
        self.padded_batches = padded_batches
        self._frames: Tensor | None = None  # of the batch at hand, before any adapter
        if padded_batches:
            base: Any = model.base_model
            # transformers marks the last frame of each row and spreads it by cumulative sums; a comparison gives
            # the same mask and is one small node in the graph.
            base._get_feature_vector_attention_mask = partial(_frame_mask, base)
            self._shield_convolutions()

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if lengths is None:
            return torch.log_softmax(self.model(features).logits.float(), dim=-1)
        mask = _within(lengths, features.shape[1]).to(torch.int64)
        self._frames = convolved_lengths(self.model.config, lengths)
        try:
            with _TraceableMasking():
                logits = self.model(features, attention_mask=mask).logits
        finally:
            frames, self._frames = self._frames, None
        return torch.log_softmax(logits.float(), dim=-1), self._adapted(frames)

    def frame_counts(self, lengths: Tensor) -> Tensor:
        """Frames that the feature extractor and the adapter make of ``lengths``."""
        return self._adapted(convolved_lengths(self.model.config, lengths))

    def _adapted(self, frames: Tensor) -> Tensor:
        for _ in range(adapter_layers(self.model.config)):
            frames = adapted_lengths(self.model.config, frames)
        return frames

    def _shield_convolutions(self) -> None:
        for part in self.model.modules():
            stacked = type(part).__name__ == "Data2VecAudioPositionalConvLayer"
            if stacked or getattr(part, "batch_norm", None) is not None:  # HuBERT's conv_pos_batch_norm
                self._shield(part, 0)
        adapter = getattr(self.model.base_model, "adapter", None)
        for depth, layer in enumerate(adapter.layers if adapter is not None else ()):
            self._shield(layer, depth)

    def _shield(self, part: nn.Module, depth: int) -> None:
        """Zero the padding of every convolution's input in ``part``, which stands behind ``depth`` adapter layers."""
        for layer in part.modules():
            if isinstance(layer, nn.Conv1d):
                layer.register_forward_pre_hook(partial(self._zero_padding, depth))

    def _zero_padding(self, depth: int, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        frames = self._frames
        if frames is None:
            return args
        for _step in range(depth):
            frames = adapted_lengths(self.model.config, frames)
        x = args[0]
        return (x.masked_fill(~_within(frames, x.shape[-1])[:, None], 0.0), *args[1:])


class _TraceableMasking(TorchFunctionMode):
    """Turns ``hidden[~mask] = 0`` into ``masked_fill_``: the same values, but no NonZero and ScatterND in the graph."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__setitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            target, mask, value = args
            if not isinstance(value, Tensor):
                mask = mask.reshape(*mask.shape, *[1] * (target.ndim - mask.ndim))
                return target.masked_fill_(mask, value)
        return func(*args, **(kwargs or {}))


def _within(lengths: Tensor, size: int) -> Tensor:
    """Boolean ``[batch, size]``: which positions are before the end of their row."""
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


def _frame_mask(model: Any, frames: int, attention_mask: Tensor, add_adapter: bool | None = None) -> Tensor:
    """Boolean ``[batch, frames]``: which frames of the feature extractor come from the recording, not from padding."""
    return _within(convolved_lengths(model.config, attention_mask.sum(-1)), frames)


def convolved_lengths(config: Any, lengths: Tensor) -> Tensor:
    """Frames that the feature extractor makes of ``lengths`` samples; features that are frames already stay."""
    for kernel, stride in zip(getattr(config, "conv_kernel", ()), getattr(config, "conv_stride", ()), strict=True):
        lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
    return lengths


def adapter_layers(config: Any) -> int:
    """How many layers of an adapter shorten the frames, 0 without one."""
    return int(config.num_adapter_layers) if getattr(config, "add_adapter", False) else 0


def adapted_lengths(config: Any, lengths: Tensor) -> Tensor:
    """Frames behind one layer of the adapter."""
    spare = 2 * _adapter_padding(config) - config.adapter_kernel_size
    return torch.div(lengths + spare, config.adapter_stride, rounding_mode="floor") + 1


def frames_adapted(config: Any, frames: int) -> int:
    """How many frames one layer of the adapter needs to give ``frames``."""
    return int((frames - 1) * config.adapter_stride + config.adapter_kernel_size - 2 * _adapter_padding(config))


def _adapter_padding(config: Any) -> int:
    return int(config.adapter_stride // 2) if config.model_type == "wav2vec2-bert" else 1
