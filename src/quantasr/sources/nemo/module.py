"""NeMo's own encoder and heads, built and filled without NeMo's ``restore_from``, which would run what a file says.

``restore_from`` instantiates any class that the configuration names, and reads the weights with pickle.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quantasr.errors import ModelLoadError
from quantasr.sources.nemo.config import NemoConfig
from quantasr.sources.nemo.frames import convolved_in_time, stacked
from quantasr.sources.nemo.transducer_config import TransducerConfig

# Parts that hold weights and that nothing runs: features, augmentation, losses, metrics.
_UNUSED = ("preprocessor.", "spec_augmentation.", "loss.", "ctc_loss.", "wer.", "_wer.", "ctc_wer.")

# Norms of a frame alone; all others of NeMo's are over time.
_NORMS = ("batch", "batch_norm", "fused_batch_norm", "layer_norm")


class NemoModel(nn.Module):
    """An encoder and its heads at the paths that they have in NeMo's model, and nothing else of it.

    NeMo's model is a Lightning module with losses, metrics and augmentation, none of which runs or is exported.
    A transducer has ``decoder``, its prediction network, and ``joint``; a CTC head is called ``decoder`` where it is
    alone, and else ``ctc_decoder``.
    """

    def __init__(self, encoder: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.encoder = encoder
        for name, head in heads.items():
            self.add_module(name, head)


@contextmanager
def quiet() -> Iterator[None]:
    """Import and use NeMo without its advice, its tracers' complaints and its warnings."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("nv_one_logger", "OneLogger"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def require_nemo(where: str) -> str:
    """NeMo's version; raises :class:`ModelLoadError` with the command that installs it."""
    try:
        with quiet():
            import nemo.collections.asr
            from nemo.utils import logging as nemo_logging

            nemo_logging.setLevel(logging.ERROR)
    except ImportError as error:
        missing = f" ({error.name} is missing)" if error.name and not error.name.startswith("nemo") else ""
        raise ModelLoadError(f"{where}: NeMo models need NeMo{missing}: pip install 'quantasr[nemo]'") from None
    version: str = nemo.__version__
    return version


@contextmanager
def fits(where: str, config: NemoConfig) -> Iterator[None]:
    """Say in one line that NeMo's classes cannot do with what a configuration gives them."""
    try:
        with quiet():
            yield
    except (
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        RuntimeError,
        ArithmeticError,
        AssertionError,
        MemoryError,
    ) as error:
        reason = str(error).split("\n", 1)[0][:200] or type(error).__name__
        raise ModelLoadError(f"{where}: NeMo cannot build or run its {config.encoder_class}: {reason}") from error


def build(where: str, config: NemoConfig, tokens: int) -> NemoModel:
    """The model with random weights; ``tokens`` are those without the blank."""
    require_nemo(where)
    from nemo.collections.asr import modules

    arguments = dict(config.encoder)
    _refuse_unsupported(where, arguments)
    if config.encoder_class == "ConformerEncoder":
        # The other attention is one fused function, whose two products could not be quantized.
        arguments["use_pytorch_sdpa"] = False
        # Processes that train together run batches of their own: none may wait for the others' lengths.
        arguments["sync_max_audio_length"] = False
    heads: dict[str, Any] = {}
    with fits(where, config):
        encoder = getattr(modules, config.encoder_class)(**arguments)
        if config.transducer is not None:
            heads["decoder"], heads["joint"] = _build_transducer(config.transducer, encoder, tokens)
        if config.head:
            heads[config.head] = build_head(config, encoder, tokens)
    _mend_subsampling(encoder)
    if config.head and (outputs := heads[config.head].num_classes_with_blank) != tokens + 1:
        raise ModelLoadError(
            f"{where}: its decoder has {outputs} outputs, but its tokenizer has {tokens} tokens, and a blank"
        )
    return NemoModel(encoder, heads).eval()


def _build_transducer(config: TransducerConfig, encoder: Any, tokens: int) -> tuple[Any, Any]:
    """Prediction network and joint, with random weights."""
    from nemo.collections.asr import modules

    decoder = getattr(modules, config.prediction_class)(**{**config.prediction, "vocab_size": tokens})
    jointnet = {
        **(config.joint.get("jointnet") or {}),
        "encoder_hidden": encoder._feat_out,
        "pred_hidden": decoder.pred_hidden,
    }
    joint = getattr(modules, config.joint_class)(
        **{
            **config.joint,
            "jointnet": jointnet,
            "num_classes": tokens,
            "vocabulary": None,
            "fuse_loss_wer": False,  # which computes losses while it trains
            "experimental_fuse_loss_wer": None,
            "preserve_memory": False,
        }
    )
    return decoder, joint


def build_head(config: NemoConfig, encoder: Any, tokens: int) -> Any:
    """The CTC head behind an encoder, with random weights."""
    from nemo.collections.asr.modules import ConvASRDecoder

    head = dict(config.decoder)
    classes = head.pop("num_classes", -1)
    return ConvASRDecoder(
        **{
            **head,
            "feat_in": head.get("feat_in") or encoder._feat_out,
            "num_classes": classes if isinstance(classes, int) and classes > 0 else tokens,
            "vocabulary": None,
        }
    )


def _refuse_unsupported(where: str, encoder: dict[str, Any]) -> None:
    """Options of encoders that let padding into what a model hears, so that NeMo's own text depends on the batch."""
    norm = encoder.get("conv_norm_type") or encoder.get("normalization_mode") or "batch"
    if norm not in _NORMS:
        raise ModelLoadError(f"{where}: its norm {norm!r} is not supported: only {', '.join(_NORMS)} ignore padding")
    if encoder.get("conv_mask", True) is not True:
        raise ModelLoadError(f"{where}: conv_mask: false is not supported: its convolutions run over padding")
    if encoder.get("global_tokens"):
        raise ModelLoadError(f"{where}: attention with global tokens is not supported: it reads padding")
    if encoder.get("quantize"):
        raise ModelLoadError(f"{where}: has quantizers of NVIDIA's pytorch-quantization inside; take the float model")


def _mend_subsampling(encoder: Any) -> None:
    """Let the subsamplings run that raise in NeMo 3.0, and stacking give each row of a batch what it gets alone.

    NeMo 3.0's masking knows only two-dimensional convolutions, and its stacking counts frames by the longest row.
    """
    subsampling: Any = getattr(encoder, "pre_encode", nn.Identity())
    for layer in subsampling.modules():
        if isinstance(layer, nn.MaxPool2d):
            # As a convolution has them; a frame more on the right counts the last window, which may be half.
            layer.kernel_size, layer.stride = (2, 2), (2, 2)
            layer.__dict__ |= {"_left_padding": 0, "_right_padding": 1}
    if type(subsampling).__name__ == "StackingSubsampling":
        subsampling.forward = partial(_stack_frames, subsampling)
    if getattr(subsampling, "conv2d_subsampling", True) is False:
        subsampling.forward = partial(_convolve_in_time, subsampling)


def _convolve_in_time(subsampling: Any, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """``[batch, frames, bins]``, ``[batch]`` -> the same, subsampled; padding is zero in front of every layer."""
    x = x.transpose(1, 2)
    for layer in subsampling.conv:
        x = layer(x * _mask(x, lengths))
        lengths = convolved_in_time(subsampling, layer, lengths)
    return (x * _mask(x, lengths)).transpose(1, 2), lengths


def _stack_frames(subsampling: Any, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """``[batch, frames, bins]``, ``[batch]`` -> the same, subsampled; last frames that fill no stack are left out.

    So they are in NeMo, whose preprocessor adds a frame of padding to each recording: its count is rounded down.
    """
    factor = subsampling.subsampling_factor
    if subsampling.pre_norm is not None:
        x = subsampling.pre_norm(x)
    batch, frames, bins = x.shape
    stacks = frames // factor
    x = subsampling.proj_out(x[:, : stacks * factor].reshape(batch, stacks, factor * bins))
    return x, stacked(subsampling, lengths)


def _mask(x: Tensor, lengths: Tensor) -> Tensor:
    """``[batch, 1, frames]``: 1 for frames of the recording, 0 for padding."""
    return (torch.arange(x.shape[-1], device=x.device)[None] < lengths[:, None])[:, None].to(x.dtype)


def fill(where: str, model: NemoModel, config: NemoConfig, state: dict[str, Tensor]) -> None:
    """Put the weights in; raises :class:`ModelLoadError` unless they are exactly those of the model, and finite."""
    mine = tuple(f"{name}." for name, _ in model.named_children())
    unused: tuple[str, ...] = _UNUSED
    if config.transducer is None:  # what a CTC model's file may have besides
        unused = (*unused, "joint.") if config.head == "decoder" else (*unused, "joint.", "decoder.")
    weights = {key: value for key, value in state.items() if key.startswith(mine)}
    wanted = model.state_dict()
    missing = sorted(set(wanted) - set(weights))
    if missing:
        raise ModelLoadError(f"{where}: {len(missing)} weights are missing, the first is {missing[0]}")
    strange = [key for key in state if key not in wanted and not key.startswith(unused)]
    if strange:
        raise ModelLoadError(
            f"{where}: {len(strange)} weights belong to no part of the model, the first is {sorted(strange)[0]}"
        )
    for key, tensor in wanted.items():
        found = weights[key]
        if found.shape != tensor.shape:
            raise ModelLoadError(
                f"{where}: weight {key} has the shape {list(found.shape)}, but the configuration makes it "
                f"{list(tensor.shape)}"
            )
        if found.is_floating_point() and not bool(torch.isfinite(found).all()):
            raise ModelLoadError(f"{where}: weight {key} has NaN or infinite values: the checkpoint is broken")
    model.load_state_dict(weights)


def subsampling_factor(model: Any, config: NemoConfig) -> int:
    """Frames of features for each frame of log-probs."""
    encoder = model.encoder
    if config.encoder_class == "ConformerEncoder":
        reduction = config.encoder.get("reduction_factor", 1) if config.encoder.get("reduction") else 1
        return int(encoder.subsampling_factor * reduction)
    factor = 1
    for block in encoder.encoder:
        # Each repetition in a block may have the stride, which NeMo's own count leaves out.
        for layer in block.mconv:
            if type(layer).__name__ == "MaskedConv1d":
                factor *= int(layer.conv.stride[0])
    return factor
