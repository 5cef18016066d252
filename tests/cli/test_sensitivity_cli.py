"""``quantasr sensitivity``: its table, its files, and what a user can get wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from quantasr import sample
from quantasr.recipes import Recipe
from quantasr.speech.manifest import Utterance, read_manifest, write_manifest

Cli = Callable[..., Any]
MODEL = ("sensitivity", sample.model(), "--calibration", sample.calibration(), "--limit", 2, "--threads", 1)


def test_a_table_and_files(quantasr_cli: Cli, tmp_path: Path) -> None:
    output, recipe = tmp_path / "out.json", tmp_path / "mine.toml"
    ran = quantasr_cli(
        *(*MODEL, "--manifest", sample.evaluation(), "--by", "kind", "--no-time", "--max-kl", 1e-4),
        *("--output", output, "--write-recipe", recipe),
    )
    assert ran.code == 0, ran.err
    for words in ("conv1d", "linear", "attention products", "everything", "WER − float", "leave float: KL"):
        assert words in ran.out
    assert "time ÷ float" not in ran.out and not [line for line in ran.err.splitlines() if "quantasr:" in line]
    row = json.loads(output.read_text("utf-8"))
    assert {group["name"]: group["leave_float"] for group in row["groups"]} == {
        "conv1d": True,
        "linear": False,
        "attention products": False,
    }
    assert Recipe.load(recipe).to_dict() == row["recipe"] and Recipe.load(recipe).attention_products


def test_json_and_time(quantasr_cli: Cli) -> None:
    options = ("--by", "part", "--match", "lm_head", "--engine", "onnxruntime", "--rounds", 2, "--json")
    ran = quantasr_cli(*MODEL, *options)
    assert ran.code == 0, ran.err
    row = json.loads(ran.out)
    assert [group["name"] for group in row["groups"]] == ["lm_head"] and row["groups"][0]["time"]["median"] > 0
    assert "quantasr: log-probs are compared on the calibration speech" in ran.err


def test_nothing_to_quantize_is_no_recipe(quantasr_cli: Cli, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    ran = quantasr_cli(*MODEL, "--by", "part", "--no-time", "--max-kl", 0, "--write-recipe", recipe)
    assert ran.code == 1 and not recipe.exists()
    assert f"quantasr: {recipe}: not written: the table advises to leave everything float" in ran.err


def test_speech_without_texts_needs_no_texts(quantasr_cli: Cli, tmp_path: Path) -> None:
    utterances = read_manifest(sample.evaluation())[:2]
    write_manifest([Utterance(u.id, u.audio, None) for u in utterances], tmp_path / "speech.jsonl")
    ran = quantasr_cli(*MODEL, "--manifest", tmp_path / "speech.jsonl", "--by", "part", "--no-time")
    assert ran.code == 0 and "WER − float" not in ran.out
    assert "quantasr: 2 of 2 utterances have no text: WER is left out" in ran.err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--manifest", sample.calibration()), "2 of 2 calibration utterances are in the evaluation manifest too"),
        (("--match", "encoder.layers"), "pattern 'encoder.layers' matches no layer"),
        (("--output", "/no/such/folder/out.json"), "cannot be written: there is no such folder"),
        (("--write-recipe", "/no/such/folder/mine.toml"), "cannot be written: there is no such folder"),
        (("--recipe", "none.toml"), "none.toml: cannot read the recipe"),
    ],
)
def test_one_line_for_what_is_wrong(options: tuple[Any, ...], complaint: str, quantasr_cli: Cli) -> None:
    ran = quantasr_cli(*MODEL, *options)
    (line,) = [line for line in ran.err.splitlines() if line.startswith("quantasr:")]
    assert ran.code == 1 and complaint in line


@pytest.mark.parametrize("options", [("--by", "shape"), ("--engine", "torch:float"), ("--max-kl", "-1")])
def test_wrong_usage(options: tuple[str, ...], quantasr_cli: Cli) -> None:
    with pytest.raises(SystemExit) as stopped:
        quantasr_cli(*MODEL, *options)
    assert stopped.value.code == 2


def test_interrupted(quantasr_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("quantasr.sensitivity"), "compare", stop)
    ran = quantasr_cli(*MODEL, "--output", tmp_path / "out.json")
    assert ran.code == 130 and "interrupted" in ran.err and not list(tmp_path.iterdir())
