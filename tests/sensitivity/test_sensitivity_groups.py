"""Layers in groups, as users of each framework think of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from quantasr import load_model, sample
from quantasr.errors import RecipeError
from quantasr.quantize.layers import find_layers
from quantasr.sensitivity.groups import group_layers, module_names

NEMO = Path(__file__).parents[1] / "data" / "nemo"


def groups(where: Path | str, by: str = "module", match: str | None = None) -> dict[str, list[str]]:
    layers = {path: kind for path, (kind, _) in find_layers(load_model(where, trust=True).module).items()}
    return group_layers(layers, by, match)


def test_wav2vec2() -> None:
    found = groups(sample.model())
    assert list(found) == [
        "wav2vec2.feature_extractor",
        "wav2vec2.feature_projection",
        "wav2vec2.encoder.pos_conv_embed",
        *(f"wav2vec2.encoder.layers.{i}" for i in range(4)),
        "lm_head",
    ]
    assert [len(paths) for paths in found.values()] == [5, 1, 1, 6, 6, 6, 6, 1]
    assert list(groups(sample.model(), "kind")) == ["conv1d", "linear"]
    assert list(groups(sample.model(), "part")) == ["wav2vec2", "lm_head"]
    assert all(paths == [name] for name, paths in groups(sample.model(), "layer").items())


def test_nemo() -> None:
    assert list(groups(NEMO / "quartznet.nemo")) == [*(f"encoder.encoder.{i}" for i in range(8)), "decoder"]
    found = groups(NEMO / "conformer.nemo")
    assert list(found) == ["encoder.pre_encode", *(f"encoder.layers.{i}" for i in range(4)), "decoder"]
    assert groups(NEMO / "conformer.nemo", match="encoder.layers[1]") == {"encoder.layers.1": found["encoder.layers.1"]}


def test_speechbrain(tmp_path: Path) -> None:
    import tiny_speechbrain

    folders: Callable[[str], Path] = lambda name: tmp_path / name  # noqa: E731
    for name in ("sb-wav2vec2", "sb-crdnn"):
        folders(name).mkdir()
        tiny_speechbrain.save(name, folders(name))
    assert list(groups(folders("sb-wav2vec2"))) == [
        "encoder.wav2vec2.model.feature_extractor",
        "encoder.wav2vec2.model.feature_projection",
        "encoder.wav2vec2.model.encoder.pos_conv_embed",
        "encoder.wav2vec2.model.encoder.layers.0",
        "encoder.wav2vec2.model.encoder.layers.1",
        "encoder.enc",
        "encoder.ctc_lin",
    ]
    assert list(groups(folders("sb-crdnn"))) == [
        "encoder.model.CNN.block_0",
        "encoder.model.CNN.block_1",
        "encoder.model.RNN",
        "encoder.model.DNN",
        "encoder.ctc_lin",
    ]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["only"], ["only"]),
        (["a.b.only"], ["a.b.only"]),
        (["a.b.x.w", "a.b.y.w", "a.b.y.v"], ["a.b.x", "a.b.y", "a.b.y"]),
        (["net.0", "net.1", "head"], ["net", "net", "head"]),  # numbered layers are no blocks
        (["model.0.a.x", "model.0.b.y"], ["model.0.a", "model.0.b"]),  # one block is no row
        (["l.0.f.0.w", "l.0.f.1.w", "l.1.f.0.w", "l.1.f.1.w"], ["l.0", "l.0", "l.1", "l.1"]),  # the outermost row
    ],
)
def test_blocks_and_what_is_beside_them(paths: list[str], expected: list[str]) -> None:
    assert [module_names(paths)[path] for path in paths] == expected


def test_what_cannot_be_grouped() -> None:
    layers = {"encoder.layers.0.linear": "linear", "lm_head": "linear"}
    with pytest.raises(RecipeError, match="by = 'shape': choose one of module, layer, kind, part"):
        group_layers(layers, "shape")
    with pytest.raises(RecipeError, match=r"pattern 'lm_haed' matches no layer: did you mean lm_head\?"):
        group_layers(layers, "layer", "lm_haed")
