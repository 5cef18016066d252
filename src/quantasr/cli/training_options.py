"""What ``finetune`` and ``qat`` share on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantasr.cli.options import add_trust, count
from quantasr.cli.output import say, write_json
from quantasr.errors import TrainingError

if TYPE_CHECKING:
    from quantasr.training.config import TrainingConfig
    from quantasr.training.lesson import Trained

# Option, where it is in the configuration, how it is read, its metavar, what it says.
_OPTIONS: tuple[tuple[str, tuple[str, ...], Any, str, str], ...] = (
    ("--steps", ("train", "steps"), count, "N", "optimizer steps, in place of epochs"),
    ("--epochs", ("train", "epochs"), float, "X", "how often the data is gone over (2)"),
    ("--batch", ("train", "batch"), count, "N", "recordings a step, over all processes (8)"),
    ("--accumulate", ("train", "accumulate"), count, "N", "parts that a process's share of them comes in (1)"),
    ("--rate", ("train", "rate"), float, "X", "highest learning rate (5e-5)"),
    ("--precision", ("train", "precision"), str, "TYPE", "of the computing: fp32, bf16, fp16 (fp32)"),
    ("--seed", ("train", "seed"), int, "N", "decides all that is random (0)"),
    ("--hours", ("data", "hours"), float, "X", "so much of the training speech, drawn at random (all)"),
    ("--holdout", ("data", "holdout"), str, "HOW MUCH", "of it for validation, without a manifest of that: 5%%, 10min"),
)
_SET = "--set"


def add_training(command: argparse.ArgumentParser, losses: Sequence[str]) -> None:
    """The manifests, the most used settings, and ``--set`` for all others."""
    command.add_argument("--train", required=True, metavar="MANIFEST", help="speech with transcripts to train on")
    command.add_argument("--validation", metavar="MANIFEST", help="speech that says how good the model is meanwhile")
    command.add_argument("--test", metavar="MANIFEST", help="refuse to train or validate on any of this speech")
    command.add_argument("--config", type=Path, metavar="TOML", help="settings of the run; options here come before it")
    command.add_argument(
        "--run",
        dest="run_folder",
        type=Path,
        metavar="FOLDER",
        help="checkpoints and figures (output.run)",
    )
    command.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --run")
    group = command.add_argument_group("training", "defaults in brackets; docs/qat.md has them all")
    for name, _, read, metavar, text in _OPTIONS:
        group.add_argument(name, type=read, metavar=metavar, help=text)
    group.add_argument("--loss", choices=losses, help="auto: ctc, and lf_mmi for Kaldi's models")
    group.add_argument(
        _SET,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other setting, such as train.schedule=linear or data.augment.speeds=[0.9,1.0,1.1]; may be repeated",
    )
    add_trust(command)


def read_config(arguments: argparse.Namespace, **others: tuple[str, ...]) -> TrainingConfig:
    """The configuration that the options and ``--config`` give; ``others`` are places of further options.

    Raises :class:`TrainingError`.
    """
    from quantasr.training.config import TrainingConfig, read_table

    table: dict[str, Any] = read_table(arguments.config) if arguments.config else {}
    places = {name.lstrip("-"): place for name, place, *_ in _OPTIONS} | {"loss": ("loss", "kind")} | others
    for name, place in places.items():
        if (value := getattr(arguments, name)) is not None:
            _put(table, place, value, f"--{name}")
    for text in arguments.set:
        key, equals, value = text.partition("=")
        if not equals:
            raise TrainingError(f"{_SET} {text}: write KEY=VALUE, such as train.rate=1e-4")
        _put(table, tuple(key.strip().split(".")), _value(value.strip()), f"{_SET} {text}")
    return TrainingConfig.from_dict(table, str(arguments.config or "options"))


def run_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What both verbs are told alike."""
    return {
        "train": arguments.train,
        "validation": arguments.validation,
        "test": arguments.test,
        "run": arguments.run_folder,
        "resume": arguments.resume,
        "trust": arguments.trust,
        "progress": True,
        "say": say,
    }


def show_trained(trained: Trained, *, as_json: bool) -> None:
    """Say what came of it; of several processes, the main one does."""
    from quantasr.training.processes import is_main_process

    if not is_main_process():
        return
    if as_json:
        write_json(trained.to_dict())
        return
    for when, figures in (("before", trained.before), ("after", trained.after)):
        for name, value in figures.items():
            shown = f"{value:.2%}" if name == "wer" else f"{value:.4f}"
            print(f"{f'{name} on validation, {when}'.replace('wer', 'WER'):<26} {shown:>8}")
    print(f"{trained.folder}  (run: {trained.run})")
    if trained.result.skipped:
        say(f"quantasr: {trained.result.skipped} of {trained.result.steps} steps were skipped for values like NaN")


def _put(table: dict[str, Any], place: tuple[str, ...], value: Any, what: str) -> None:
    *above, last = place
    for name in above:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise TrainingError(f"{what}: {name} is no table of settings")
    table[last] = value


def _value(text: str) -> Any:
    """A value as TOML has it; what is none is a string."""
    import tomllib

    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text
