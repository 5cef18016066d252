"""The recipes that come with quantasr."""

import pytest

from quantasr.errors import RecipeError
from quantasr.recipes import builtin_names, builtin_recipe
from quantasr.sources.huggingface import FAMILIES


@pytest.mark.parametrize("family", sorted(set(FAMILIES.values())))
@pytest.mark.parametrize("variant", ["default", "fast"])
def test_every_family_has_a_careful_and_a_fast_one(family: str, variant: str) -> None:
    recipe = builtin_recipe(family, variant)
    assert recipe.name == f"{family}-{variant}"
    assert recipe.name in builtin_names()
    assert recipe.description
    assert recipe.qconfig("lm_head", "linear").mode == "float", "the CTC head decides the letters"


def test_an_unknown_variant_lists_the_choices() -> None:
    with pytest.raises(
        RecipeError, match="no built-in recipe 'best' for wav2vec2 models: choose one of default, fast, fastest"
    ):
        builtin_recipe("wav2vec2", "best")
    with pytest.raises(RecipeError, match="no built-in recipe 'default' for quartznet models: write one"):
        builtin_recipe("quartznet")
