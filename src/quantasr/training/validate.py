"""Figures of a model on speech that it is not trained on, while it is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from quantasr.sources.asr_model import FrameModel, LatticeModel
from quantasr.speech.manifest import Utterance
from quantasr.speech.scoring import score
from quantasr.speech.text import normalizer
from quantasr.training.batch import Example, Loss
from quantasr.training.trainee import Trainee

_BATCH = 8
_NORMALIZER = "basic"


class Validation:
    """``wer`` (a fraction) where texts can be recognised and compared, and the ``loss`` where they cannot.

    ``simulated`` is what the model runs in: of a model in quantization-aware training, what would be exported now.
    """

    def __init__(
        self,
        trainee: Trainee,
        model: FrameModel,
        loss: Loss,
        utterances: Sequence[Utterance],
        simulated: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._trainee, self._model, self._loss = trainee, model, loss
        self._utterances = sorted(utterances, key=lambda u: u.duration or 0.0)  # like with like: less padding
        self._simulated = simulated
        searchless = isinstance(model, LatticeModel) and model.decoding is None
        self._texts = not searchless and all(u.text is not None for u in utterances) and any(u.text for u in utterances)

    def __call__(self) -> dict[str, float]:
        """The figures of now; the trainee must be in eval mode."""
        with self._simulated(), torch.no_grad():
            return {"wer": self._wer()} if self._texts else {"loss": self._mean_loss()}

    def _batches(self) -> list[Sequence[Utterance]]:
        return [self._utterances[i : i + _BATCH] for i in range(0, len(self._utterances), _BATCH)]

    def _wer(self) -> float:
        transcriber, found = self._model.transcriber(), []
        for batch in self._batches():
            found += transcriber.transcribe([u.load(self._model.sample_rate) for u in batch])
        normalize = normalizer(_NORMALIZER)
        references = [normalize(u.text or "") for u in self._utterances]
        return score(references, [normalize(transcript.text) for transcript in found], "word").rate

    def _mean_loss(self) -> float:
        total, weight = 0.0, 0.0
        device = next(self._model.module.parameters()).device
        for utterances in self._batches():
            examples = [Example(u.id, u.load(self._model.sample_rate), u.text) for u in utterances]
            batch = self._loss.collate(examples, 0).to(device)
            total += float(self._loss(self._trainee(batch.features, batch.lengths), batch))
            weight += batch.weight
        return total / weight
