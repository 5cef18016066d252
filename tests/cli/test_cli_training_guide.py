"""What docs/qat.md and examples/qat say is so: settings, defaults, commands, recipes."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from quantasr.cli import parser
from quantasr.quantize.layers import kind_of
from quantasr.recipes import Recipe
from quantasr.sources import load_model
from quantasr.training.augment import AugmentOptions
from quantasr.training.config import TrainingConfig
from quantasr.training.spec_augment import SpecAugment

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs/qat.md"
EXAMPLES = ROOT / "examples/qat"
SETTINGS = ("wav2vec2_librispeech", "nemo_conformer", "speechbrain_ctc", "kaldi_tdnn")
# recipe -> models of that family: those of the checkout, and tiny ones whose parts are those of full size
RECIPES = {
    "wav2vec2_parts": ("src/quantasr/sample/digits", "wav2vec2-base", "wav2vec2-large", "hubert-base", "wavlm-large"),
    "nemo_conformer_w4": ("tests/data/nemo/conformer.nemo", "fastconformer"),
    "speechbrain_ctc_w4": ("tests/data/speechbrain/wav2vec2_ctc", "sb-wav2vec2"),
    "kaldi_tdnn_w4": ("tests/data/kaldi/digits",),
}


def settings(text: str) -> str:
    """The block of the guide that has all settings."""
    (block,) = [b for b in re.findall(r"```toml\n(.*?)```", text, re.S) if "[train]" in b]
    return str(block)


def names(kind: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every setting, by the tables that it is in."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        inner = SpecAugment if (kind, field.name) == (AugmentOptions, "spec_augment") else hints[field.name]
        if is_dataclass(inner):
            yield from names(inner, (*above, field.name))
        else:
            yield (*above, field.name)


def test_the_guide_has_every_setting_and_its_default() -> None:
    text = settings(GUIDE.read_text("utf-8"))
    table = tomllib.loads(text)
    masks = table["data"]["augment"].pop("spec_augment")
    assert TrainingConfig.from_dict(table) == TrainingConfig()
    assert SpecAugment(**masks) == SpecAugment()
    # What has no default is written as a comment; it must be a setting all the same.
    whole = tomllib.loads(re.sub(r"^# (\w+ = )", r"\1", text, flags=re.M))
    TrainingConfig.from_dict(whole)
    for place in names(TrainingConfig):
        inner: Any = whole
        for name in place:
            assert name in inner, f"docs/qat.md lacks {'.'.join(place)}"
            inner = inner[name]


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_examples(name: str) -> None:
    config = TrainingConfig.load(EXAMPLES / f"{name}.toml")
    assert config.train.rate <= 1e-4 and config.train.epochs <= 3


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_of_the_examples_fit_their_models(name: str, tiny_model: Callable[[str], Path]) -> None:
    recipe = Recipe.load(EXAMPLES / f"{name}.toml")
    for place in RECIPES[name]:
        model = load_model(ROOT / place if "/" in place else tiny_model(place), trust=True)
        found = {path: kind_of(module) for path, module in model.module.named_modules()}
        layers = {path: str(kind) for path, kind in found.items() if kind is not None}
        recipe.check_used(layers)
        told = {path: recipe.qconfig(path, kind) for path, kind in layers.items()}
        assert sum(q.mode == "static" for q in told.values()) >= 8
        heads = [q for path, q in told.items() if re.search(r"lm_head|decoder_layers|ctc_lin", path)]
        assert all(q.mode == "float" for q in heads)
        convolutions = [q for path, q in told.items() if re.search(r"feature_extractor\.conv_layers\.[1-9]", path)]
        if name == "wav2vec2_parts":
            assert all((q.weight.granularity, q.weight.symmetric) == ("per_tensor", True) for q in convolutions)
            assert {q.weight.granularity for path, q in told.items() if "q_proj" in path} == {"per_channel"}


def test_every_file_of_the_examples_is_known() -> None:
    files = {path.stem for path in EXAMPLES.glob("*.toml")}
    assert files == {*SETTINGS, *RECIPES}
    for text in ((EXAMPLES / "README.md").read_text("utf-8"), (EXAMPLES / "on_digits.sh").read_text("utf-8")):
        assert all(f"{name}.toml" in text for name in files)


def commands(path: Path) -> list[list[str]]:
    """Commands of a page, without what the shell does to them."""
    text = path.read_text("utf-8").replace("\\\n", " ")
    found = []
    for line in re.findall(r"^ *(?:\$ )?((?:quantasr|accelerate|torchrun) .*)", text, re.M):
        words = shlex.split(line, comments=True)
        words = words[len(words) - words[::-1].index("quantasr") :]
        if "..." not in words:
            found.append(words)
    return found


@pytest.mark.parametrize("path", [GUIDE, EXAMPLES / "README.md"], ids=lambda path: path.parent.name)
def test_commands_are_ones_that_the_command_line_takes(path: Path) -> None:
    found = commands(path)
    assert len(found) >= 5
    for words in found:
        parser([words[0]]).parse_args(words)
