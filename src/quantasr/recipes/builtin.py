"""The recipes that come with quantasr: ``<family>-<variant>.toml`` beside this file, and ``any-<variant>.toml``."""

from __future__ import annotations

from pathlib import Path

from quantasr.errors import RecipeError
from quantasr.recipes.recipe import Recipe

_FOLDER = Path(__file__).parent
_ANY = "any"
"""Stands for the family in recipes that name no layer, so that they fit every model."""


def builtin_names() -> list[str]:
    """Names of all built-in recipes, such as ``wav2vec2-default``."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def builtin_recipe(family: str, variant: str = "default") -> Recipe:
    """The recipe of a model family; raises :class:`RecipeError` listing the choices."""
    for owner in (family, _ANY):
        if (path := _FOLDER / f"{owner}-{variant}.toml").is_file():
            return Recipe.load(path)
    known = [name.partition("-")[2] for name in builtin_names() if name.partition("-")[0] in (family, _ANY)]
    raise RecipeError(
        f"no built-in recipe {variant!r} for {family} models: choose one of {', '.join(known)}, or a file"
    )
