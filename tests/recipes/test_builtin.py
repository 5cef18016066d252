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


@pytest.mark.parametrize("family", ["nemo_conv", "nemo_conformer"])
@pytest.mark.parametrize("variant", ["default", "fast"])
def test_recipes_of_nemos_encoders(family: str, variant: str) -> None:
    recipe = builtin_recipe(family, variant)
    assert recipe.name == f"{family}-{variant}" and recipe.description
    depthwise = recipe.qconfig("encoder.encoder.3.mconv.0.conv", "depthwise_conv1d").mode
    head = recipe.qconfig("decoder.decoder_layers.0", "conv1d").mode
    assert depthwise == head == ("float" if variant == "default" else "static")
    assert recipe.qconfig("encoder.encoder.3.mconv.1.conv", "conv1d").mode == "static"
    squeeze = recipe.qconfig("encoder.encoder.3.mconv.3.fc.0", "linear").mode
    assert squeeze == ("static" if family == "nemo_conformer" else "float")


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_half_precision_fits_every_family(variant: str) -> None:
    recipe = builtin_recipe("nemo_conv", variant)
    assert recipe.halves and recipe.float_storage == variant
    recipe.check_used({"encoder.conv": "conv1d"})  # no complaint that nothing is quantized


def test_an_unknown_variant_lists_the_choices() -> None:
    choices = "choose one of bf16, fp16, default, fast, fastest, or a file"
    with pytest.raises(RecipeError, match=f"no built-in recipe 'best' for wav2vec2 models: {choices}"):
        builtin_recipe("wav2vec2", "best")
    with pytest.raises(
        RecipeError, match="no built-in recipe 'default' for quartznet models: choose one of bf16, fp16"
    ):
        builtin_recipe("quartznet")


SPEECHBRAIN = "encoder.wav2vec2.model."


def test_the_published_choice_for_speechbrain() -> None:
    recipe = builtin_recipe("speechbrain_wav2vec2", "published")

    def mode(path: str, kind: str = "linear") -> str:
        return recipe.qconfig(path, kind).mode

    assert mode(f"{SPEECHBRAIN}encoder.layers.3.attention.q_proj") == "dynamic"
    assert mode("encoder.enc.linear1.w") == "dynamic"
    assert mode(f"{SPEECHBRAIN}feature_extractor.conv_layers.0.conv", "conv1d") == "static"
    assert mode(f"{SPEECHBRAIN}feature_projection.projection") == "static"
    assert mode(f"{SPEECHBRAIN}encoder.pos_conv_embed.conv", "conv1d") == "float"
    assert mode("encoder.ctc_lin.w") == "float"


@pytest.mark.parametrize("variant", ["default", "fast", "fastest"])
def test_speechbrains_head_stays_float(variant: str) -> None:
    recipe = builtin_recipe("speechbrain_wav2vec2", variant)
    assert recipe.qconfig("encoder.ctc_lin.w", "linear").mode == "float"
    assert recipe.qconfig(f"{SPEECHBRAIN}encoder.layers.3.feed_forward.output_dense", "linear").mode == "static"
    first, second = (
        recipe.qconfig(f"{SPEECHBRAIN}feature_extractor.conv_layers.{i}.conv", "conv1d").mode for i in (0, 1)
    )
    assert (first, second) == (("float", "float") if variant == "default" else ("float", "static"))


@pytest.mark.parametrize("variant", ["default", "fast"])
def test_recurrent_layers_of_speechbrain_are_dynamic(variant: str) -> None:
    recipe = builtin_recipe("speechbrain_crdnn", variant)
    assert recipe.qconfig("encoder.model.RNN.rnn", "lstm").mode == "dynamic"
    assert recipe.qconfig("encoder.model.CNN.block_0.conv_1.conv", "conv2d").mode == "float"
    assert recipe.qconfig("encoder.model.CNN.block_0.conv_2.conv", "conv2d").mode == "static"
    assert recipe.qconfig("encoder.ctc_lin.w", "linear").mode == ("float" if variant == "default" else "static")
    attention = builtin_recipe("speechbrain_attention", variant)
    assert attention.qconfig("encoder.RNN.rnn", "gru").mode == "dynamic"
    assert attention.qconfig("decoder.dec.rnn.rnn_cells.0", "gru_cell").mode == (
        "float" if variant == "default" else "dynamic"
    )
