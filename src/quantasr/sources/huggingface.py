"""Hugging Face Transformers CTC models (``AutoModelForCTC``) as an :class:`AsrModel`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quantasr.errors import ModelLoadError
from quantasr.sources.asr_model import AsrModel
from quantasr.speech.frontend import FbankFrontend, Frontend, WaveFrontend
from quantasr.speech.tokenizer import CtcTokenizer

# config.json's model_type -> the family whose built-in recipes fit.
FAMILIES = {
    "wav2vec2": "wav2vec2",
    "hubert": "wav2vec2",
    "wavlm": "wav2vec2",
    "data2vec-audio": "wav2vec2",
    "wav2vec2-bert": "wav2vec2_bert",
}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def recognises(where: str) -> bool:
    """Whether ``where`` is a folder with a ``config.json`` or looks like a hub id."""
    path = Path(where)
    return (path / "config.json").is_file() if path.exists() else bool(_HUB_ID.fullmatch(where))


def load(where: str, *, revision: str | None = None, trust: bool = False) -> AsrModel:
    """Load a CTC model with its feature extractor and tokenizer.

    Weights come from safetensors; a folder that has only pickled weights needs ``trust``. Raises
    :class:`ModelLoadError` when anything is missing, of another kind, or not finite.
    """
    try:
        import transformers
    except ImportError:
        raise ModelLoadError("Hugging Face models need transformers: pip install 'quantasr[huggingface]'") from None
    if Path(where).exists() and not (Path(where) / "config.json").is_file():
        raise ModelLoadError(f"{where}: not a Hugging Face model folder: it has no config.json")
    hub = {"revision": revision} if revision else {}
    with _load_errors(where), _quiet():
        config = transformers.AutoConfig.from_pretrained(where, **hub)
    if config.model_type not in FAMILIES:
        raise ModelLoadError(
            f"{where}: model_type {config.model_type!r} is not supported; supported are {', '.join(FAMILIES)}"
        )
    if config.vocab_size is None or not any(name.endswith("ForCTC") for name in config.architectures or ["ForCTC"]):
        raise ModelLoadError(
            f"{where}: {(config.architectures or ['the model'])[0]} has no CTC head: fine-tune it for CTC first"
        )
    with _load_errors(where), _quiet():
        extractor = transformers.AutoFeatureExtractor.from_pretrained(where, **hub)
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **hub)
        module = _load_weights(where, config, hub, trust)
    _check_weights(where, module)
    frontend = _frontend(where, extractor)
    padded = isinstance(frontend, FbankFrontend) or bool(extractor.return_attention_mask)
    _call_projections_as_modules(module)
    graph = CtcGraph(module, padded)
    frame_samples = _frame_samples(config, frontend)
    return AsrModel(
        name=Path(where).name,
        family=FAMILIES[config.model_type],
        module=module,
        graph=graph,
        frontend=frontend,
        tokenizer=_tokenizer(where, tokenizer, config.vocab_size),
        padded_batches=padded,
        frame_seconds=frame_samples / frontend.sample_rate,
        min_samples=_min_samples(config, frontend),
        provenance={
            "source": "huggingface",
            "model": where,
            "revision": revision,
            "architecture": type(module).__name__,
            "model_type": config.model_type,
            "parameters": sum(p.numel() for p in module.parameters()),
            "transformers": transformers.__version__,
        },
    )


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


def _call_projections_as_modules(module: nn.Module) -> None:
    """Let WavLM's attention call its projections instead of handing their weights to one fused function.

    A layer that is never called has no input that could be quantized. The arithmetic is the same
    (``F.multi_head_attention_forward`` with separate projections).
    """
    for part in module.modules():
        if type(part).__name__ == "WavLMAttention":
            part.torch_multi_head_self_attention = partial(_wavlm_attention, part)  # type: ignore[assignment]


def _wavlm_attention(
    attention: Any, hidden_states: Tensor, attention_mask: Tensor | None, gated_position_bias: Tensor
) -> tuple[Tensor, None]:
    batch, frames, width = hidden_states.shape
    heads, size = attention.num_heads, attention.head_dim

    def split(x: Tensor) -> Tensor:
        return x.reshape(batch, frames, heads, size).transpose(1, 2)

    q = split(attention.q_proj(hidden_states) * size**-0.5)
    k, v = split(attention.k_proj(hidden_states)), split(attention.v_proj(hidden_states))
    scores = torch.matmul(q, k.transpose(2, 3)) + gated_position_bias.reshape(batch, heads, frames, frames)
    if attention_mask is not None:
        scores = scores.masked_fill(attention_mask.ne(1)[:, None, None, :], torch.finfo(scores.dtype).min)
    context = torch.matmul(torch.softmax(scores, dim=-1), v)
    return attention.out_proj(context.transpose(1, 2).reshape(batch, frames, width)), None


def _load_weights(where: str, config: Any, hub: dict[str, Any], trust: bool) -> nn.Module:
    import transformers

    # The eager attention is the one whose two products are plain matrix products, in the simulation and the graph.
    options: dict[str, Any] = {"config": config, "attn_implementation": "eager", "dtype": torch.float32, **hub}
    folder = Path(where)
    if folder.is_dir() and not trust and not list(folder.glob("*.safetensors")) and list(folder.glob("*.bin")):
        raise ModelLoadError(
            f"{where}: has only pickled weights, which can run code when read: convert them, or allow with --trust"
        )
    module, info = transformers.AutoModelForCTC.from_pretrained(
        where, use_safetensors=None if trust else True, output_loading_info=True, **options
    )
    # SpecAugment's embedding is for training alone, so many published checkpoints lack it.
    missing = [key for key in info["missing_keys"] if not key.endswith("masked_spec_embed")]
    if missing:
        raise ModelLoadError(
            f"{where}: {len(missing)} weights are missing, the first is {sorted(missing)[0]}: is it fine-tuned for CTC?"
        )
    loaded: nn.Module = module.eval()
    return loaded


def _check_weights(where: str, module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ModelLoadError(f"{where}: weight {name} has NaN or infinite values: the checkpoint is broken")


def _frontend(where: str, extractor: Any) -> Frontend:
    kind = type(extractor).__name__
    if kind == "Wav2Vec2FeatureExtractor":
        return WaveFrontend(int(extractor.sampling_rate), bool(extractor.do_normalize), float(extractor.padding_value))
    if kind == "SeamlessM4TFeatureExtractor":
        return FbankFrontend(
            sample_rate=int(extractor.sampling_rate),
            num_mel_bins=int(extractor.num_mel_bins),
            stride=int(extractor.stride),
            padding_value=float(extractor.padding_value),
        )
    raise ModelLoadError(f"{where}: feature extractor {kind} is not supported")


def _tokenizer(where: str, tokenizer: Any, vocab_size: int) -> CtcTokenizer:
    if type(tokenizer).__name__ != "Wav2Vec2CTCTokenizer":
        raise ModelLoadError(
            f"{where}: tokenizer {type(tokenizer).__name__} is not a CTC tokenizer (Wav2Vec2CTCTokenizer)"
        )
    tokens: list[str] = []
    for i in range(vocab_size):
        token = tokenizer.convert_ids_to_tokens(i)
        # Heads wider than the vocabulary exist; their spare outputs still need names of their own.
        tokens.append(token if token is not None and token not in tokens else f"<{i}>")
    if tokenizer.pad_token_id is None:
        raise ModelLoadError(f"{where}: the tokenizer has no pad token, which is the CTC blank of these models")
    return CtcTokenizer(
        tokens=tuple(tokens),
        blank_id=int(tokenizer.pad_token_id),
        word_delimiter=tokenizer.word_delimiter_token,
        delimiter_text=tokenizer.replace_word_delimiter_char,
        special_ids=frozenset(i for i in tokenizer.all_special_ids if i < vocab_size),
        lowercase=bool(tokenizer.do_lower_case),
        unk_token=str(tokenizer.unk_token or ""),
        clean_up=bool(tokenizer.clean_up_tokenization_spaces),
    )


def _frame_samples(config: Any, frontend: Frontend) -> float:
    """Samples from one row of log-probs to the next."""
    samples = 1.0
    for stride in getattr(config, "conv_stride", ()):
        samples *= stride
    if isinstance(frontend, FbankFrontend):
        samples *= frontend.sample_rate * 0.01 * frontend.stride
    if getattr(config, "add_adapter", False):
        samples *= config.adapter_stride**config.num_adapter_layers
    return samples


def _min_samples(config: Any, frontend: Frontend) -> int:
    """The shortest wave that gives one frame: what the filter bank needs, or the receptive field of the convolutions."""
    if isinstance(frontend, FbankFrontend):
        return frontend.min_samples
    field = 1
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        field = (field - 1) * stride + kernel
    return field


@contextmanager
def _load_errors(where: str) -> Iterator[None]:
    """Say in one line what transformers says in many."""
    try:
        yield
    except ModelLoadError:
        raise
    except json.JSONDecodeError as error:
        raise ModelLoadError(f"{where}: a configuration file is not JSON: {error}") from None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelLoadError(f"{where}: cannot load it: {first}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bar and advice out of our output."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
