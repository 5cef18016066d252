"""The recipes that come with quantasr: ``<family>-<variant>.toml`` beside this file."""

from __future__ import annotations

from pathlib import Path

from quantasr.errors import RecipeError
from quantasr.recipes.recipe import Recipe

_FOLDER = Path(__file__).parent


def builtin_names() -> list[str]:
    """Names of all built-in recipes, such as ``wav2vec2-default``."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def builtin_recipe(family: str, variant: str = "default") -> Recipe:
    """The recipe of a model family; raises :class:`RecipeError` listing the choices."""
    path = _FOLDER / f"{family}-{variant}.toml"
    if not path.is_file():
        known = [name.removeprefix(f"{family}-") for name in builtin_names() if name.startswith(f"{family}-")]
        choice = f"choose one of {', '.join(known)}" if known else "write one as a TOML file"
        raise RecipeError(f"no built-in recipe {variant!r} for {family} models: {choice}")
    return Recipe.load(path)
