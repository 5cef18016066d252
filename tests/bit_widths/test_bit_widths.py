"""The verb and its command: a model at several widths, on the trained sample."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import quantasr
from quantasr import sample
from quantasr.errors import ManifestError, RecipeError
from quantasr.measure.bit_widths import ACTIVATIONS, WEIGHTS
from quantasr.numerics.qtypes import QType
from quantasr.numerics.quantizers import Phase
from quantasr.quantize import calibrate, convert, prepare
from quantasr.recipes import Recipe, Rule
from quantasr.recipes.recipe import QConfig
from quantasr.speech.manifest import read_manifest

EVALUATION = read_manifest(sample.evaluation())[40:46]
CALIBRATION = read_manifest(sample.calibration())[:2]
Cli = Callable[..., Any]


def test_a_model_at_three_widths() -> None:
    model = quantasr.load_model(sample.model())
    before = [transcript.text for transcript in model.transcriber().transcribe([u.load(8000) for u in EVALUATION])]
    found = quantasr.bit_widths(model, EVALUATION, bits=(16, 8, 2), granularities=("per_tensor", "per_channel"))
    assert [(row.bits, row.quantized, row.granularity) for row in found.rows] == [
        (bits, what, granularity)
        for granularity in ("per_tensor", "per_channel")
        for bits in (16, 8, 2)
        for what in (WEIGHTS, ACTIVATIONS)
    ]
    texts = {(r.bits, r.quantized, r.granularity): [t.text for t in r.result.transcripts] for r in found.rows}
    for key, heard in texts.items():
        if key[0] == 16:
            assert heard == before  # 16 bits are nearly float
        if key[0] == 2:
            assert heard != before
    assert found.size == pytest.approx(4 * sum(p.numel() for p in model.module.parameters()), rel=1e-3)
    sizes = [row.size / found.size for row in found.rows if row.quantized == WEIGHTS]
    assert sizes[:3] == pytest.approx([0.504, 0.256, 0.070], abs=0.002)
    assert (found.layers, found.candidates, found.ranges, found.notes) == (32, 32, "per_utterance", ())
    after = [transcript.text for transcript in model.transcriber().transcribe([u.load(8000) for u in EVALUATION])]
    assert after == before and not any("parametrizations" in name for name, _ in model.module.named_parameters())


def test_weights_alone_are_the_usual_simulation_and_the_recipe_chooses_layers() -> None:
    four = QConfig("weight_only", QType(4, False))
    recipe = Recipe("some", (Rule("wav2vec2.encoder"),), defaults=four, exclude=("wav2vec2.encoder.layers.1",))
    found = quantasr.bit_widths(sample.model(), EVALUATION, bits=(4,), recipe=recipe)
    prepared = prepare(quantasr.load_model(sample.model()), recipe)
    waves = [u.load(8000) for u in EVALUATION]
    calibrate(prepared, waves[:1])
    convert(prepared)
    with prepared.active(Phase.SIMULATE):
        expected = [t.text for t in prepared.model.transcriber().transcribe(waves)]
    assert [t.text for t in found.rows[0].result.transcripts] == expected
    assert found.layers == len(prepared.weights) < found.candidates


def test_a_kaldi_model_of_lattices() -> None:
    where = Path(__file__).parents[1] / "data" / "kaldi" / "digits"
    utterances = read_manifest(sample.evaluation())[20:60]
    found = quantasr.bit_widths(where, utterances, bits=(8,), recipe="default", calibration=CALIBRATION)
    assert (found.layers, found.candidates, found.ranges, found.notes) == (16, 18, "calibrated", ())
    for row in found.rows:
        assert found.against_float(row.result).difference <= 0.003
    assert found.score(found.original).rate < 0.02


def test_calibrated_ranges_and_an_artifact_beside(
    quantasr_cli: Cli, sample_artifact: Callable[..., Path], tmp_path: Path
) -> None:
    manifests = ("--manifest", sample.evaluation(), "--calibration", sample.calibration(), "--limit", 4)
    picture = tmp_path / "widths.svg"
    options = ("--bits", "8,3", "--engine", "onnxruntime", "--plot", picture, "--threads", 1)
    ran = quantasr_cli("evaluate", sample.model(), sample_artifact(), *manifests, *options)
    assert ran.code == 0, ran.err
    for words in ("WER − float", "calibrated ranges", "weights + activations", "digits-wav2vec2-default", "32 of 32"):
        assert words in ran.out
    assert picture.stat().st_size > 5000


def test_json_and_characters(quantasr_cli: Cli) -> None:
    options = ("--bits", "8", "--cer", "--granularity", "per_channel", "--limit", 2, "--json")
    ran = quantasr_cli("evaluate", sample.model(), "--manifest", sample.evaluation(), *options)
    assert ran.code == 0, ran.err
    row = json.loads(ran.out)
    assert row["unit"] == "character" and [one["granularity"] for one in row["widths"]] == ["per_channel"] * 2


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--plot", "x.png"), "--plot is for --bits"),
        (("--calibration", "x.jsonl"), "--calibration is for --bits"),
        (("--bits", "8", "--batch-size", "2"), "--bits takes neither --utterances nor --batch-size"),
        (("--bits", "8", "--plot", "x.gif"), "x.gif: pictures are .png, .svg"),
    ],
)
def test_options_that_do_not_fit(quantasr_cli: Cli, options: tuple[str, ...], complaint: str) -> None:
    ran = quantasr_cli("evaluate", sample.model(), "--manifest", sample.evaluation(), *options)
    assert ran.code == 1 and len(ran.complaints) == 1 and complaint in ran.complaints[0]


def test_an_artifact_has_its_width(quantasr_cli: Cli, sample_artifact: Callable[..., Path]) -> None:
    ran = quantasr_cli("evaluate", sample_artifact(), "--manifest", sample.evaluation(), "--bits", "8")
    assert ran.code == 1 and "is an artifact, which has its width" in ran.err


@pytest.mark.parametrize("bits", ["1", "8,17", "eight", ""])
def test_widths_that_do_not_exist(quantasr_cli: Cli, bits: str) -> None:
    with pytest.raises(SystemExit):
        quantasr_cli("evaluate", sample.model(), "--manifest", sample.evaluation(), "--bits", bits)


def test_what_is_refused() -> None:
    with pytest.raises(ManifestError, match="are in the evaluation manifest too"):
        quantasr.bit_widths(sample.model(), EVALUATION, calibration=EVALUATION[:1])
    with pytest.raises(RecipeError, match="granularity"):
        quantasr.bit_widths(sample.model(), EVALUATION, granularities=("per_group",))
    with pytest.raises(RecipeError, match="bits = 1"):
        quantasr.bit_widths(sample.model(), EVALUATION, bits=(1,))
    with pytest.raises(RecipeError, match=r"nothing\.here"):
        quantasr.bit_widths(sample.model(), EVALUATION, recipe=Recipe("x", (Rule("nothing.here"),)))
