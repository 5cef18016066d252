"""The weights of a Transformers model: read without running code, complete, and finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantasr.errors import ModelLoadError
from quantasr.sources.wav2vec2.masking import fresh_embedding


def load_weights(where: str, kind: Any, config: Any, hub: dict[str, Any], *, trust: bool, trained_for: str) -> Any:
    """A model of the class ``kind``, in float32, in evaluation mode.

    Weights come from safetensors; a folder that has only pickled weights needs ``trust``. Raises
    :class:`ModelLoadError` where weights are missing (was it ``trained_for`` this?) or not finite.
    """
    # The eager attention is the one whose two products are plain matrix products, in the simulation and the graph.
    options: dict[str, Any] = {"config": config, "attn_implementation": "eager", "dtype": torch.float32, **hub}
    folder = Path(where)
    if folder.is_dir() and not trust and not list(folder.glob("*.safetensors")) and list(folder.glob("*.bin")):
        raise ModelLoadError(
            f"{where}: has only pickled weights, which can run code when read: convert them, or allow with --trust"
        )
    module, info = kind.from_pretrained(
        where, use_safetensors=None if trust else True, output_loading_info=True, **options
    )
    # SpecAugment's embedding is for training alone, so many published checkpoints lack it.
    missing = [key for key in info["missing_keys"] if not key.endswith("masked_spec_embed")]
    if missing:
        raise ModelLoadError(
            f"{where}: {len(missing)} weights are missing, the first is {sorted(missing)[0]}: is it {trained_for}?"
        )
    for key in set(info["missing_keys"]) - set(missing):
        embedding = module.get_parameter(key)
        embedding.data = fresh_embedding(len(embedding))  # transformers' own is another one every time
    _check(where, module)
    return module.eval()


def _check(where: str, module: nn.Module) -> None:
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not bool(torch.isfinite(tensor).all()):
            raise ModelLoadError(f"{where}: weight {name} has NaN or infinite values: the checkpoint is broken")
