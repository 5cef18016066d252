"""Parts of SpeechBrain's models computed in another way, with the same result, for quantization's and speed's sake."""

from __future__ import annotations

from torch import nn

from quantasr.sources.wav2vec2.rewrites import rewrite as rewrite_wav2vec2


def rewrite(module: nn.Module) -> None:
    """Give every part that has a better way its own ``forward``; weights and module paths stay as they are."""
    rewrite_wav2vec2(module)
