"""Recipes: which rule speaks for a layer, TOML there and back, and one clear line for every mistake."""

from pathlib import Path
from typing import Any

import pytest

from quantasr.errors import RecipeError
from quantasr.numerics.qtypes import QType
from quantasr.recipes import QConfig, Recipe, Rule

LAYERS = {
    "encoder.layers.0.attention.q": "linear",
    "encoder.layers.0.conv": "conv1d",
    "encoder.layers.1.attention.q": "linear",
    "encoder.layers.1.conv": "conv1d",
    "lm_head": "linear",
}


def _recipe(*rules: Rule, **options: Any) -> Recipe:
    return Recipe("test", rules, **options)


def _modes(recipe: Recipe) -> dict[str, str]:
    return {path: recipe.qconfig(path, kind).mode for path, kind in LAYERS.items()}


def test_the_last_rule_that_matches_wins() -> None:
    recipe = _recipe(
        Rule("*", {"mode": "dynamic"}),
        Rule("encoder.*", {"mode": "weight_only", "weight": {"bits": 4}}),
        Rule("*.attention.*", {"mode": "static"}),
        Rule("*.1.*", {"mode": "float"}, kind="conv1d"),
    )
    assert _modes(recipe) == {
        "encoder.layers.0.attention.q": "static",
        "encoder.layers.0.conv": "weight_only",
        "encoder.layers.1.attention.q": "static",
        "encoder.layers.1.conv": "float",
        "lm_head": "dynamic",
    }
    # A rule starts from the defaults, not from an earlier rule.
    assert recipe.qconfig("encoder.layers.0.conv", "conv1d").weight.bits == 4
    assert recipe.qconfig("encoder.layers.0.attention.q", "linear").weight.bits == 7  # of 8: reduce_range


def test_a_layer_that_no_rule_names_and_one_that_is_excluded_stay_float() -> None:
    recipe = _recipe(Rule("*", kind="linear"), exclude=("lm_head", "*.1.attention.?"))
    assert [path for path, mode in _modes(recipe).items() if mode == "static"] == ["encoder.layers.0.attention.q"]


def test_a_rule_fills_what_it_leaves_open_from_the_defaults() -> None:
    defaults = QConfig(weight=QType(4, True, "per_group", 32), input_observer="mse")
    recipe = _recipe(
        Rule("*.q", {"weight": {"bits": 5}}),
        Rule("*.conv", {"weight": {"granularity": "per_channel"}, "input": {"bits": 7, "observer": "min_max"}}),
        defaults=defaults,
    )
    q = recipe.qconfig("encoder.layers.0.attention.q", "linear")
    assert (q.weight, q.input, q.input_observer) == (QType(5, True, "per_group", 32), QType(8, False), "mse")
    conv = recipe.qconfig("encoder.layers.0.conv", "conv1d")
    assert (conv.weight, conv.input, conv.input_observer) == (QType(4, True, "per_channel"), QType(7, False), "min_max")


def test_reduce_range_takes_one_bit_from_8_bit_weights_alone() -> None:
    rules = (Rule("*"), Rule("*.conv", {"weight": {"bits": 4}}))
    plain, reduced = _recipe(*rules, reduce_range=False), _recipe(*rules)
    assert plain.qconfig("lm_head", "linear").weight.bits == 8
    assert reduced.qconfig("lm_head", "linear").weight == QType(7, True, "per_channel")
    assert reduced.qconfig("lm_head", "linear").input.bits == 8
    assert reduced.qconfig("encoder.layers.0.conv", "conv1d").weight.bits == 4
    assert reduced.qconfig("model.embed", "embedding").weight.bits == 8  # nothing is multiplied with it
    alone = _recipe(Rule("*", {"mode": "weight_only"}), Rule("*.conv", {"weight": {"bits": 16}}))
    assert alone.qconfig("lm_head", "linear").weight.bits == 8
    assert alone.qconfig("encoder.layers.0.conv", "conv1d").weight.bits == 16


@pytest.mark.parametrize(
    "recipe",
    [
        _recipe(),
        _recipe(Rule("*")),
        _recipe(
            Rule("*", {"mode": "weight_only", "weight": {"bits": 4, "granularity": "per_group", "group_size": 64}}),
            Rule("*.q", {"mode": "float"}, kind="linear", optional=True),
            Rule("a*", {"input": {"observer": "percentile(99.9)", "symmetric": True, "bits": 16}}),
            defaults=QConfig("float", QType(3, False), QType(6, True), "mse", "entropy"),
            exclude=("x.*", "lm_head"),
            attention_products=True,
            reduce_range=False,
            compute="bf16",
            float_storage="fp16",
            engine="openvino",
            description='with "quotes", # marks and ünïcode',
        ),
        _recipe(Rule("*"), defaults=QConfig("weight_only", QType(4, True, "per_group", 32), QType(7, True))),
    ],
)
def test_toml_there_and_back(recipe: Recipe, tmp_path: Path) -> None:
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.dumps(), "utf-8")
    assert Recipe.load(path) == recipe
    assert Recipe.load(path).dumps() == recipe.dumps()


def test_a_short_recipe_in_toml(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('format = 1\n[[rules]]\nmatch = "*.q"\nmode = "weight_only"\nweight.bits = 4\n', "utf-8")
    recipe = Recipe.load(path)
    assert recipe.rules == (Rule("*.q", {"mode": "weight_only", "weight": {"bits": 4}}),)
    assert (recipe.name, recipe.engine, recipe.reduce_range) == ("unnamed", "auto", True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("format = 2", "{path}: format = 2: this quantasr reads format = 1"),
        ("format = 2\nfuture_key = 1", "{path}: format = 2"),
        ("rules = []", "{path}: format = None"),
        ("format = 1\nrulez = []", "{path}: unknown key 'rulez'; known are attention_products, "),
        ("format = 1\nrules = 'all'", "{path}: rules = 'all': write a list"),
        ("format = 1\nexclude = 'lm_head'", "{path}: exclude = 'lm_head': write a list"),
        ("format = 1\nexclude = [1]", "{path}: exclude = [1]: write a list of patterns"),
        ("format = 1\nname = 5", "{path}: name = 5: write a string"),
        ("format = 1\nattention_products = 'no'", "{path}: attention_products = 'no': write true or false"),
        ("format = 1\nreduce_range = 1", "{path}: reduce_range = 1: write true or false"),
        ("format = 1\nengine = 'tflite'", "engine = 'tflite': choose one of auto, onnxruntime, openvino"),
        ("format = 1\ncompute = 'int3'", "compute = 'int3': choose one of auto, fp32, bf16"),
        ("format = 1\nfloat_storage = 'fp8'", "float_storage = 'fp8': choose one of fp32, fp16"),
        ("format = 1\ndefaults = 3", "{path}: defaults = 3: write a table"),
        ("format = 1\n[defaults]\nbits = 8", "{path}: defaults: unknown key 'bits'; known are input, mode, weight"),
        ("format = 1\n[defaults]\nmode = 'int8'", "{path}: defaults: mode = 'int8': choose one of static, dynamic"),
        ("format = 1\n[defaults.weight]\nbits = 17", "{path}: defaults: weight: bits = 17"),
        ("format = 1\n[defaults.input]\nobserver = 'avg'", "{path}: defaults: input: observer 'avg' is unknown"),
        ("format = 1\n[defaults.input]\ngranularity = 'per_channel'", "{path}: defaults: input granularity"),
        ("format = 1\n[[rules]]\nmode = 'static'", "{path}: rule 1: needs match ="),
        ("format = 1\n[[rules]]\nmatch = '*'\nbits = 8", "{path}: rule 1: unknown key 'bits'"),
        ("format = 1\n[[rules]]\nmatch = '*'\nkind = 'rnnt'", "{path}: rule 1: rule '*': kind = 'rnnt': choose"),
        ("format = 1\n[[rules]]\nmatch = '*'\noptional = 'yes'", "{path}: rule 1: optional = 'yes': write true"),
        (
            "format = 1\n[[rules]]\nmatch = '*'\n[[rules]]\nmatch = 'a'\nweight = 4",
            "rule 'a': weight = 4: write a table",
        ),
        ("format = 1\n[[rules]]\nmatch = 'a'\nweight.bit = 4", "rule 'a': weight: unknown key 'bit'"),
        ("format = 1\n[[rules]]\nmatch = 'a'\nweight.bits = 20", "rule 'a': weight: bits = 20"),
        ("format = 1\n[[rules]]\nmatch = 'a'\nmode = 'dynamic'\ninput.bits = 4", "rule 'a': mode dynamic quantizes"),
        ("format = 1\n[[rules]]\nmatch = 'a'\ninput.observer = 7", "rule 'a': input: observer = 7: write a string"),
        ("format = ", "{path}: not TOML: "),
    ],
)
def test_mistakes_in_a_file(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path)
    said = str(caught.value)
    assert message.replace("{path}", str(path)) in said
    assert said.startswith(str(path)) and "\n" not in said


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none.toml: cannot read the recipe: No such file"):
        Recipe.load(tmp_path / "none.toml")
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        Recipe.load(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe4'")
    with pytest.raises(RecipeError, match="not UTF-8"):
        Recipe.load(tmp_path / "latin.toml")


def test_every_rule_must_match_something() -> None:
    _recipe(Rule("*", kind="linear"), Rule("nothing", optional=True)).check_used(LAYERS)
    with pytest.raises(RecipeError, match=r"rule '\*\.attn\.\*' matches no layer; paths look like encoder.layers.0"):
        _recipe(Rule("*"), Rule("*.attn.*")).check_used(LAYERS)
    with pytest.raises(RecipeError, match="matches no layer"):
        _recipe(Rule("*"), Rule("lm_head", kind="conv1d")).check_used(LAYERS)
    with pytest.raises(RecipeError, match=r"exclude 'head' matches no layer"):
        _recipe(Rule("*"), exclude=("head",)).check_used(LAYERS)


def test_a_name_that_does_not_exist_is_answered_with_the_nearest() -> None:
    modules = {"encoder": "Sequential", "encoder.norm": "BatchNorm1d", **dict.fromkeys(LAYERS, "Linear")}
    with pytest.raises(RecipeError, match=r"matches no layer: did you mean encoder.layers.0\.\S+"):
        _recipe(Rule("encoder.layer.0.attn")).check_used(LAYERS, modules)
    with pytest.raises(RecipeError, match=r"no layer that can be quantized: encoder.norm is a BatchNorm1d"):
        _recipe(Rule("encoder.norm")).check_used(LAYERS, modules)
    with pytest.raises(RecipeError, match="did you mean lm_head"):
        _recipe(Rule("*"), exclude=("lm_haed",)).check_used(LAYERS, modules)


def test_recurrent_layers_have_no_static_scales() -> None:
    layers = {**LAYERS, "rnn.0": "lstm", "rnn.1": "gru"}
    with pytest.raises(RecipeError, match=r"rule 'rnn' asks for mode static, but gru and lstm can only be dynamic"):
        _recipe(Rule("rnn")).check_used(layers)
    _recipe(Rule("rnn", {"mode": "dynamic"})).check_used(layers)
    _recipe(Rule("*")).check_used(layers)  # others are static; these stay float and say why


@pytest.mark.parametrize(
    "recipe",
    [
        _recipe(),
        _recipe(Rule("*", {"mode": "float"})),
        _recipe(Rule("*"), exclude=("*",)),
        _recipe(Rule("*"), Rule("*", {"mode": "float"})),
    ],
)
def test_a_recipe_that_quantizes_nothing(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match="leaves every layer float"):
        recipe.check_used(LAYERS)


def test_attention_products_alone_are_something() -> None:
    _recipe(attention_products=True).check_used(LAYERS)


def test_words_for_a_layer() -> None:
    assert str(QConfig()) == "static w8a8"
    assert str(QConfig("weight_only", QType(4, True, "per_channel"))) == "weight_only w4"
    assert str(QConfig("dynamic")) == "dynamic w8a8"
    assert str(QConfig("float")) == "float"
    assert list(QConfig("float").summary()) == ["mode"]
    assert list(QConfig("weight_only").summary()) == ["mode", "weight"]
    assert list(QConfig("static").summary()) == ["mode", "weight", "input"]
