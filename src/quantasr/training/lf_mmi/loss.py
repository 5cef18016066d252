"""LF-MMI as a loss: batches of whole utterances or of chunks, and what Kaldi adds to the objective."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantasr.errors import AudioError, TrainingError
from quantasr.sources.asr_model import LatticeModel
from quantasr.sources.kaldi.model import KaldiModel
from quantasr.speech.frontend.kaldi import KaldiFrontend
from quantasr.speech.prepared import PreparedWave
from quantasr.training.batch import Batch, Example, Output
from quantasr.training.lf_mmi.graph import Hmm
from quantasr.training.lf_mmi.graphs import NEVER, ChainGraphs, GraphChoice, graphs_of
from quantasr.training.lf_mmi.objective import lf_mmi
from quantasr.training.randomness import generator
from quantasr.training.spec_augment import SpecAugment

Features = NDArray[np.float32]


@dataclass(frozen=True)
class LfMmiOptions:
    """As in Kaldi's chain recipes.

    ``leak``: chain.leaky-hmm-coefficient. ``l2``: chain.l2-regularize, of the squared scores. ``xent``:
    chain.xent-regularize, the weight of the cross-entropy branch. ``shift_frames``: read each recording up to a frame
    earlier or later than it is, at random. ``chunk``: frames of features in a piece of a recording that has an
    alignment. Raises TrainingError for values that make no sense.
    """

    leak: float = 0.1
    l2: float = 5e-5
    xent: float = 0.1
    shift_frames: bool = True
    chunk: int = 150

    def __post_init__(self) -> None:
        if not 0 <= self.leak < 1:
            raise TrainingError(f"leaky HMM: a coefficient of {self.leak:g} makes no sense; 0.1 is usual")
        if self.l2 < 0 or self.xent < 0:
            raise TrainingError("LF-MMI: weights of l2 and of the cross-entropy branch cannot be negative")
        if self.chunk < 1:
            raise TrainingError(f"LF-MMI: chunks of {self.chunk} frames are too short; 150 is usual")


@dataclass(frozen=True)
class Numerators:
    """The graph of each row of a batch; they stay on the CPU until they are needed."""

    graphs: tuple[Hmm, ...]


@dataclass(frozen=True)
class _Piece:
    id: str
    rows: Features
    numerator: Hmm


class LfMmiLoss:
    """The negative LF-MMI objective, summed over frames, with l2 and cross-entropy as Kaldi adds them.

    Numerators come from alignments, where there are some, and recordings are then cut in chunks; else from transcripts,
    and recordings are whole. In a batch shorter ones are filled up with their last frame. The weight of a batch is its
    number of output frames.

    Nothing is learnt from recordings that :meth:`problem` would name, nor from those that are shorter than their
    numerator, or that the denominator does not allow: ``skipped`` counts those seen.
    """

    name = "lf_mmi"

    def __init__(
        self,
        model: KaldiModel,
        graphs: ChainGraphs,
        options: LfMmiOptions | None = None,
        *,
        spec_augment: SpecAugment | None = None,
    ) -> None:
        assert isinstance(model.frontend, KaldiFrontend)
        self.graphs, self.options = graphs, options or LfMmiOptions()
        self.skipped = 0
        self._model, self._frontend = model, model.frontend
        self._spec_augment = spec_augment

    @classmethod
    def of(
        cls,
        model: LatticeModel,
        texts: Iterable[str],
        choice: GraphChoice | None = None,
        options: LfMmiOptions | None = None,
        *,
        spec_augment: SpecAugment | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> LfMmiLoss:
        """The loss for a model of Kaldi's on ``texts``, with the graphs of ``choice``; ``say`` hears what was found.

        The model gets its cross-entropy branch (``prepare_training``), if it has one. Raises TrainingError,
        ModelLoadError and KaldiFileError in one line for what is missing or does not fit.
        """
        options = options or LfMmiOptions()
        if not isinstance(model, KaldiModel):
            raise TrainingError(f"{model.name}: LF-MMI trains Kaldi's chain models only")
        graphs = graphs_of(model, texts, choice, say)
        if options.xent and not model.prepare_training():
            say("the model has no output-xent that can be trained: there is no cross-entropy in the loss")
        return cls(model, graphs, options, spec_augment=spec_augment)

    def problem(self, id: str, text: str | None, seconds: float) -> str | None:
        """Why an utterance cannot be trained on, and behind a colon which words; None if it can. No audio is read."""
        if self.graphs.alignments is not None:
            return None if id in self.graphs.alignments else "no alignment"
        words = (text or "").split()
        if not words:
            return "no transcript"
        assert self.graphs.pronunciations is not None
        unknown = self.graphs.pronunciations.unknown(words)
        if unknown:
            return f"words without a pronunciation: {', '.join(unknown)}"
        if self.graphs.pronunciations.fewest_phones(words) > seconds / self._model.frame_seconds:
            return "too short for its transcript"
        return None

    def collate(self, examples: Sequence[Example], seed: int) -> Batch:
        """Features with their contexts and numerators. Raises AudioError and TrainingError, naming the recording."""
        pieces = [piece for example in examples for piece in self._pieces(example, seed)]
        lengths = torch.tensor([len(piece.rows) for piece in pieces])
        features = np.stack([_filled(piece.rows, int(lengths.max())) for piece in pieces])
        weight = float(self._model.frame_counts(lengths).sum())
        numerators = Numerators(tuple(piece.numerator for piece in pieces))
        return Batch(tuple(piece.id for piece in pieces), torch.from_numpy(features), lengths, numerators, weight)

    def __call__(self, output: Output, batch: Batch) -> Tensor:
        """The sum over the frames of ``batch``."""
        return self.each(output, batch).sum()

    def each(self, output: Output, batch: Batch) -> Tensor:
        """The loss of every row, ``[batch]``."""
        numerators: Numerators = batch.targets
        scores, options = output.logprobs.float(), self.options
        objective, posteriors = lf_mmi(
            scores, output.counts, numerators.graphs, self.graphs.denominator, leak=options.leak
        )
        self.skipped += int((posteriors.detach().sum((1, 2)) == 0).sum())
        losses = -objective.to(scores.dtype)
        if options.l2:
            inside = torch.arange(scores.shape[1], device=scores.device) < output.counts[:, None]
            losses = losses + options.l2 / 2 * (scores.square().sum(2) * inside).sum(1)
        if options.xent and output.xent is not None:
            losses = losses - options.xent * (posteriors * output.xent.float()).sum((1, 2))
        return losses

    def _pieces(self, example: Example, seed: int) -> list[_Piece]:
        random = generator(seed, "lf_mmi", example.id)
        rows = self._rows(example, random)
        if self.graphs.alignments is not None:
            return self._chunks(example, rows, random)
        usable = self.problem(example.id, example.text, np.inf) is None
        return [_Piece(example.id, rows, self.graphs.numerator(example.text or "") if usable else NEVER)]

    def _rows(self, example: Example, random: np.random.Generator) -> Features:
        """What the network reads of a recording, moved by up to half an output frame."""
        wave = example.wave
        if not isinstance(wave, PreparedWave):
            wave = np.pad(wave, (0, max(0, self._model.min_samples - wave.size)))
        try:
            rows = self._frontend(wave)
        except AudioError as error:
            raise AudioError(f"{example.id}: {error}") from error
        if self._spec_augment is not None:
            own = self._frontend.feature_dim  # i-vectors are not masked
            rows = np.concatenate([self._spec_augment(rows[:, :own], random), rows[:, own:]], axis=1)
        steps = self._model.network.subsampling
        shift = int(random.integers(steps)) - steps // 2 if self.options.shift_frames else 0
        moved: Features = rows[np.clip(np.arange(len(rows)) + shift, 0, len(rows) - 1)]
        return moved

    def _chunks(self, example: Example, rows: Features, random: np.random.Generator) -> list[_Piece]:
        """All of a recording in pieces of at most ``chunk`` frames, with their contexts, cut at random."""
        assert self.graphs.alignments is not None
        if example.id not in self.graphs.alignments:
            return [_Piece(example.id, rows, NEVER)]
        timed = self.graphs.timed(example.id)
        steps, (left, right) = self._model.network.subsampling, self._model.network.contexts
        frames = -(-(len(rows) - left - right) // steps)
        if timed.frames and abs(timed.frames - frames) > 1:
            raise TrainingError(
                f"{example.id}: its alignment is {timed.frames * steps} frames long, and its audio {frames * steps}: "
                f"train without speed perturbation, or align what is trained on"
            )
        if not timed.frames:  # phones that do not fit in the frames: nothing can be learnt
            return [_Piece(example.id, rows, NEVER)]
        frames, size = min(frames, timed.frames), max(1, self.options.chunk // steps)
        bounds = [0, *range(int(random.integers(1, size + 1)), frames, size), frames] if frames > size else [0, frames]
        pieces = []
        for begin, end in pairwise(bounds):
            part = rows[begin * steps : (end - 1) * steps + left + 1 + right]
            pieces.append(_Piece(example.id, part, self.graphs.part(timed, begin, end)))
        return pieces


def _filled(rows: Features, length: int) -> Features:
    return np.pad(rows, ((0, length - len(rows)), (0, 0)), mode="edge")
