"""Parts of SpeechBrain's models computed in another way, with the same result, for quantization's and speed's sake."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from quantasr.errors import ArtifactError
from quantasr.sources.wav2vec2.rewrites import rewrite as rewrite_wav2vec2


def rewrite(module: nn.Module) -> None:
    """Give every part that has a better way its own ``forward``; weights and module paths stay as they are."""
    _use_eager_attention(module)
    rewrite_wav2vec2(module)
    for path, part in module.named_modules():
        if type(part).__name__ in _PYTHON_LOOPS:
            part.register_forward_pre_hook(_Refusal(path))


# Recurrent layers that SpeechBrain runs step by step in Python: a trace would hold one length's steps.
_PYTHON_LOOPS = ("LiGRU", "SLiGRU", "QuasiRNN", "ESN")


class _Refusal:
    """Stops the export of a layer that cannot be traced; otherwise it runs as ever."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self, part: nn.Module, _: Any) -> None:
        if torch.onnx.is_in_onnx_export():
            raise ArtifactError(
                f"{self._path}: {type(part).__name__} is a loop over frames in Python, which no graph holds: quantize "
                "the model for PyTorch instead (--engine torch)"
            )


def _use_eager_attention(module: nn.Module) -> None:
    """Have transformers' attention compute plain matrix products, in the simulation and in the graph."""
    from transformers import PreTrainedModel

    for part in module.modules():
        if isinstance(part, PreTrainedModel):
            part.set_attn_implementation("eager")
