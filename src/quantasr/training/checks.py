"""Which utterances can be trained on, found out without reading their sound."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from quantasr.sources.asr_model import FrameModel
from quantasr.speech.frontend import WaveFrontend
from quantasr.speech.manifest import Utterance
from quantasr.training.labels import LabelEncoder, frames_needed
from quantasr.training.report import DataReport

_SPARE_FRAMES = 4  # what a model's edges may take: where there is less to spare, frames are counted exactly


@dataclass
class Checks:
    """Decides of one utterance after the other, and writes into ``report`` what is skipped.

    ``encoder``: labels are needed, so texts must be there, not be empty, and have the vocabulary's characters; with
    ``ctc`` a recording must have as many frames as its labels need at the fastest of ``speeds``. Without ``encoder``,
    ``needs_text`` asks only for a text.
    """

    report: DataReport
    model: FrameModel
    encoder: LabelEncoder | None
    needs_text: bool
    min_seconds: float
    max_seconds: float
    fastest: float = 1.0
    _samples_are_rows: bool = field(init=False)

    def __post_init__(self) -> None:
        self._samples_are_rows = isinstance(self.model.frontend, WaveFrontend)

    def keeps(self, utterance: Utterance, seconds: float) -> bool:
        """Whether it is trained on."""
        reason = self._fault(utterance, seconds)
        self.report.listed += 1
        if reason is not None:
            self.report.skip(reason, utterance.id)
        return reason is None

    def _fault(self, utterance: Utterance, seconds: float) -> str | None:
        if seconds < self.min_seconds:
            return f"shorter than {self.min_seconds:g} s"
        if seconds > self.max_seconds:
            return f"longer than {self.max_seconds:g} s, which may not fit into memory"
        if not self.needs_text:
            return None
        if utterance.text is None:
            return "without a text"
        if not utterance.text.strip():
            return "with an empty text"
        if self.encoder is None:
            return None
        unknown = self.encoder.unknown(utterance.text)
        if unknown:
            self.report.unknown.update(unknown)
            return "with characters that the vocabulary lacks"
        return self._too_short(self.encoder, utterance.text, seconds / self.fastest)

    def _too_short(self, encoder: LabelEncoder, text: str, seconds: float) -> str | None:
        frames = int(seconds / self.model.frame_seconds)
        # A label for each character, and a blank before it, is more than any labels need.
        if 2 * len(text) + _SPARE_FRAMES <= frames:
            return None
        ids = encoder.encode(text)
        if not ids:
            return "with an empty text"
        needed = frames_needed(ids)
        if needed + _SPARE_FRAMES > frames >= needed and self._samples_are_rows:
            samples = max(self.model.min_samples, round(seconds * self.model.sample_rate))
            frames = int(self.model.frame_counts(torch.tensor([samples]))[0])
        return "with less sound than the text needs" if needed > frames else None
