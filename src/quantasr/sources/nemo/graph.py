"""What is exported of a NeMo CTC model, with the same values in a batch as alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quantasr.sources.asr_model import FrameGraph
from quantasr.sources.nemo.frames import frame_counts


class CtcGraph(FrameGraph):
    """Log-mel features and lengths to log-probs and frame counts, through a model's encoder and CTC head.

    ``model`` has an ``encoder`` and a ``decoder``, or, as NeMo's hybrid models, a ``ctc_decoder``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """``[batch, frames, bins]``, ``[batch]`` -> ``[batch, frames', vocabulary]``, ``[batch]``."""
        from nemo.core.classes.common import typecheck

        model: Any = self.model
        # NeMo's checks of argument types cost time in every layer and cannot be traced.
        with typecheck.disable_checks():
            encoded, counts = model.encoder(audio_signal=features.transpose(1, 2), length=lengths)
            head = model.ctc_decoder if hasattr(model, "ctc_decoder") else model.decoder
            kind = encoded.device.type
            if torch.is_autocast_enabled(kind):  # its log-softmax would be of half precision
                with torch.autocast(kind, enabled=False):
                    return head(encoder_output=encoded.float()), counts
            return head(encoder_output=encoded), counts

    def frame_counts(self, lengths: Tensor) -> Tensor:
        """Frames behind every stride of the encoder."""
        model: Any = self.model
        return frame_counts(model.encoder, lengths)
