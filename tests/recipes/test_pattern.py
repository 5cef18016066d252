"""Which layers a pattern means."""

import pytest

from quantasr.errors import RecipeError
from quantasr.recipes.pattern import Pattern, nearest

LAYERS = [
    "encoder.wav2vec2.model.feature_extractor.conv_layers.0.conv",
    *(
        f"encoder.wav2vec2.model.encoder.layers.{i}.attention.{name}"
        for i in range(12)
        for name in ("q_proj", "k_proj")
    ),
    "encoder.enc.linear1.w",
    "encoder.enc2.w",
    "encoder.ctc_lin.w",
]


def chosen(pattern: str) -> list[str]:
    return [path for path in LAYERS if Pattern(pattern).matches(path)]


def numbers(pattern: str) -> list[int]:
    return sorted({int(path.split(".")[5]) for path in chosen(pattern)})


def test_a_module_means_the_layers_in_it_and_no_other() -> None:
    assert chosen("encoder.enc") == ["encoder.enc.linear1.w"]
    assert chosen("encoder.ctc_lin") == ["encoder.ctc_lin.w"]
    assert chosen("encoder.enc?") == ["encoder.enc2.w"]
    assert chosen("enc") == []


def test_stars_cross_dots_and_end_at_modules_too() -> None:
    assert len(chosen("*.layers")) == 24
    assert len(chosen("*.q_proj")) == 12
    assert chosen("*") == LAYERS


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ("[3]", [3]),
        ("[0, 2]", [0, 2]),
        ("[:2]", [0, 1]),
        ("[10:]", [10, 11]),
        ("[2:5]", [2, 3, 4]),
        ("[0:12:4]", [0, 4, 8]),
        (".[2-4]", [2, 3, 4]),  # the shell's
        (".1?", [10, 11]),
    ],
)
def test_indices_are_those_of_python(index: str, expected: list[int]) -> None:
    assert numbers(f"encoder.wav2vec2.model.encoder.layers{index}") == expected
    assert len(chosen(f"*.layers{index}.*.q_proj")) == len(expected)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("layers[-1]", "counts from the back"),
        ("layers[2:-1]", "counts from the back"),
        ("layers[]", "no index"),
        ("layers[0:1:2:3]", "no index"),
        ("layers[0::0]", "no index"),
        ("layers[,]", "no index"),
    ],
)
def test_what_is_no_index(pattern: str, reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        Pattern(pattern)


def test_nearest_names_have_as_many_parts() -> None:
    modules = ["encoder", "encoder.enc", "encoder.ctc_lin", "encoder.ctc_lin.w", "encoder.wav2vec2"]
    assert nearest("encoder.ctc_ln", modules)[0] == "encoder.ctc_lin"
    assert nearest("encoder.ctclin.w", modules)[0] == "encoder.ctc_lin.w"
    assert nearest("zzz", modules) == []
