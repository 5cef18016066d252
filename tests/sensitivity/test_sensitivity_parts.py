"""Sensitivity of a recogniser in parts: which part a layer is of, and times of all parts' graphs."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_parts
import torch

import quantasr
from quantasr.engines.engine import EngineOptions
from quantasr.recipes import Recipe
from quantasr.sensitivity.parts import parts_of
from quantasr.sensitivity.study import study
from quantasr.sensitivity.times import GraphTimer, TimedGraph


def test_a_layer_belongs_to_the_part_that_calls_it() -> None:
    assert parts_of(tiny_parts.toy()) == {
        "model.encoder.0": "encoder",
        "model.encoder_out": "encoder",
        "model.decoder": "decoder",
        "proj_out": "joiner",
    }


def test_a_layer_that_no_graph_calls_belongs_to_those_around_it() -> None:
    model = tiny_parts.toy()
    inner: Any = model.module.model
    inner.encoder[0].add_module("positions", torch.nn.Embedding(2, 2))
    inner.add_module("tokens", torch.nn.Embedding(2, 2))
    model.module.add_module("other", torch.nn.Embedding(2, 2))
    found = parts_of(model)
    assert found["model.encoder.0.positions"] == "encoder"
    assert found["model.tokens"] == "encoder"  # two of the three layers in model are
    assert found["other"] == "other"


def test_the_table_by_part_and_its_advice(tmp_path: Path) -> None:
    speech, other = tiny_parts.record(tmp_path, 3, seed=0), tiny_parts.record(tmp_path, 3, seed=1, quiet=0.4)
    found = quantasr.sensitivity(
        tiny_parts.toy(),
        calibration=speech,
        evaluation=other,
        by="part",
        engine="onnxruntime",
        threads=1,
        rounds=2,
        max_kl=1e-9,
    )
    parts = {part.name: part for part in found.parts}
    assert set(parts) == {"encoder", "decoder", "joiner"}
    assert parts["encoder"].layers == ("model.encoder.0", "model.encoder_out")
    assert parts["encoder"].harm.kl > 0 and parts["encoder"].harm.frames == sum(4 * 5 + 1 for _ in other)
    assert parts["encoder"].harm.wer is not None and parts["encoder"].harm.wer.b.rate == 0.0
    assert all(part.time is not None for part in found.parts)
    assert found.engine == "onnxruntime" and found.compute == "fp32"
    # Above the limit: no module's path means the group, so its layers are named.
    assert found.recipe is None or {"model.encoder.0", "model.encoder_out"} <= set(found.recipe.exclude)


def test_times_of_parts_are_weighed_with_their_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waves = [utterance.load(8000) for utterance in tiny_parts.record(tmp_path, 2, seed=0)]
    found = study(tiny_parts.toy(), None, waves)
    wave = np.concatenate([waves[0]] * 12)  # two seconds

    def clock(calls: dict[str, object], seconds: float, **_: object) -> dict[str, object]:
        from quantasr.measure.latency import Timing

        # In int8 a call takes half the time of float's 10 ms.
        return {name: Timing(name, seconds, (0.005 if name == "int8" else 0.01,) * 2) for name in calls}

    monkeypatch.setattr(import_module("quantasr.sensitivity.times"), "time_calls", clock)
    try:
        timer = GraphTimer(found, wave, "onnxruntime", EngineOptions(1), rounds=2)
        graphs: dict[str, TimedGraph] = timer._graphs
        assert {name: graph.graphed for name, graph in graphs.items()} == {
            "encoder": {"model.encoder.0", "model.encoder_out"},
            "decoder": {"model.decoder"},
            "joiner": {"proj_out"},
        }
        # One call of the encoder, and in 2.04 s of speech 4 a second of the decoder and 12 of the joiner.
        calls = {"encoder": 1.0, "decoder": 4 * len(wave) / 8000, "joiner": 12 * len(wave) / 8000}
        whole = sum(calls.values())
        for paths, saved in (
            (["proj_out"], ["joiner"]),
            (["model.encoder.0", "model.decoder"], ["encoder", "decoder"]),
        ):
            ratio = timer.ratio(paths)
            assert not isinstance(ratio, str)
            assert ratio.median == pytest.approx(1 - sum(calls[part] for part in saved) / 2 / whole)
        assert timer.ratio(["nowhere"]) == "only --engine torch has int8 for it"
    finally:
        found.close()


def test_a_recipe_and_its_row(tmp_path: Path) -> None:
    speech = tiny_parts.record(tmp_path, 2, seed=0)
    recipe: Recipe = tiny_parts.RECIPE
    found = quantasr.sensitivity(tiny_parts.toy(), calibration=speech, recipe=recipe, match="proj_out", time=False)
    assert [part.name for part in found.parts] == ["proj_out"]
    assert [total.name for total in found.totals][:2] == ["everything", "recipe toy"]
