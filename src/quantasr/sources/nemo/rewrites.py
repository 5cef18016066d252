"""Parts of NeMo's models computed in another way, with the same result, for the sake of tracing and speed."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quantasr.sources.nemo.conformer import rewrite_conformer
from quantasr.sources.nemo.flat import batch_norm, flat_convolution
from quantasr.sources.nemo.lstm import LinearLstm


def rewrite(module: nn.Module) -> None:
    """Give every part that has a better way its own ``forward``; weights and module paths stay as they are.

    But for a prediction network's LSTM: it becomes linear layers, which a graph can hold in int8.
    """
    for found in list(module.modules()):
        part: Any = found
        if type(part).__name__ == "ConvASREncoder":
            _rewrite_convolutional(part)
        elif type(part).__name__ == "ConformerEncoder":
            rewrite_conformer(part)
        elif type(part).__name__ == "LSTMDropout":
            part.lstm = LinearLstm(part.lstm)


@dataclass
class Masks:
    """Which frames are speech, worked out once for each tensor of lengths in a run of the encoder."""

    known: list[tuple[Tensor, int, Tensor]] = field(default_factory=list)

    def valid(self, lengths: Tensor, frames: Tensor) -> Tensor:
        """``[batch, 1, 1, time]`` of the type of ``frames`` ``[..., time]``: 1 before each row's end, then 0."""
        size = frames.shape[-1]
        for known, known_size, mask in self.known:
            if known is lengths and known_size == size:
                return mask
        mask = (torch.arange(size, device=lengths.device)[None, :] < lengths[:, None])[:, None, None].to(frames.dtype)
        self.known.append((lengths, size, mask))
        return mask


def _rewrite_convolutional(encoder: Any) -> None:
    """Jasper, QuartzNet, Citrinet: 2-d convolutions of height 1, masked only where they can see padding.

    NeMo multiplies the input of every convolution with a mask, made anew, and looks the frame numbers up in a buffer,
    which a trace would freeze at one length. A convolution of one frame sees no padding in a frame that is speech, so
    with separable convolutions half of the masks are for nothing. In 2-d, OpenVINO keeps the channels innermost, in 1-d
    it brings the frames into another layout before each depthwise convolution: QuartzNet 15x5, 10 s, took it 30 ms in
    1-d and 25 ms in 2-d.
    """
    if any(block.is_adapter_available() for block in encoder.encoder):
        return  # adapters are linear layers over three axes
    masks = Masks()
    encoder.forward = partial(_convolutional_encoder, encoder, masks)
    for found in encoder.modules():
        part: Any = found
        name = type(part).__name__
        if name == "MaskedConv1d":
            part.forward = partial(_masked_convolution, part, masks)
        elif isinstance(found, nn.Conv1d):
            # The module is still what is called, so its input and weight still meet their quantizers.
            part._conv_forward = partial(flat_convolution, part)
        elif isinstance(found, nn.BatchNorm1d):
            part.forward = partial(batch_norm, part)
        elif name == "GroupShuffle":
            part.forward = partial(_group_shuffle, part)
        elif name == "SqueezeExcite":
            part.forward = partial(_squeeze_excite, part, masks)


def _convolutional_encoder(encoder: Any, masks: Masks, audio_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """``[batch, bins, frames]`` -> ``[batch, channels, frames']``, and how many frames of each row are speech."""
    masks.known.clear()
    hidden, length = encoder.encoder(([audio_signal.unsqueeze(2)], length))
    masks.known.clear()
    return hidden[-1].flatten(2), length


def _masked_convolution(layer: Any, masks: Masks, x: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
    """On ``[batch, channels, 1, time]``."""
    # In training the norm behind a convolution of one frame makes its statistics of the padding too.
    if layer.use_mask and (layer.conv.kernel_size != (1,) or layer.training):
        x = x * masks.valid(lens, x)
    if layer.pad_layer is not None:
        x = layer.pad_layer(x)
    batch, _, _, time = x.shape
    if layer.heads != -1:  # the same kernels for every group of channels
        x = x.reshape(-1, layer.heads, 1, time)
    out = layer.conv(x)
    if layer.heads != -1:
        out = out.reshape(batch, layer.real_out_channels, 1, -1)
    return out, layer.get_seq_len(lens)


def _group_shuffle(layer: Any, x: Tensor) -> Tensor:
    batch, channels, _, time = x.shape
    return x.reshape(batch, layer.groups, -1, time).transpose(1, 2).reshape(batch, channels, 1, time)


def _squeeze_excite(layer: Any, masks: Masks, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Scale each channel by what a small network makes of all channels' means over the speech."""
    mask = masks.valid(lengths, x)
    mean = (x * mask).sum((2, 3)) / mask.sum((2, 3))
    return x * torch.sigmoid(layer.fc(mean))[:, :, None, None], lengths
