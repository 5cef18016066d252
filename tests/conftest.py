"""What all tests share."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

# No test may need the network; asked before any library reads it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# What `quantize` says on its way; every other line on standard error is a complaint.
_STEPS = ("loading ", "exporting ", "calibrating ", "comparing ", "timing ", "-- ")


@pytest.fixture(scope="session", autouse=True)
def engine_choices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of the tests' own for remembered engines, also for the processes that they start."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTASR_CACHE", str(folder))
        yield folder


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems() -> None:
    _let_modules_be_asked_for_their_file()


@pytest.fixture(autouse=True)
def modules_with_files() -> None:
    """As when tests are collected, for what a test before has imported."""
    _let_modules_be_asked_for_their_file()


def _let_modules_be_asked_for_their_file() -> None:
    """Hypothesis asks every module for its file, and SpeechBrain's lazy ones try to import what is not installed."""
    lazy = sys.modules.get("speechbrain.utils.importutils")
    if lazy is not None:
        lazy.LazyModule.__file__ = None


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Ctrl-C as it was: a command that was interrupted leaves it ignored, because its process is about to end."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def tiny_hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny Hugging Face model by its name in :data:`tiny_hf.VARIANTS`, made once. Read it only."""

    @cache
    def folder(name: str) -> Path:
        import tiny_hf

        return tiny_hf.save(name, tmp_path_factory.mktemp(name))

    return folder


@pytest.fixture(scope="session")
def tiny_nemo_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The `.nemo` file of a tiny NeMo model by its name in :data:`tiny_nemo.VARIANTS`, made once. Read it only."""

    @cache
    def file(name: str) -> Path:
        import tiny_nemo

        return tiny_nemo.save(name, tmp_path_factory.mktemp(name))

    return file


@pytest.fixture(scope="session")
def tiny_speechbrain_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny SpeechBrain CTC model by its name in :data:`tiny_speechbrain.VARIANTS`. Read it only."""

    @cache
    def folder(name: str) -> Path:
        import tiny_speechbrain

        return tiny_speechbrain.save(name, tmp_path_factory.mktemp(name))

    return folder


@pytest.fixture(scope="session")
def sample_artifact(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The artifact of the sample by a built-in recipe's name (default, fast), made once. Read it only."""

    @cache
    def folder(recipe: str = "default") -> Path:
        from quantasr import sample
        from quantasr.pipeline import quantize

        where = tmp_path_factory.mktemp("artifacts") / recipe
        quantize(sample.model(), where, calibration=sample.calibration(), recipe=recipe)
        return where

    return folder


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        """Lines on standard error that are no progress: quantasr's own, or those of a library that is too loud."""
        return [line for line in self.err.splitlines() if not line.startswith(_STEPS)]


@pytest.fixture
def quantasr_cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run a command of the command line in this process; what libraries print is seen too."""

    def run(*arguments: object) -> Ran:
        from quantasr.cli import main

        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Ran(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def tiny_model(
    tiny_hf_folder: Callable[[str], Path],
    tiny_nemo_file: Callable[[str], Path],
    tiny_speechbrain_folder: Callable[[str], Path],
) -> Callable[[str], Path]:
    """Where the tiny model of a name, of whichever source, was saved; SpeechBrain's need trust."""
    import tiny_hf
    import tiny_nemo

    def place(name: str) -> Path:
        if name.startswith("sb-"):
            return tiny_speechbrain_folder(name)
        if name in tiny_hf.VARIANTS:
            return tiny_hf_folder(name)
        return tiny_nemo.ctc(tiny_nemo_file(name))

    return place
