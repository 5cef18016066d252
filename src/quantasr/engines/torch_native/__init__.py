"""PyTorch's own int8: a live model converted in place, running in its framework's own code.

The only engine that imports PyTorch, and the only package that touches its quantized kernels.
"""

from __future__ import annotations

import warnings

from quantasr.artifact import Artifact
from quantasr.engines.engine import Engine

# Registers what each operation does with int8 activations.
from quantasr.engines.torch_native import operations as operations

# PyTorch announces at the first quantized tensor that these will be gone some day.
warnings.filterwarnings("ignore", message="torch.quantize_per_tensor", category=UserWarning)


def load(artifact: Artifact, threads: int = 0, *, trust: bool = False) -> Engine:
    """A native artifact as an engine, exactly as it was when it was saved.

    ``trust`` allows what runs code while it is read: SpeechBrain's ``hyperparams.yaml``.

    Raises :class:`quantasr.errors.ArtifactError`, :class:`quantasr.errors.EngineError` or
    :class:`quantasr.errors.ModelLoadError`.
    """
    from quantasr.engines.torch_native.reload import reload

    return reload(artifact, threads, trust=trust)
