"""The training loop: steps, validation, checkpoints, and going on where a run has stopped.

What differs between one process and many is hidden in ``processes``: all call it in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from torch import nn

from quantasr.errors import TrainingError
from quantasr.training.batch import BatchSource, Loss
from quantasr.training.checkpoint import TrainState
from quantasr.training.optimizers import set_rate
from quantasr.training.options import TrainOptions
from quantasr.training.processes import Processes, started_alone
from quantasr.training.reporting import reporter, tensorboard
from quantasr.training.run_folder import Run
from quantasr.training.schedules import rate_factor
from quantasr.training.session import Session
from quantasr.training.shares import shares
from quantasr.training.step import Stepper, Taken
from quantasr.training.stopping import stoppable

SKIPS_IN_A_ROW = 20
"""After so many steps without a finite loss and gradient, a run has failed."""


@dataclass(frozen=True)
class TrainResult:
    """What came of a run; the trained weights are in the trainee itself.

    ``losses`` are the mean losses of the steps taken in this call, by step from 1, without the skipped ones.
    ``weights_from`` are the steps whose checkpoints the weights are the mean of, ``figure`` is the best of validation.
    """

    steps: int
    skipped: int
    losses: Mapping[int, float]
    figure: float | None
    weights_from: tuple[int, ...]
    ended_early: bool


def train(
    trainee: nn.Module,
    loss: Loss,
    source: BatchSource,
    options: TrainOptions,
    run: Run,
    *,
    validate: Callable[[], Mapping[str, float]] | None = None,
    on_step: Callable[[int], None] | None = None,
    say: Callable[[str], None] = print,
    progress: bool = False,
) -> TrainResult:
    """Train ``trainee``, whose ``forward(features, lengths)`` gives an ``Output``, and leave it in eval mode.

    ``validate`` is called by the main process with the trainee in eval mode; it gives figures of which less is better,
    as ``wer`` and ``loss``. ``on_step`` is called by all processes before a step, with its number from 0. ``say`` gets
    lines for people; with ``progress``, one changing line is shown instead if there is a terminal.

    Started by ``accelerate launch``, all processes call this with the same arguments, and the losses are those of one
    process. Global random generators are seeded anew in each step. On Ctrl-C or a request to end, the step is finished
    and a checkpoint written before the signal's exception is raised (``KeyboardInterrupt``); the next one ends at once.

    Raises :class:`TrainingError` when the run cannot start or go on.
    """
    if options.validate_every == 0:
        validate = None
    if validate is None and (options.patience or options.best_by):
        raise TrainingError("patience and best_by need validation in training: set validate_every, or leave them out")
    tensorboard()  # asked before a folder is made
    processes = Processes(options.precision)
    say = say if processes.is_main else _silent
    if started_alone():
        say(started_alone())
    session = Session(trainee, options, processes)
    session.open(run, say)
    state = session.state
    stepper = Stepper(trainee, loss, session.optimizer, options, processes)
    total = options.total_steps(source.steps_per_epoch)
    losses: dict[int, float] = {}

    with ExitStack() as stack:
        stop = stack.enter_context(stoppable())
        report: Callable[[int, Mapping[str, float]], None] = _silent
        if session.folder is not None:
            report = stack.enter_context(reporter(session.folder, state.step, total, say, progress)).row
        coming = shares(source, loss, options, state.step, total, rank=processes.rank, count=processes.count)
        stack.callback(coming.close)
        session.train_mode()
        stopping = False
        while state.step < total and not (state.ended or stopping):
            clock = time.perf_counter()
            with processes.together():
                if on_step is not None:
                    on_step(state.step)
                share = next(coming, None)
                if share is None:
                    raise TrainingError(f"the data ended before step {state.step + 1} of {total}")
            rate = options.rate * rate_factor(options, state.step, total)
            set_rate(session.optimizer, rate)
            taken = stepper.take(share)
            state.step += 1
            _count(taken, state, losses, time.perf_counter() - clock, say)

            step, last = state.step, state.step == total
            # With sync = "models" there is one model only where the processes meet.
            meeting = options.sync == "gradients" or last or _due(step, options.sync_every)
            if options.sync == "models" and meeting:
                session.average_processes()
            if last or _due(step, options.report_every):
                epoch = step / source.steps_per_epoch
                row = {"epoch": epoch, **_since(state), "rate": rate, "skipped": state.skipped}
                with processes.together():
                    report(step, row)

            figure = None  # of a checkpoint that the final weights may come from
            scheduled = last or _due(step, options.saved_every)
            if validate is None and scheduled:
                figure = 0.0  # all alike: then the latest count as best
            elif validate is not None and (last or _due(step, options.validate_every)):
                figures = session.validate(validate)
                figure = session.judge(figures)
                with processes.together():
                    report(step, {f"validation_{name}": value for name, value in figures.items()})
            stopping = meeting and processes.sum(float(stop.asked))[0] > 0
            if scheduled or stopping or figure is not None:
                session.save(figure)

    if stopping:
        say(f"interrupted: a checkpoint of step {state.step} is written: go on with --resume")
        stop.obey()
    weights_from = session.finish()
    return TrainResult(state.step, state.skipped, losses, state.best, weights_from, ended_early=state.step < total)


def _count(
    taken: Taken, state: TrainState, losses: dict[int, float], seconds: float, say: Callable[[str], None]
) -> None:
    """Add a step to the sums since the last report; raises :class:`TrainingError` after too many skipped ones."""
    state.skipped_in_a_row = state.skipped_in_a_row + 1 if taken.skipped else 0
    if taken.skipped:
        state.skipped += 1
        say(f"step {state.step}: loss {taken.mean:.4g}, norm of the gradient {taken.norm:.4g}: skipped")
        if state.skipped_in_a_row == SKIPS_IN_A_ROW:
            raise TrainingError(
                f"{SKIPS_IN_A_ROW} steps in a row, up to step {state.step}, had no finite loss and gradient: lower the "
                "rate, lengthen the warm-up, or train in fp32"
            )
    else:
        losses[state.step] = taken.mean
        for name, value in (("loss", taken.loss), ("weight", taken.weight), ("norm", taken.norm), ("steps", 1.0)):
            state.since[name] = state.since.get(name, 0.0) + value
    for name, value in (("examples", float(taken.examples)), ("seconds", seconds)):
        state.since[name] = state.since.get(name, 0.0) + value


def _since(state: TrainState) -> dict[str, float]:
    """What a report tells of the steps since the one before: means over those that were not skipped."""
    sums, state.since = state.since, {}
    means = {"examples_per_second": sums["examples"] / sums["seconds"]}
    if "steps" in sums:
        means = {"loss": sums["loss"] / sums["weight"], "gradient_norm": sums["norm"] / sums["steps"], **means}
    return means


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _silent(*_: object) -> None:
    """For the processes that do not speak."""
