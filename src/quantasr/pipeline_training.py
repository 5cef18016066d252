"""Fine-tuning and quantization-aware training (QAT) in one verb each: :func:`finetune` and :func:`qat`.

Both run as one process or as many: started by ``accelerate launch``, every process calls the same verb.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from quantasr.artifact_parts import Waves
from quantasr.atomic import check_target
from quantasr.errors import CalibrationError, EngineError, RecipeError, TrainingError
from quantasr.parity import Original
from quantasr.pipeline import Manifest, find_recipe, write_artifact
from quantasr.quantize import calibrate, convert, prepare
from quantasr.quantize.prepare import check_fits
from quantasr.quantize.training import QatState
from quantasr.recipes import Recipe
from quantasr.sources import CtcModel, FrameModel, load_model
from quantasr.sources.vocabulary import characters_of, new_vocabulary
from quantasr.speech.manifest import Utterance, check_disjoint
from quantasr.training.config import TrainingConfig
from quantasr.training.lesson import Lesson, Speech, Trained, weights_hash
from quantasr.training.processes import is_main_process
from quantasr.training.reading import stream_utterances
from quantasr.training.trainee import Trainee

Say = Callable[[str], None]
CHARACTERS = "characters"
"""In place of a vocabulary: the characters of what is trained on."""


def finetune(
    model: FrameModel | str | Path,
    output: str | Path,
    *,
    train: str | Path,
    validation: str | Path | None = None,
    test: Manifest | None = None,
    vocabulary: Sequence[str] | str | Path | None = None,
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
    is changed in place. ``vocabulary`` gives a CTC model another one: its tokens, a file of them, or ``characters`` for
    those of the training transcripts; shared tokens keep what was learnt. Raises the errors of each step: see
    :mod:`quantasr.errors`.
    """
    output, config, say = Path(output), config or TrainingConfig(), _by_main(say)
    check_target(output, overwrite=False)
    tested = [] if test is None else _utterances(test, trust)
    model = _load(model, trust, say)
    if vocabulary is not None:
        model = _with_vocabulary(model, vocabulary, train, config.train.seed, trust)
    lesson = Lesson.of(model, Speech(train, validation, tested), config, trust=trust, say=say)
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
    utterances = _utterances(calibration, trust)[:limit]
    if not utterances:
        raise CalibrationError("no calibration utterances: static scales need some speech")
    tested = [] if test is None else _utterances(test, trust)
    check_disjoint(utterances, tested)
    wants_teacher = "distillation" in config.loss.kind
    if wants_teacher and teacher is None:
        if not isinstance(model, str | Path):
            raise TrainingError("distillation needs the float original too: give a teacher, or a model's place")
        teacher = _load(model, trust, _silent)
    model = _load(model, trust, say)
    chosen = find_recipe(recipe, model.family)
    check_fits(model, chosen)
    if chosen.halves:
        raise RecipeError(f"recipe {chosen.name!r} rounds nothing to integers: there is nothing to train for")
    speech = Speech(train, validation, tested)
    lesson = Lesson.of(model, speech, config, teacher=teacher, calibration=utterances, trust=trust, say=say)
    weights = weights_hash(model)

    with tempfile.TemporaryDirectory() as scratch:
        original = Original.of(model, utterances, Path(scratch), say) if is_main_process() else None
        prepared = prepare(model, chosen, live_norms=config.train.freeze_norms_after != 0)
        say(f"calibrating on {len(utterances)} utterances")
        waves = Waves(utterances, model.sample_rate)
        calibrate(prepared, waves, progress=progress and is_main_process())
        state = QatState(prepared, config.qat)
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
            provenance = {"training": {**lesson.describe(), **trained.summary, "config": config.to_dict()}}
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
    return replace(trained, folder=output, prepared=prepared)


def _load(model: FrameModel | str | Path, trust: bool, say: Say) -> FrameModel:
    if isinstance(model, str | Path):
        say(f"loading {model}")
        found = load_model(model, trust=trust)
        if not isinstance(found, FrameModel):
            raise EngineError(
                f"{found.name}: decodes step by step ({found.decoder}): what can be trained here are CTC models, "
                "the CTC head of NeMo's hybrids (model.nemo#ctc), and Kaldi's"
            )
        return found
    return model


def _with_vocabulary(
    model: FrameModel, vocabulary: Sequence[str] | str | Path, train: str | Path, seed: int, trust: bool
) -> FrameModel:
    """The model with another output layer."""
    if not isinstance(model, CtcModel):
        raise TrainingError(f"{model.name}: is no CTC model: its outputs are not tokens of a vocabulary")
    if vocabulary == CHARACTERS:
        vocabulary = characters_of(u.text or "" for u in stream_utterances(train, trust=trust))
    return new_vocabulary(model, vocabulary, keep_shared=True, seed=seed)


def _utterances(manifest: Manifest, trust: bool) -> list[Utterance]:
    """Of a manifest in any form, Lhotse's too, or as they are."""
    return list(stream_utterances(manifest, trust=trust)) if isinstance(manifest, str | Path) else list(manifest)


def _run_folder(run: str | Path | None, output: Path) -> Path:
    return Path(run) if run is not None else output.with_name(f"{output.name}.run")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _by_main(say: Say) -> Say:
    return say if is_main_process() else _silent


def _silent(_: str) -> None:
    """Say nothing."""
