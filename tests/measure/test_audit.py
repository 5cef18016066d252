"""Layers joined with kernels: every multiply-accumulate in one place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantasr.artifact import WHOLE, Artifact
from quantasr.engines import EngineOptions, ExecutedOp, load_engine
from quantasr.measure.audit import Audit, LayerAudit, PartAudit, _all_calls, audit, join


def op(precision: str, **covers: int) -> ExecutedOp:
    nodes = {f"/model/{name.replace('__', '/')}": macs for name, macs in covers.items()}
    return ExecutedOp("kernel", "kind", precision, 0.1, nodes)


def layer(path: str, mode: str = "static") -> dict[str, Any]:
    row: dict[str, Any] = {"path": path, "kind": "linear", "mode": mode}
    return row | ({"reason": "the recipe leaves it float"} if mode == "float" else {"weight": {"bits": 8}})


def found(plan: list[dict[str, Any]], ops: list[ExecutedOp]) -> dict[str, tuple[str, str, int]]:
    return {row.path: (row.planned, row.executed, row.macs) for row in join(plan, ops)}


def test_layer_1_is_not_layer_11() -> None:
    plan = [layer(f"encoder.layers.{i}.fc") for i in (1, 11)]
    ops = [
        ExecutedOp("a", "k", "int8", 0.1, {"/model/encoder/layers.1/fc/MatMul": 10}),
        ExecutedOp("b", "k", "fp32", 0.1, {"/model/encoder/layers.11/fc/MatMul": 20}),
    ]
    assert found(plan, ops) == {
        "encoder.layers.1.fc": ("static w8", "int8", 10),
        "encoder.layers.11.fc": ("static w8", "fp32", 20),
    }


def test_a_path_inside_of_another_is_another_layer() -> None:
    plan = [layer("projection", "float"), layer("feature_projection.projection"), layer("encoder.projection")]
    ops = [op("int8", feature_projection__projection__MatMul=1), op("bf16", projection__MatMul=2)]
    assert found(plan, ops) == {
        "projection": ("float", "bf16", 2),
        "feature_projection.projection": ("static w8", "int8", 1),
        "encoder.projection": ("static w8", "-", 0),
    }


def test_layers_that_a_sequential_calls() -> None:
    plan = [layer("decoder.net.0"), layer("decoder.net.2.1"), layer("decoder.net.net.3")]
    ops = [op("int8", **{"decoder__net__net.0__Conv": 1, "decoder__net__net.2__net.2.1__Conv": 2})]
    rows = found(plan, [*ops, op("fp32", decoder__net__net__3__Conv=3)])
    assert [(executed, macs) for _, executed, macs in rows.values()] == [("int8", 1), ("int8", 2), ("fp32", 3)]


def test_one_kernel_for_three_layers_counts_each_for_itself() -> None:
    plan = [layer("att.q"), layer("att.k"), layer("att.v")]
    rows = found(plan, [op("int8", att__q__MatMul=5, att__k__MatMul=6, att__v__MatMul=7)])
    assert [row[2] for row in rows.values()] == [5, 6, 7]


def test_two_kernels_for_one_layer() -> None:
    rows = found([layer("fc")], [op("int8", fc__MatMul=5), op("fp32", fc__MatMul_1=5)])
    assert rows == {"fc": ("static w8", "fp32, int8", 10)}


def test_what_is_in_no_module_has_no_place() -> None:
    assert [row.path for row in join([layer("a")], [op("fp32"), ExecutedOp("b", "k", "fp32", 0.1, {"MatMul": 1})])] == [
        "a",
        "",
    ]


def test_why_a_layer_is_float() -> None:
    plan = [layer("a"), layer("b"), layer("c", "float"), layer("d"), layer("e", "weight_only")]
    ops = [op("int8", a__MatMul=1), op("fp32", b__MatMul=1, c__MatMul=1, e__MatMul=1)]
    reasons = [row.reason for row in join(plan, ops)]
    assert reasons == ["", "this engine runs it in float", "the recipe leaves it float", "", ""]


def test_products_of_activations_are_listed_after_the_layers() -> None:
    plan = [layer("net.layers.0.att.q")]
    ops = [op("int8", **{"net__layers.0__att__q__MatMul": 5}), op("bf16", **{"net__layers.0__att__MatMul_1": 7})]
    rows = join(plan, ops, "attention_products = false")
    assert rows[1] == LayerAudit("net.layers.0.att", "product", "-", "bf16", 7, "attention_products = false")


def test_shares_by_hand() -> None:
    ops = (op("int8", a__MatMul=60), op("bf16", b__MatMul=30), op("unknown", c__MatMul=10), op("fp32"))
    found = Audit(10.0, (PartAudit(WHOLE, "openvino", "bf16", 1.0, ops),), ())
    assert found.macs == 100
    assert found.share == {"int8": 0.6, "bf16": 0.3, "unknown": 0.1}  # largest first, nothing without work
    assert found.int8_share == 0.6
    row = found.to_dict()
    assert row["int8_share"] == 0.6
    assert len(row["kernels"]) == 3
    assert PartAudit(WHOLE, "x", "fp32", 1.0, (op("fp32", a__MatMul=1),)).int8_share == 0.0


def test_the_shortest_audio_is_what_the_model_can_take(sample_artifact: Callable[[str], Path]) -> None:
    artifact = Artifact.load(sample_artifact("default"))
    engine = load_engine("onnxruntime", artifact.graph, EngineOptions(1))
    assert audit(artifact, {WHOLE: engine}, seconds=0.001).seconds == pytest.approx(artifact.min_samples / 8000)
    # Products of activations grow with the square of the time, everything else with the time.
    short, long = (audit(artifact, {WHOLE: engine}, seconds=s).macs for s in (2.0, 4.0))
    assert 2.0 < long / short < 2.5


def test_what_a_part_does_outside_of_modules_goes_by_its_name() -> None:
    ops = (op("int8", net__fc__MatMul=5), ExecutedOp("m", "k", "fp32", 0.1, {"/MatMul_1": 7, "/fc/MatMul": 1}))
    for name, place in (("decoder", "decoder graph"), (WHOLE, "")):
        part = PartAudit(name, "openvino", "fp32", 3.0, ops)
        rows = {row.path: row.macs for row in join([layer("net.fc"), layer("fc")], list(_all_calls(part)))}
        assert rows == {"net.fc": 15, "fc": 3, place: 21}
