"""Recipes: which layers are quantized, and how."""

from quantasr.recipes.builtin import builtin_names, builtin_recipe
from quantasr.recipes.recipe import QConfig, Recipe, Rule

__all__ = ["QConfig", "Recipe", "Rule", "builtin_names", "builtin_recipe"]
