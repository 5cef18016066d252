"""What a model is taught with: recordings, a loss, and how well it does on others; and what came of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantasr.errors import TrainingError
from quantasr.quantize import Prepared
from quantasr.sources import CtcModel, FrameModel, LatticeModel
from quantasr.sources.kaldi.model import KaldiModel
from quantasr.speech.frontend import WaveFrontend
from quantasr.speech.manifest import Utterance
from quantasr.training.batch import Loss
from quantasr.training.config import TrainingConfig
from quantasr.training.data import TrainingData
from quantasr.training.lf_mmi.loss import LfMmiLoss
from quantasr.training.loop import TrainResult, train
from quantasr.training.losses import CtcLoss, Distillation, Weighted
from quantasr.training.processes import is_main_process
from quantasr.training.run_folder import Run
from quantasr.training.trainee import Trainee
from quantasr.training.validate import Validation

Say = Callable[[str], None]
FINGERPRINTED = 20_000
"""Of so many recordings an artifact remembers that it was trained on them; hashing more would take too long."""


@dataclass(frozen=True)
class Trained:
    """What came of a run: ``folder`` is the model or artifact, ``run`` what can be resumed.

    ``before`` and ``after`` are figures of validation (``wer`` or ``loss``): of the model before training, quantized
    where it is trained so, and of what came out. ``prepared`` is what was quantized, from which it was exported.
    """

    folder: Path
    run: Path
    result: TrainResult
    before: Mapping[str, float]
    after: Mapping[str, float]
    prepared: Prepared | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        row = {"folder": str(self.folder), "run": str(self.run), "before": dict(self.before), "after": dict(self.after)}
        return {**row, **self.summary}

    @property
    def summary(self) -> dict[str, Any]:
        """Of the steps alone."""
        result = self.result
        return {
            "steps": result.steps,
            "skipped": result.skipped,
            "weights_from": list(result.weights_from),
            "ended_early": result.ended_early,
        }


@dataclass(frozen=True)
class Speech:
    """The speech of a run, none of which is shared: what is trained on, validated on, and must not be heard."""

    train: str | Path
    validation: str | Path | None = None
    test: Sequence[Utterance] = ()


@dataclass
class Lesson:
    """What a model is taught with: a loss, recordings, and how well it does on others."""

    model: FrameModel
    speech: Speech
    config: TrainingConfig
    data: TrainingData
    kind: str
    teacher: FrameModel | None = None

    @classmethod
    def of(
        cls,
        model: FrameModel,
        speech: Speech,
        config: TrainingConfig,
        *,
        teacher: FrameModel | None = None,
        calibration: Sequence[Utterance] = (),
        trust: bool = False,
        say: Say,
    ) -> Lesson:
        """Read the manifests, before any long work; raises TrainingError for what does not fit together."""
        if config.time_masking is not None and not model.set_time_masking(
            config.time_masking, config.time_masking_frames
        ):
            raise TrainingError(
                f"{model.name}: does not mask time by itself: use spec_augment, which masks features, for time_masking"
            )
        if config.data.augment.spec_augment is not None and isinstance(model.frontend, WaveFrontend):
            raise TrainingError(
                f"{model.name}: reads the wave, and spec_augment masks features: use time_masking in its place"
            )
        kind = _loss_kind(model, config)
        others = {"calibration": calibration} if calibration else {}
        if speech.test:
            others["test"] = speech.test
        data = TrainingData.open(
            speech.train,
            model,
            config.data,
            batch=config.train.batch,
            seed=config.train.seed,
            validation=speech.validation,
            apart_from=others,
            needs_text=kind != "distillation",
            trust=trust,
            say=say,
        )
        return cls(model, speech, config, data, kind, teacher)

    def teach(
        self,
        trainee: Trainee,
        run: Path,
        *,
        identity: Mapping[str, Any] | None = None,
        simulated: Callable[[], AbstractContextManager[None]] = nullcontext,
        resume: bool,
        progress: bool,
        say: Say,
    ) -> Trained:
        """Train, and validate before and after; ``identity`` is what a resumed run must have in common."""
        config = self.config
        loss = make_loss(self.kind, self.model, self.teacher, self.data, config, say)
        if isinstance(loss, LfMmiLoss):
            self.data.leave_out(loss.problem, say)
        validation = Validation(trainee, self.model, loss, self.data.validation, simulated)
        trainee.eval()
        before = validation() if is_main_process() else {}
        say(f"before training: {_words(before)} on validation")
        data = {"train": str(self.speech.train), "utterances": len(self.data), "loss": self.kind}
        settings = {"data": config.data.to_dict(), "loss": config.loss.to_dict()}
        same = {**(identity or {"weights": weights_hash(self.model)}), **data, **settings}
        result = train(
            trainee,
            loss,
            self.data,
            config.train,
            Run(run, identity=same, config=config.to_dict(), resume=resume),
            validate=validation,
            on_step=self.model.constrain if isinstance(self.model, KaldiModel) else None,
            say=say,
            progress=progress,
        )
        trainee.to("cpu")
        after = validation() if is_main_process() else {}
        say(f"after training: {_words(after)} on validation")
        if any(after[name] > before[name] for name in after):
            say("training made it worse on validation: lower the rate, or keep the model as it was")
        if isinstance(self.model, KaldiModel):
            self.model.finish_training()
        return Trained(run, run, result, before, after)

    def heard(self) -> list[Utterance]:
        """What was trained on, as far as there is time to remember it."""
        return list(self.data.utterances) if len(self.data) <= FINGERPRINTED else []

    def describe(self) -> dict[str, Any]:
        """What an artifact says of it."""
        report = self.data.report
        return {"loss": self.kind, "utterances": len(self.data), "hours": round(report.seconds / 3600, 3)}


def _loss_kind(model: FrameModel, config: TrainingConfig) -> str:
    kind = config.loss.kind
    if kind == "auto":
        return "lf_mmi" if isinstance(model, LatticeModel) else "ctc"
    if "ctc" in kind and not isinstance(model, CtcModel):
        raise TrainingError(f"{model.name}: is no CTC model: take the loss lf_mmi or distillation")
    if kind == "lf_mmi" and not isinstance(model, LatticeModel):
        raise TrainingError(f"{model.name}: is no chain model of Kaldi's: take the loss ctc or distillation")
    return kind


def make_loss(
    kind: str, model: FrameModel, teacher: FrameModel | None, data: TrainingData, config: TrainingConfig, say: Say
) -> Loss:
    """The loss of a kind; raises TrainingError for what it lacks."""
    masks, options = config.data.augment.spec_augment, config.loss
    if kind == "lf_mmi":
        assert isinstance(model, LatticeModel)
        texts = (u.text or "" for u in data.utterances)
        return LfMmiLoss.of(model, texts, options.graphs, options.lf_mmi, spec_augment=masks, say=say)
    if kind == "ctc":
        assert isinstance(model, CtcModel)
        return CtcLoss(model, spec_augment=masks)
    if teacher is None:
        raise TrainingError(f"the loss {kind} needs a float original as its teacher: it is for qat, not for finetune")
    distillation = Distillation(teacher, temperature=options.temperature, spec_augment=masks)
    if kind == "distillation":
        return distillation
    assert isinstance(model, CtcModel)
    return Weighted(CtcLoss(model, spec_augment=masks), distillation, options.alpha)


def weights_hash(model: FrameModel) -> str:
    """What tells one checkpoint from another."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _words(figures: Mapping[str, float]) -> str:
    shown = {"wer": lambda value: f"WER {value:.2%}", "loss": lambda value: f"loss {value:.4f}"}
    return ", ".join(shown[name](value) for name, value in figures.items())
