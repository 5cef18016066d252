"""Runs that are stopped, killed or run out of disk, and go on to the numbers of an unbroken run."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import Distance, Recordings, TinyNet

from quantasr.atomic import sweep
from quantasr.cli.interrupt import Interrupted, interruptible
from quantasr.errors import TrainingError
from quantasr.training import checkpoint as module
from quantasr.training.checkpoint import Checkpoint, TrainState, checkpoints_in, read_checkpoint, write_checkpoint
from quantasr.training.loop import TrainResult, train
from quantasr.training.options import TrainOptions
from quantasr.training.run_folder import Run

OPTIONS = TrainOptions(
    steps=10, rate=0.05, warm_up=2, validate_every=4, checkpoint_every=2, average=2, report_every=3, keep=2
)
FIGURES = {4: 0.3, 8: 0.2, 10: 0.4}
SIZES = (8, 5, 3)


class Runs:
    """One run after the other in the same folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.net = TinyNet()
        self.steps: list[int] = []

    def run(
        self,
        *,
        resume: bool = False,
        options: TrainOptions = OPTIONS,
        at: Callable[[int], None] = lambda step: None,
        identity: dict[str, Any] | None = None,
        net: TinyNet | None = None,
        figures: dict[int, float] = FIGURES,
    ) -> TrainResult:
        torch.manual_seed(len(self.said))  # whatever was drawn before must not matter
        self.net = net or TinyNet(dropout=0.3, batch_norm=True)

        def on_step(step: int) -> None:
            self.steps.append(step)
            at(step)

        return train(
            self.net,
            Distance(["5-1"]),
            Recordings(SIZES),
            options,
            Run(self.folder, identity or {"recipe": "a"}, {"manifest": "train.json"}, resume),
            validate=lambda: {"wer": figures[self.steps[-1] + 1]},
            on_step=on_step,
            say=self.said.append,
        )

    def files(self) -> dict[str, Any]:
        """What a run leaves behind, but for times."""
        found: dict[str, Any] = {}
        for path in sorted((self.folder / "checkpoints").rglob("*")):
            if path.is_file():
                found[str(path.relative_to(self.folder))] = _timeless(path)
        rows = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return found | {"rows": [{k: v for k, v in row.items() if k != "examples_per_second"} for row in rows]}


def _timeless(path: Path) -> Any:
    if path.suffix != ".json":
        return path.read_bytes()
    table = json.loads(path.read_text())
    table["training"]["since"].pop("seconds", None)
    return table


@pytest.fixture
def unbroken(tmp_path: Path) -> Runs:
    runs = Runs(tmp_path / "unbroken")
    runs.run()
    return runs


@pytest.fixture
def broken(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "broken")


def send(number: int, before: int) -> Callable[[int], None]:
    """Send this process a signal before a step."""
    return lambda step: os.kill(os.getpid(), number) if step == before else None


def assert_the_same(unbroken: Runs, broken: Runs) -> None:
    for name, value in unbroken.net.state_dict().items():
        assert torch.equal(value, broken.net.state_dict()[name]), name
    assert unbroken.files() == broken.files()


@pytest.mark.parametrize("before", [0, 3, 5, 6, 9])
def test_ctrl_c_leaves_a_checkpoint_that_goes_on_to_the_same_bits(unbroken: Runs, broken: Runs, before: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        broken.run(at=send(signal.SIGINT, before))
    assert max(checkpoints_in(broken.folder)) == before + 1  # the running step was finished
    assert broken.said[-1] == f"interrupted: a checkpoint of step {before + 1} is written: go on with --resume"
    result = broken.run(resume=True)
    assert f"{broken.folder}: going on after step {before + 1}" in broken.said
    assert broken.steps == [*range(10)]
    assert (result.steps, result.skipped, result.weights_from) == (10, 1, (4, 8))
    assert_the_same(unbroken, broken)


def test_a_crash_loses_the_steps_since_the_last_checkpoint(unbroken: Runs, broken: Runs) -> None:
    def crash(step: int) -> None:
        if step == 7:
            raise RuntimeError("power")

    with pytest.raises(RuntimeError, match="power"):
        broken.run(at=crash)
    broken.run(resume=True)
    assert broken.steps == [0, 1, 2, 3, 4, 5, 6, 7, 6, 7, 8, 9]
    assert_the_same(unbroken, broken)


def test_a_request_to_end_ends_as_the_command_line_has_it(broken: Runs) -> None:
    with pytest.raises(Interrupted) as error, interruptible():
        broken.run(at=send(signal.SIGTERM, 2))
    assert error.value.exit_code == 128 + signal.SIGTERM
    assert max(checkpoints_in(broken.folder)) == 3


def test_a_second_ctrl_c_ends_at_once(broken: Runs) -> None:
    def twice(step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        broken.run(at=twice)
    assert max(checkpoints_in(broken.folder)) == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_and_then_a_request_to_end_is_no_second_ctrl_c(broken: Runs) -> None:
    """So it comes from torchrun, which the terminal tells of Ctrl-C too."""

    def both(step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        broken.run(at=both)
    assert max(checkpoints_in(broken.folder)) == 3


def test_patience_is_not_forgotten(broken: Runs) -> None:
    """One validation without a better figure before the stop, one after it."""
    options = replace(OPTIONS, validate_every=2, patience=2)
    figures = {2: 0.1, 4: 0.2, 6: 0.3, 8: 0.0, 10: 0.0}
    with pytest.raises(KeyboardInterrupt):
        broken.run(options=options, figures=figures, at=send(signal.SIGINT, 4))
    result = broken.run(options=options, figures=figures, resume=True)
    assert (result.steps, result.figure, result.ended_early) == (6, 0.1, True)
    # And a run that has ended has nothing more to do.
    again = broken.run(options=options, figures=figures, resume=True)
    assert (again.steps, again.losses, again.weights_from) == (6, {}, result.weights_from)
    assert broken.steps == [*range(6)]


def test_a_folder_that_exists_is_not_trained_into(unbroken: Runs) -> None:
    before = unbroken.files()
    with pytest.raises(TrainingError, match="unbroken: exists already: choose another folder, or go on with --resume"):
        unbroken.run()
    assert unbroken.files() == before


def test_resuming_what_has_not_begun_begins(unbroken: Runs, broken: Runs) -> None:
    broken.run(resume=True)
    assert broken.said[0] == f"{broken.folder}: no checkpoint: from step 1"
    assert_the_same(unbroken, broken)


def test_a_checkpoint_of_another_run_is_refused(unbroken: Runs) -> None:
    where = f"{unbroken.folder}/checkpoints/step-000010: a checkpoint of another run, which differs in "
    cases: list[tuple[dict[str, Any], str]] = [
        ({"identity": {"recipe": "b"}}, "recipe (b, was a)"),
        ({"identity": {"recipe": "a", "data": {"holdout": "5%"}}}, "data.holdout (5%, was None)"),
        ({"options": replace(OPTIONS, rate=0.1, seed=3)}, "rate (0.1, was 0.05), seed (3, was 0)"),
        ({"net": TinyNet()}, "shapes of the weights"),
    ]
    for changed, words in cases:
        with pytest.raises(TrainingError) as error:
            unbroken.run(resume=True, **changed)
        assert str(error.value) == where + words


def test_what_identifies_a_run_may_hold_what_json_does_not(broken: Runs) -> None:
    identity: Any = {"data": {"speeds": (0.9, 1.1), "noise": Path("noise")}, "recipe": "a"}
    broken.run(identity=identity)
    broken.run(identity=identity, resume=True)
    with pytest.raises(TrainingError, match=r"differs in data.speeds \(\[0.9\], was \[0.9, 1.1\]\)"):
        broken.run(identity={**identity, "data": {**identity["data"], "speeds": (0.9,)}}, resume=True)


def test_what_does_not_change_the_numbers_may_be_changed(unbroken: Runs) -> None:
    unbroken.run(resume=True, options=replace(OPTIONS, accumulate=2, keep=5, workers=0, report_every=1))


def test_a_damaged_checkpoint_is_passed_over(unbroken: Runs) -> None:
    path = unbroken.folder / "checkpoints/step-000010/optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    expected = unbroken.net.state_dict()
    unbroken.steps.clear()
    unbroken.run(resume=True)
    assert any("step-000010: no checkpoint, or a damaged one" in line for line in unbroken.said)
    assert unbroken.steps == [8, 9]
    for name, value in unbroken.net.state_dict().items():
        assert torch.equal(value, expected[name])


def test_a_full_disk_is_one_line_and_the_last_checkpoint_is_good(
    unbroken: Runs, broken: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    real = module.save_file

    def save(tensors: Any, path: Path) -> None:
        written.append(path)
        if len(written) == 6:  # the optimizer of the third checkpoint
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(tensors, path)

    monkeypatch.setattr(module, "save_file", save)
    with pytest.raises(TrainingError) as error:
        broken.run()
    assert str(error.value) == (
        f"{broken.folder}/checkpoints/step-000006: cannot write the checkpoint: No space left on device: make room on "
        "the disk, and go on from the checkpoint before with --resume"
    )
    assert sorted(p.name for p in (broken.folder / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    broken.run(resume=True)
    assert_the_same(unbroken, broken)


def test_figures_that_cannot_be_written(broken: Runs) -> None:
    with pytest.raises(TrainingError, match=r"metrics.jsonl: cannot be written: Is a directory: make room"):
        broken.run(at=lambda step: (broken.folder / "metrics.jsonl").mkdir() if step == 2 else None)


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A good checkpoint."""
    folder = tmp_path / "checkpoints/step-000001"
    write_checkpoint(folder, some(1))
    return folder


def some(step: int) -> Checkpoint:
    return Checkpoint({"w": torch.arange(1000.0) * step}, {"w|m": torch.ones(2)}, TrainState(step=step), {"a": 1})


def test_a_file_that_the_system_cuts_off(earlier: Path) -> None:
    """The limit on a file's size is the nearest thing to a full disk that needs no rights."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(TrainingError, match=r"step-000002: cannot write the checkpoint: .*File too large"):
            write_checkpoint(earlier.with_name("step-000002"), some(2))
        with pytest.raises(TrainingError, match=r"step-000001: cannot write the checkpoint: .*File too large"):
            write_checkpoint(earlier, some(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert [path.name for path in earlier.parent.iterdir()] == ["step-000001"]
    assert read_checkpoint(earlier).state.step == 1


def test_a_process_killed_while_it_writes_leaves_the_earlier_one(
    earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.save_file

    def save(tensors: Any, path: Path) -> None:
        real(tensors, path)
        if path.name == module.OPTIMIZER:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(module, "save_file", save)
    for name in ("step-000001", "step-000002"):
        child = os.fork()
        if not child:
            try:
                write_checkpoint(earlier.with_name(name), some(2))
            finally:
                os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert len([*earlier.parent.iterdir()]) == 3
    assert [*checkpoints_in(earlier.parents[1])] == [1]
    assert torch.equal(read_checkpoint(earlier).model["w"], some(1).model["w"])
    sweep(earlier.parent)
    assert [path.name for path in earlier.parent.iterdir()] == ["step-000001"]


def test_tied_weights_and_views_are_kept(tmp_path: Path) -> None:
    whole = torch.arange(6.0).view(2, 3)
    model = {"one": whole, "tied": whole, "part": whole[:, 1], "turned": whole.T}
    write_checkpoint(tmp_path / "c", Checkpoint(model, {}, TrainState(step=3, candidates={2: 0.5}), {}))
    back = read_checkpoint(tmp_path / "c")
    assert all(torch.equal(back.model[name], value) for name, value in model.items())
    assert back.state == TrainState(step=3, candidates={2: 0.5})


def test_what_is_no_checkpoint(tmp_path: Path, earlier: Path) -> None:
    with pytest.raises(TrainingError, match="no checkpoint, or a damaged one"):
        read_checkpoint(tmp_path)
    (earlier / "state.json").write_text('{"format": 2}')
    with pytest.raises(TrainingError, match="format 2: this quantasr reads format 1"):
        read_checkpoint(earlier)


def test_the_configuration_is_written(unbroken: Runs) -> None:
    config = json.loads((unbroken.folder / "config.json").read_text())
    assert config["manifest"] == "train.json"
    assert TrainOptions.from_dict(config["options"]) == OPTIONS
    assert config["identity"]["recipe"] == "a"
    assert config["versions"]["torch"] == torch.__version__
