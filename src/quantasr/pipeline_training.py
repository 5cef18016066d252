"""Fine-tuning and quantization-aware training (QAT) in one verb each: :func:`finetune` and :func:`qat`.

Both run as one process or as many: started by ``accelerate launch``, every process calls the same verb.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantasr.artifact_parts import Waves
from quantasr.atomic import check_target
from quantasr.errors import CalibrationError, EngineError, TrainingError
from quantasr.pipeline import Manifest, Original, find_recipe, utterances_of, write_artifact
from quantasr.quantize import calibrate, convert, prepare
from quantasr.quantize.prepare import check_fits
from quantasr.quantize.training import QatState
from quantasr.recipes import Recipe
from quantasr.sources import CtcModel, FrameModel, LatticeModel, load_model
from quantasr.sources.kaldi.model import KaldiModel
from quantasr.speech.manifest import Utterance, check_disjoint
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
_FINGERPRINTED = 20_000
"""Of so many recordings an artifact remembers that it was trained on them; hashing more would take too long."""


@dataclass(frozen=True)
class Trained:
    """What came of a run: ``folder`` is the model or artifact, ``run`` what can be resumed.

    ``before`` and ``after`` are figures of validation (``wer`` or ``loss``): of the model before training, quantized
    where it is trained so, and of what came out.
    """

    folder: Path
    run: Path
    result: TrainResult
    before: Mapping[str, float]
    after: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        row = {"folder": str(self.folder), "run": str(self.run), "before": dict(self.before), "after": dict(self.after)}
        return {**row, **_summary(self.result)}


@dataclass(frozen=True)
class Speech:
    """The manifests of a run, none of which share speech: what is trained on, validated on, and must not be heard."""

    train: str | Path
    validation: str | Path | None = None
    test: Manifest | None = None


def finetune(
    model: FrameModel | str | Path,
    output: str | Path,
    *,
    train: str | Path,
    validation: str | Path | None = None,
    test: Manifest | None = None,
    config: TrainingConfig | None = None,
    run: str | Path | None = None,
    resume: bool = False,
    trust: bool = False,
    progress: bool = False,
    say: Say = lambda _: None,
) -> Trained:
    """Train a recogniser further in float, and write it to ``output`` in the format that it came in.

    ``train`` and ``validation`` are manifests (Lhotse's too), of which ``test`` must hold nothing. ``run`` is the
    folder of checkpoints and figures (``output`` with ``.run`` behind it), from which ``resume`` goes on. The ``model``
    is changed in place. Raises the errors of each step: see :mod:`quantasr.errors`.
    """
    output, config, say = Path(output), config or TrainingConfig(), _by_main(say)
    check_target(output, overwrite=False)
    model = _load(model, trust, say)
    lesson = Lesson.of(model, Speech(train, validation, test), config, trust=trust, say=say)
    trainee = Trainee(model, freeze_norms_after=config.train.freeze_norms_after)
    trained = lesson.teach(trainee, _run_folder(run, output), resume=resume, progress=progress, say=say)
    if is_main_process():
        say(f"writing {output}")
        model.save(output)
    return replace(trained, folder=output)


def qat(
    model: FrameModel | str | Path,
    output: str | Path,
    *,
    train: str | Path,
    calibration: Manifest,
    validation: str | Path | None = None,
    test: Manifest | None = None,
    recipe: Recipe | str | Path = "default",
    teacher: FrameModel | None = None,
    config: TrainingConfig | None = None,
    run: str | Path | None = None,
    resume: bool = False,
    limit: int | None = None,
    overwrite: bool = False,
    trust: bool = False,
    progress: bool = False,
    say: Say = lambda _: None,
) -> Trained:
    """Train a recogniser while it is quantized by ``recipe``, and write what came out as an artifact folder.

    As :func:`quantasr.quantize`: ``calibration`` speech, the first ``limit`` utterances of it, gives the scales to
    start from, and what comes out is exported and checked alike. As :func:`finetune`: the manifests, ``run``,
    ``resume``.
    A loss with distillation needs the float original beside: it is loaded again from where ``model`` is, or it is
    ``teacher``. Raises the errors of each step: see :mod:`quantasr.errors`.
    """
    output, config, say = Path(output), config or TrainingConfig(), _by_main(say)
    check_target(output, overwrite=overwrite)
    utterances = utterances_of(calibration, trust=trust)[:limit]
    if not utterances:
        raise CalibrationError("no calibration utterances: static scales need some speech")
    if test is not None:
        check_disjoint(utterances, utterances_of(test, trust=trust))
    wants_teacher = "distillation" in config.loss.kind
    if wants_teacher and teacher is None:
        if not isinstance(model, str | Path):
            raise TrainingError("distillation needs the float original too: give a teacher, or a model's place")
        teacher = _load(model, trust, _silent)
    model = _load(model, trust, say)
    chosen = find_recipe(recipe, model.family)
    check_fits(model, chosen)

    with tempfile.TemporaryDirectory() as scratch:
        original = Original.of(model, utterances, Path(scratch), say) if is_main_process() else None
        weights = _weights_hash(model)
        prepared = prepare(model, chosen, live_norms=config.train.freeze_norms_after != 0)
        say(f"calibrating on {len(utterances)} utterances")
        waves = Waves(utterances, model.sample_rate)
        calibrate(prepared, waves, progress=progress and is_main_process())
        state = QatState(prepared, config.qat)
        speech = Speech(train, validation, test)
        lesson = Lesson.of(model, speech, config, teacher=teacher, calibration=utterances, trust=trust, say=say)
        trainee = Trainee(model, state, freeze_norms_after=config.train.freeze_norms_after)
        identity = {"weights": weights, "recipe": _hash(chosen.dumps()), **config.qat.to_dict()}
        trained = lesson.teach(
            trainee,
            _run_folder(run, output),
            identity=identity,
            simulated=state.settled,
            resume=resume,
            progress=progress,
            say=say,
        )
        state.finish()
        convert(prepared)
        if original is not None:
            provenance = {"training": {**lesson.describe(), **_summary(trained.result), "config": config.to_dict()}}
            write_artifact(
                prepared,
                original,
                output,
                utterances,
                sum(waves.seconds),
                heard=lesson.heard(),
                provenance=provenance,
                overwrite=overwrite,
                say=say,
            )
    return replace(trained, folder=output)


@dataclass
class Lesson:
    """What a model is taught with: a loss, recordings, and how well it does on others."""

    model: FrameModel
    speech: Speech
    config: TrainingConfig
    data: TrainingData
    loss: Loss

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
        """Read the manifests and make the loss; raises TrainingError for what does not fit together."""
        if config.time_masking is not None and not model.set_time_masking(
            config.time_masking, config.time_masking_frames
        ):
            raise TrainingError(
                f"{model.name}: does not mask time by itself: use spec_augment, which masks features, for time_masking"
            )
        kind = _loss_kind(model, config)
        others = {"calibration": calibration} if calibration else {}
        if speech.test is not None:
            others["test"] = utterances_of(speech.test, trust=trust)
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
        return cls(model, speech, config, data, _loss(kind, model, teacher, data, config, say))

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
        validation = Validation(trainee, self.model, self.loss, self.data.validation, simulated)
        trainee.eval()
        before = validation() if is_main_process() else {}
        say(f"before training: {_words(before)} on validation")
        data = {"train": str(self.speech.train), "utterances": len(self.data), "loss": self.loss.name}
        settings = {"data": config.data.to_dict(), "loss": config.loss.to_dict()}
        same = {**(identity or {"weights": _weights_hash(self.model)}), **data, **settings}
        result = train(
            trainee,
            self.loss,
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
        if isinstance(self.model, KaldiModel):
            self.model.finish_training()
        return Trained(run, run, result, before, after)

    def heard(self) -> list[Utterance]:
        """What was trained on, as far as there is time to remember it."""
        return list(self.data.utterances) if len(self.data) <= _FINGERPRINTED else []

    def describe(self) -> dict[str, Any]:
        """What an artifact says of it."""
        report = self.data.report
        return {"loss": self.loss.name, "utterances": len(self.data), "hours": round(report.seconds / 3600, 3)}


def _loss_kind(model: FrameModel, config: TrainingConfig) -> str:
    kind = config.loss.kind
    if kind == "auto":
        return "lf_mmi" if isinstance(model, LatticeModel) else "ctc"
    if "ctc" in kind and not isinstance(model, CtcModel):
        raise TrainingError(f"{model.name}: is no CTC model: take the loss lf_mmi or distillation")
    if kind == "lf_mmi" and not isinstance(model, LatticeModel):
        raise TrainingError(f"{model.name}: is no chain model of Kaldi's: take the loss ctc or distillation")
    return kind


def _loss(
    kind: str, model: FrameModel, teacher: FrameModel | None, data: TrainingData, config: TrainingConfig, say: Say
) -> Loss:
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


def _load(model: FrameModel | str | Path, trust: bool, say: Say) -> FrameModel:
    if isinstance(model, str | Path):
        say(f"loading {model}")
        found = load_model(model, trust=trust)
        if not isinstance(found, FrameModel):
            raise EngineError(
                f"{found.name}: its decoder ({found.decoder}) runs in its own framework only: what can be trained here "
                "are CTC models and Kaldi's"
            )
        return found
    return model


def _run_folder(run: str | Path | None, output: Path) -> Path:
    return Path(run) if run is not None else output.with_name(f"{output.name}.run")


def _weights_hash(model: FrameModel) -> str:
    """What tells one checkpoint from another."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _summary(result: TrainResult) -> dict[str, Any]:
    return {
        "steps": result.steps,
        "skipped": result.skipped,
        "weights_from": list(result.weights_from),
        "ended_early": result.ended_early,
    }


def _words(figures: Mapping[str, float]) -> str:
    shown = {"wer": lambda value: f"WER {value:.2%}", "loss": lambda value: f"loss {value:.4f}"}
    return ", ".join(shown[name](value) for name, value in figures.items())


def _by_main(say: Say) -> Say:
    return say if is_main_process() else _silent


def _silent(_: str) -> None:
    """Say nothing."""
