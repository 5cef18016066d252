"""NeMo CTC models at their real sizes, random weights, saved as ``.nemo`` files by NeMo itself.

The sizes are those of the configurations in NeMo's repository (examples/asr/conf: quartznet_15x5, citrinet_512,
conformer_ctc_bpe in the sizes S and L, fast-conformer_ctc_bpe in L). Vocabularies have as many entries as the published
English models; which entries does not matter here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

_MODULES = "nemo.collections.asr.modules"
Parts = tuple[dict[str, Any], int, int]
"""An encoder's configuration, its width, and the bins that it hears."""


def _block(filters: int, kernel: int, **options: Any) -> dict[str, Any]:
    block = {"filters": filters, "repeat": 5, "kernel": [kernel], "stride": [1], "dilation": [1], "dropout": 0.0}
    return {**block, "residual": True, "separable": True, **options}


def _convolutional(blocks: list[dict[str, Any]], bins: int) -> dict[str, Any]:
    return {
        "_target_": f"{_MODULES}.ConvASREncoder",
        "feat_in": bins,
        "activation": "relu",
        "conv_mask": True,
        "jasper": blocks,
    }


def quartznet() -> Parts:
    """QuartzNet 15x5 (Kriman et al., arXiv 1910.10261)."""
    blocks = [_block(256, 33, repeat=1, stride=[2], residual=False)]
    for filters, kernel in ((256, 33), (256, 39), (512, 51), (512, 63), (512, 75)):
        blocks += [_block(filters, kernel)] * 3
    blocks.append(_block(512, 87, repeat=1, dilation=[2], residual=False))
    blocks.append(_block(1024, 1, repeat=1, residual=False, separable=False))
    return _convolutional(blocks, 64), 1024, 64


def citrinet() -> Parts:
    """Citrinet-512 (Majumdar et al., arXiv 2104.01721)."""
    squeeze: dict[str, Any] = {"se": True, "se_context_size": -1}
    strided: dict[str, Any] = {"stride": [2], "stride_last": True, "residual_mode": "stride_add"}
    blocks = [_block(512, 5, repeat=1, residual=False, **squeeze)]
    for kernels in ((11, 13, 15, 17, 19, 21), (13, 15, 17, 19, 21, 23, 25), (25, 27, 29, 31, 33, 35, 37, 39)):
        blocks.append(_block(512, kernels[0], **squeeze, **strided))
        blocks += [_block(512, kernel, **squeeze) for kernel in kernels[1:]]
    blocks.append(_block(640, 41, repeat=1, residual=False, **squeeze))
    return _convolutional(blocks, 80), 640, 80


def conformer(width: int, heads: int, layers: int, **options: Any) -> Parts:
    """Conformer (Gulati et al., arXiv 2005.08100); FastConformer (Rekesh et al., arXiv 2305.05084) by ``options``."""
    encoder = {
        "_target_": f"{_MODULES}.ConformerEncoder",
        "feat_in": 80,
        "feat_out": -1,
        "n_layers": layers,
        "d_model": width,
        "subsampling": "striding",
        "subsampling_factor": 4,
        "subsampling_conv_channels": -1,
        "ff_expansion_factor": 4,
        "self_attention_model": "rel_pos",
        "n_heads": heads,
        "xscaling": True,
        "untie_biases": True,
        "conv_kernel_size": 31,
        "conv_norm_type": "batch_norm",
        **options,
    }
    return encoder, width, 80


_FAST = {
    "subsampling": "dw_striding",
    "subsampling_factor": 8,
    "subsampling_conv_channels": 256,
    "conv_kernel_size": 9,
}
MODELS: dict[str, tuple[Callable[[], Parts], int]] = {
    "quartznet-15x5": (quartznet, 28),
    "citrinet-512": (citrinet, 1024),
    "conformer-ctc-small": (lambda: conformer(176, 4, 16), 1024),
    "conformer-ctc-large": (lambda: conformer(512, 8, 18), 128),
    "fastconformer-ctc-large": (lambda: conformer(512, 8, 17, **_FAST), 1024),
}
"""Each model's parts, and the size of its vocabulary without the blank."""


def save(name: str, folder: Path) -> Path:
    """Make the model called ``name`` with seeded random weights, and save it as ``folder/name.nemo``."""
    import torch
    from omegaconf import OmegaConf

    logging.getLogger("nv_one_logger").setLevel(logging.CRITICAL)
    from nemo.collections.asr.models import EncDecCTCModel
    from nemo.utils import logging as nemo_logging

    nemo_logging.setLevel(logging.ERROR)
    make, vocabulary = MODELS[name]
    encoder, width, bins = make()
    labels = [" ", *(f"t{i}" for i in range(1, vocabulary))]
    config = {
        "sample_rate": 16000,
        "labels": labels,
        "preprocessor": {
            "_target_": f"{_MODULES}.AudioToMelSpectrogramPreprocessor",
            "sample_rate": 16000,
            "normalize": "per_feature",
            "window_size": 0.02 if bins == 64 else 0.025,
            "window_stride": 0.01,
            "window": "hann",
            "features": bins,
            "n_fft": 512,
            "frame_splicing": 1,
            "dither": 1e-5,
        },
        "encoder": encoder,
        "decoder": {
            "_target_": f"{_MODULES}.ConvASRDecoder",
            "feat_in": width,
            "num_classes": vocabulary,
            "vocabulary": labels,
        },
    }
    torch.manual_seed(0)
    model = EncDecCTCModel(OmegaConf.create(config))
    for part in model.modules():  # as if it had been trained: statistics that are not the identity
        if isinstance(part, torch.nn.BatchNorm1d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    path = folder / f"{name}.nemo"
    model.save_to(str(path))
    return path
