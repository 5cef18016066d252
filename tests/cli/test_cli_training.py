"""``quantasr finetune`` and ``quantasr qat``: what users give, and what they get wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import tiny_hf

from quantasr import pipeline, sample
from quantasr.measure.gain import Gain
from quantasr.recipes import builtin_recipe
from quantasr.speech.manifest import Utterance, read_manifest, write_manifest

KALDI = Path(__file__).parents[1] / "data/kaldi/digits"
ATTENTION = Path(__file__).parents[1] / "data/speechbrain/crdnn_attention"
FEW = ("--steps", "2", "--batch", "2", "--set", "train.validate_every=0")
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl (4 recordings), cal.jsonl and dev.jsonl (2 each)."""
    folder = tmp_path_factory.mktemp("speech")
    utterances = []
    for i, wave in enumerate(tiny_hf.speech(1.0, 0.7, 0.8, 0.9, 0.95, 0.6, 0.75, 0.85)):
        soundfile.write(folder / f"{i}.wav", wave, 16000)
        utterances.append(Utterance(f"u{i}", folder / f"{i}.wav", "abc de"))
    for name, part in (("train", utterances[:4]), ("cal", utterances[4:6]), ("dev", utterances[6:])):
        write_manifest(part, folder / f"{name}.jsonl")
    return folder


@pytest.fixture
def model(tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model("wav2vec2-large")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without timing the artifact."""
    monkeypatch.setattr(pipeline, "gain", lambda artifact, graph: Gain(1.0, ("artifact", "fp32"), ("float", "fp32")))


def test_qat_says_what_it_does_and_what_came_of_it(
    model: Path, speech: Path, tmp_path: Path, quantasr_cli: Run, quick: None
) -> None:
    config = tmp_path / "qat.toml"
    config.write_text('[train]\nsteps = 9\nrate = 1e-3\nseed = 5\n[qat]\nscales = "learned"\n', "utf-8")
    arguments = [
        "qat",
        model,
        tmp_path / "out",
        "--calibration",
        speech / "cal.jsonl",
        "--train",
        speech / "train.jsonl",
    ]
    arguments += ["--validation", speech / "dev.jsonl", "--config", config, *FEW]
    arguments += [
        "--scales",
        "observed",
        "--set",
        "data.augment.speeds=[0.9, 1.1]",
        "--set",
        "qat.freeze_scales_after=1",
    ]
    ran = quantasr_cli(*arguments)
    assert ran.code == 0, ran.err
    first, second, third = ran.out.splitlines()
    assert first.startswith("WER on validation, before") and second.startswith("WER on validation, after")
    assert third == f"{tmp_path / 'out'}  (run: {tmp_path / 'out.run'})"
    assert "training on 4 of 4 utterances" in ran.err and "step 2/2" in ran.err
    # Options on the command line come before the file, which comes before the defaults.
    told = json.loads((tmp_path / "out" / "artifact.json").read_text("utf-8"))["provenance"]["training"]["config"]
    assert (told["train"]["steps"], told["train"]["rate"], told["train"]["seed"]) == (2, 1e-3, 5)
    assert told["qat"] == {"scales": "observed", "freeze_scales_after": 1}
    assert told["data"]["augment"]["speeds"] == [0.9, 1.1]
    # Done, but for the artifact: it is exported again, and nothing is trained.
    again = quantasr_cli(*arguments, "--resume", "--overwrite", "--json")
    assert again.code == 0 and json.loads(again.out)["steps"] == 2 and "step 2/2" not in again.err


def test_finetune_as_json(model: Path, speech: Path, tmp_path: Path, quantasr_cli: Run) -> None:
    ran = quantasr_cli(
        "finetune", model, tmp_path / "out", "--train", speech / "train.jsonl", "--holdout", "25%", *FEW, "--json"
    )
    row = json.loads(ran.out)
    assert ran.code == 0 and row["folder"] == str(tmp_path / "out") and set(row["after"]) == {"wer"}
    assert (tmp_path / "out" / "model.safetensors").is_file()


def rewritten(speech: Path, target: Path, **changes: Any) -> Path:
    """The training manifest with some fields of all utterances changed."""
    write_manifest([replace(u, **changes) for u in read_manifest(speech / "train.jsonl")], target)
    return target


def written(target: Path, text: str) -> Path:
    target.write_text(text, "utf-8")
    return target


# name -> what is added to a good command (an option given twice counts as given last), and words of the complaint
WRONG: dict[str, tuple[Callable[[Path, Path], list[Any]], tuple[str, ...]]] = {
    "empty transcripts": (
        lambda speech, tmp: ["--train", rewritten(speech, tmp / "empty.jsonl", text=" ")],
        ("no utterance can be trained on", "4 utterances with an empty text"),
    ),
    "no transcripts": (
        lambda speech, tmp: ["--train", rewritten(speech, tmp / "none.jsonl", text=None)],
        ("4 utterances without a text",),
    ),
    "characters outside of the vocabulary": (
        lambda speech, tmp: ["--train", rewritten(speech, tmp / "x.jsonl", text="abc zz é")],
        ("'z' 8 times", "'é' 4 times"),
    ),
    "less sound than text": (
        lambda speech, tmp: ["--train", rewritten(speech, tmp / "long.jsonl", text="abcde fgh " * 100)],
        ("4 utterances with less sound than the text needs",),
    ),
    "too long": (
        lambda speech, tmp: ["--set", "data.max_seconds=0.5"],
        ("longer than 0.5 s, which may not fit into memory",),
    ),
    "no such manifest": (lambda speech, tmp: ["--train", tmp / "nowhere.jsonl"], ("nowhere.jsonl",)),
    "validated on training speech": (
        lambda speech, tmp: ["--validation", speech / "train.jsonl"],
        ("train.jsonl", "validation"),
    ),
    "tested on training speech": (lambda speech, tmp: ["--test", speech / "train.jsonl"], ("train.jsonl", "test")),
    "both ways to validate": (lambda speech, tmp: ["--holdout", "25%"], ("exclude each other",)),
    "an amount that is none": (lambda speech, tmp: ["--holdout", "some"], ("'some' is no amount of speech",)),
    "an unknown setting": (
        lambda speech, tmp: ["--set", "train.nonsense=1"],
        ("options, train: unknown option 'nonsense'", "batch"),
    ),
    "an unknown table": (lambda speech, tmp: ["--set", "nonsense=1"], ("unknown option 'nonsense'", "time_masking")),
    "a setting without a value": (lambda speech, tmp: ["--set", "train.rate"], ("KEY=VALUE",)),
    "a setting in a setting": (
        lambda speech, tmp: ["--set", "train.rate.x=1"],
        ("train: rate = {'x': 1}: write a number",),
    ),
    "a setting below what is none": (
        lambda speech, tmp: ["--rate", "1", "--set", "train.rate.x=1"],
        ("train.rate.x=1: rate is no table",),
    ),
    "a value of another type": (lambda speech, tmp: ["--set", "train.batch=many"], ("batch = 'many'", "whole number")),
    "text for time masking": (lambda speech, tmp: ["--set", "time_masking=much"], ("time_masking",)),
    "text for a temperature": (lambda speech, tmp: ["--set", "loss.temperature=hot"], ("temperature",)),
    "text for seconds": (lambda speech, tmp: ["--set", "data.max_seconds=long"], ("max_seconds",)),
    "a number for speeds": (lambda speech, tmp: ["--set", "data.augment.speeds=1.1"], ("speeds",)),
    "text for loudness": (lambda speech, tmp: ["--set", "data.augment.gain_db=loud"], ("gain_db",)),
    "text for a mask": (
        lambda speech, tmp: ["--set", "data.augment.spec_augment.time_masks=two"],
        ("time_masks",),
    ),
    "an unknown table in a table": (
        lambda speech, tmp: ["--set", "data.augment.spec_augment.stripes=2"],
        ("stripes",),
    ),
    "a list of losses": (lambda speech, tmp: ["--set", "loss.kind=[1]"], ("loss: kind = [1]: write a string",)),
    "loss is no table": (
        lambda speech, tmp: ["--config", written(tmp / "c.toml", 'loss = "ctc"')],
        ("c.toml", "loss = 'ctc'", "[loss]"),
    ),
    "an unknown key": (
        lambda speech, tmp: ["--config", written(tmp / "c.toml", "[train]\nlearning_rate = 1")],
        ("c.toml, train: unknown option 'learning_rate'", "rate"),
    ),
    "broken TOML": (lambda speech, tmp: ["--config", written(tmp / "c.toml", "[train\n")], ("c.toml: not TOML",)),
    "no configuration": (lambda speech, tmp: ["--config", tmp / "c.toml"], ("c.toml: cannot read",)),
    "masks for a wave": (
        lambda speech, tmp: ["--set", "data.augment.spec_augment.time_masks=2"],
        ("spec_augment", "time_masking"),
    ),
    "LF-MMI": (lambda speech, tmp: ["--set", "loss.kind=lf_mmi"], ("is no chain model of Kaldi's",)),
    "nothing to freeze": (lambda speech, tmp: ["--set", "train.freeze=nonsense"], ("freeze",)),
    "nothing of that name": (lambda speech, tmp: ["--set", 'train.freeze=["nonsense"]'], ("nonsense",)),
    "no such precision": (lambda speech, tmp: ["--precision", "int8"], ("precision = 'int8'", "bf16")),
    "patience without validation": (lambda speech, tmp: ["--set", "train.patience=2"], ("set validate_every",)),
    "a wrong observer": (lambda speech, tmp: ["--set", "qat.scales=guessed"], ("scales = 'guessed'", "learned")),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_a_line(
    name: str, model: Path, speech: Path, tmp_path: Path, quantasr_cli: Run
) -> None:
    make, words = WRONG[name]
    given = ["--train", speech / "train.jsonl", "--validation", speech / "dev.jsonl", *FEW, *make(speech, tmp_path)]
    ran = quantasr_cli("qat", model, tmp_path / "out", "--calibration", speech / "cal.jsonl", *given)
    refused(ran, tmp_path, *words)


def refused(ran: Any, folder: Path, *words: str) -> None:
    """One line, no output, and neither an artifact nor a run's folder."""
    lines = [line for line in ran.err.splitlines() if line.startswith("quantasr:")]
    assert ran.code == 1 and ran.out == "" and len(lines) == 1, ran.err
    assert "Traceback" not in ran.err
    for word in words:
        assert word in lines[0]
    assert not {path.name for path in folder.iterdir()} & {"out", "out.run"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--holdout", "25%", "--set", "loss.kind=distillation"], ("needs a float original", "not for finetune")),
        ([], ("there is no validation manifest", "holdout")),
        (["--holdout", "25%", "--vocabulary", "nowhere.txt"], ("nowhere.txt: cannot be read",)),
    ],
    ids=["distillation", "no validation", "no vocabulary"],
)
def test_what_finetune_refuses(
    model: Path, speech: Path, tmp_path: Path, quantasr_cli: Run, arguments: list[str], words: tuple[str, ...]
) -> None:
    ran = quantasr_cli("finetune", model, tmp_path / "out", "--train", speech / "train.jsonl", *FEW, *arguments)
    refused(ran, tmp_path, *words)


def test_what_is_there_is_kept(model: Path, speech: Path, tmp_path: Path, quantasr_cli: Run, quick: None) -> None:
    speeches = ["--train", speech / "train.jsonl", "--validation", speech / "dev.jsonl", *FEW]
    calibrated = [*speeches, "--calibration", speech / "cal.jsonl"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for arguments in (
        ("finetune", model, tmp_path / "mine", *speeches),
        ("qat", model, tmp_path / "mine", *calibrated),
    ):
        refused(quantasr_cli(*arguments), tmp_path, str(tmp_path / "mine"), "exists")
    run = ["--run", tmp_path / "mine"]
    refused(quantasr_cli("qat", model, tmp_path / "out", *calibrated, *run), tmp_path, "exists already", "--resume")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    # Another recipe, and another model, in the run of this one.
    assert quantasr_cli("qat", model, tmp_path / "first", *calibrated).code == 0
    resumed = [tmp_path / "out", *calibrated, "--run", tmp_path / "first.run", "--resume"]
    refused(quantasr_cli("qat", model, *resumed, "--recipe", "fast"), tmp_path, "a checkpoint of another run", "recipe")
    tuned = tmp_path / "tuned"
    assert quantasr_cli("finetune", model, tuned, *speeches).code == 0
    refused(quantasr_cli("qat", tuned, *resumed), tmp_path, "a checkpoint of another run", "weights")


def test_models_that_cannot_be_trained_so(speech: Path, tmp_path: Path, quantasr_cli: Run) -> None:
    strings = read_manifest(sample.calibration())
    write_manifest(strings[:6], tmp_path / "strings.jsonl")
    given = [tmp_path / "out", "--train", tmp_path / "strings.jsonl", "--holdout", "25%", "--trust", *FEW]
    refused(quantasr_cli("finetune", KALDI, *given, "--loss", "ctc"), tmp_path, "is no CTC model", "lf_mmi")
    refused(quantasr_cli("finetune", KALDI, *given, "--vocabulary", "characters"), tmp_path, "is no CTC model")
    refused(quantasr_cli("finetune", ATTENTION, *given), tmp_path, "decodes step by step (attention)")
    write_manifest([replace(u, text="nine eleven") for u in strings[:6]], tmp_path / "strings.jsonl")
    refused(quantasr_cli("finetune", KALDI, *given), tmp_path, "no transcript has only words of the lexicon")
    with pytest.raises(SystemExit):
        quantasr_cli("finetune", KALDI, *given, "--loss", "distillation")


@pytest.mark.parametrize(
    "packages", [("accelerate", "accelerate.state", "accelerate.utils"), ("torch.utils.tensorboard",)]
)
def test_a_missing_extra_is_named(
    packages: tuple[str, ...],
    model: Path,
    speech: Path,
    tmp_path: Path,
    quantasr_cli: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)
    given = ["--train", speech / "train.jsonl", "--validation", speech / "dev.jsonl", *FEW]
    ran = quantasr_cli("finetune", model, tmp_path / "out", *given)
    refused(ran, tmp_path, "pip install 'quantasr[train]'")


def test_a_recipe_that_does_not_fit_is_said_before_anything_is_done(
    model: Path, speech: Path, tmp_path: Path, quantasr_cli: Run
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(replace(builtin_recipe("nemo_conv", "fast"), exclude=("nonsense",)).dumps(), "utf-8")
    given = ["--train", speech / "train.jsonl", "--validation", speech / "dev.jsonl", *FEW]
    ran = quantasr_cli(
        "qat", model, tmp_path / "out", "--calibration", speech / "cal.jsonl", "--recipe", recipe, *given
    )
    refused(ran, tmp_path, "'nonsense' matches no layer")


def test_the_other_processes_say_nothing(
    model: Path, tmp_path: Path, quantasr_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    ran = quantasr_cli("finetune", model, tmp_path / "out", "--train", tmp_path / "nowhere.jsonl", "--holdout", "25%")
    refused(ran, tmp_path, "nowhere.jsonl")
    assert len(ran.err.splitlines()) == 1
