"""What an engine says that it executed, on graphs where the answer is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_nets
from hand_graphs import QUANTIZERS, node, quantized, save, weight
from torch import nn

from quantasr.artifact import WHOLE, Artifact
from quantasr.engines import ENGINES, EngineOptions, ExecutedOp, load_engine
from quantasr.engines.macs import products
from quantasr.measure.audit import audit
from quantasr.sources import load_model

FP32 = EngineOptions(1, "fp32")


def shares(ops: list[ExecutedOp]) -> dict[str, float]:
    counts: Counter[str] = Counter()
    for op in ops:
        counts[op.precision] += op.macs
    return {name: count / counts.total() for name, count in counts.items() if count}


@pytest.fixture
def half_quantized(tmp_path: Path) -> Path:
    """[1, 50, 16] x [16, 32] in QDQ, then x [32, 8] in float: 25,600 and 12,800 multiply-accumulates."""
    nodes = [
        *quantized("x", "features"),
        node("DequantizeLinear", "w1 wscale wzero", "w1f"),
        node("MatMul", "x w1f", "/first/MatMul"),
        node("Add", "/first/MatMul b1", "/first/Add"),
        node("MatMul", "/first/Add w2", "logprobs"),
    ]
    integers = np.random.default_rng(1).integers(-63, 64, (16, 32)).astype(np.int8)
    return save(
        tmp_path / "half.onnx",
        nodes,
        ["b", "t", 16],
        {**QUANTIZERS, "w1": integers, "b1": weight(32), "w2": weight(32, 8)},
    )


@pytest.mark.parametrize("name", ENGINES)
def test_a_quantized_product_counts_and_a_float_one_does_not(name: str, half_quantized: Path) -> None:
    ops = load_engine(name, half_quantized, FP32).executed({"features": np.ones((1, 50, 16), np.float32)})
    found = {node: (op.precision, macs) for op in ops for node, macs in op.covers.items()}
    assert sorted(found.values()) == [("fp32", 50 * 32 * 8), ("int8", 50 * 16 * 32)]
    assert shares(ops) == {"int8": pytest.approx(2 / 3), "fp32": pytest.approx(1 / 3)}


@pytest.mark.parametrize("name", ENGINES)
def test_weights_alone_in_int8_are_no_int8(name: str, tmp_path: Path) -> None:
    integers = np.random.default_rng(1).integers(-63, 64, (16, 32)).astype(np.int8)
    nodes = [node("DequantizeLinear", "w1 wscale wzero", "w"), node("MatMul", "features w", "logprobs")]
    path = save(tmp_path / "weights.onnx", nodes, ["b", "t", 16], {**QUANTIZERS, "w1": integers})
    assert shares(load_engine(name, path, FP32).executed({"features": np.ones((1, 50, 16), np.float32)})) == {
        "fp32": 1.0
    }


def test_weights_alone_whose_inputs_the_engine_may_round(tmp_path: Path) -> None:
    """ONNX Runtime's kernel for blocks of 4 bits then multiplies integers, and the audit says so."""
    rule = {
        "match": "body.1",
        "mode": "weight_only",
        "weight": {"bits": 4, "granularity": "per_group", "group_size": 16},
    }
    model = tiny_nets.asr_model(nn.Sequential(nn.Linear(16, 64), nn.Linear(64, 32)))
    path = tiny_nets.exported(tiny_nets.quantized(model, tiny_nets.recipe(rule)), tmp_path)
    feed = {"features": np.random.default_rng(0).normal(size=(1, 50 * 16)).astype(np.float32)}
    rounded, kept = (
        load_engine("onnxruntime", path, EngineOptions(1, "fp32", round_inputs=allowed)) for allowed in (True, False)
    )
    assert shares(rounded.executed(feed)) == {"int8": 2 / 3, "fp32": 1 / 3}
    assert shares(kept.executed(feed)) == {"fp32": 1.0}
    left, right = (engine.run(feed)["logprobs"] for engine in (rounded, kept))
    assert 0 < np.abs(left - right).max() < 0.05 * np.abs(right).max()


@pytest.mark.parametrize("name", ENGINES)
def test_a_quantized_convolution_between_quantizers(name: str, tmp_path: Path) -> None:
    integers = np.random.default_rng(1).integers(-63, 64, (32, 16, 3)).astype(np.int8)
    nodes = [
        *quantized("x", "features"),
        node("DequantizeLinear", "w1 wscale wzero", "w"),
        node("Conv", "x w", "/c/Conv", kernel_shape=[3]),
        *quantized("logprobs", "/c/Conv"),
    ]
    path = save(tmp_path / "conv.onnx", nodes, ["b", 16, "t"], {**QUANTIZERS, "w1": integers})
    ops = load_engine(name, path, FP32).executed({"features": np.ones((1, 16, 60), np.float32)})
    assert shares(ops) == {"int8": 1.0}
    assert sum(op.macs for op in ops) == 32 * 58 * 16 * 3


@pytest.mark.parametrize("name", ENGINES)
def test_a_boolean_mask_makes_no_attention_int8(name: str, tmp_path: Path) -> None:
    """OpenVINO runs this in one kernel, whose 'runtime precision' is that of the mask: u8."""
    nodes = [
        node("Transpose", "features", "/k/Transpose", perm=[0, 1, 3, 2]),
        node("MatMul", "features /k/Transpose", "/qk/MatMul"),
        node("Abs", "features", "/m/Abs"),
        node("MatMul", "/m/Abs /k/Transpose", "/m/MatMul"),
        node("Greater", "/m/MatMul threshold", "/m/Greater"),
        node("Where", "/m/Greater /qk/MatMul low", "/masked/Where"),
        node("Softmax", "/masked/Where", "/s/Softmax", axis=-1),
        node("MatMul", "/s/Softmax features", "logprobs"),
    ]
    constants = {"threshold": np.float32(0.1), "low": np.float32(-1e9)}
    path = save(tmp_path / "mask.onnx", nodes, ["b", 4, "t", 16], constants, rank=4)
    features = np.random.default_rng(0).normal(size=(1, 4, 40, 16)).astype(np.float32)
    ops = load_engine(name, path, FP32).executed({"features": features})
    assert shares(ops) == {"fp32": 1.0}
    assert sum(op.macs for op in ops) == 3 * 4 * 40 * 40 * 16


@pytest.mark.parametrize("variant", ["wav2vec2-large", "wavlm-large", "bert-relative-key"])
def test_no_float_model_is_int8_anywhere(variant: str, tiny_hf_folder: Callable[[str], Path], tmp_path: Path) -> None:
    from quantasr.export import export_float, save_graph

    model = load_model(tiny_hf_folder(variant))
    save_graph(export_float(model), tmp_path / "float.onnx")
    features, lengths = (tensor.numpy() for tensor in model.inputs([np.zeros(16000, np.float32)]))
    whole = products(tmp_path / "float.onnx", {"features": features.shape, "lengths": lengths.shape})
    for name in ENGINES:
        ops = load_engine(name, tmp_path / "float.onnx", FP32).executed({"features": features, "lengths": lengths})
        assert shares(ops) == {"fp32": 1.0}
        assert sum(op.macs for op in ops) == sum(product.macs for product in whole.values())


@pytest.mark.parametrize("recipe", ["default", "fast"])
def test_the_sample_adds_up_on_every_engine(recipe: str, sample_artifact: Callable[[str], Path]) -> None:
    artifact = Artifact.load(sample_artifact(recipe))
    planned = {row["path"]: row["mode"] != "float" for row in artifact.layers()}
    totals = set()
    for name in ENGINES:
        found = audit(artifact, {WHOLE: load_engine(name, artifact.graph, FP32)}, seconds=2.0)
        totals.add(found.macs)
        assert sum(found.share.values()) == pytest.approx(1.0)
        assert set(found.share) == {"int8", "fp32"}  # none unknown
        assert sum(layer.macs for layer in found.layers) == found.macs
        for layer in found.layers:
            if not planned.get(layer.path):
                assert layer.executed == "fp32", layer
            elif layer.kind == "linear" or name == "openvino":
                assert layer.executed == "int8", layer
    assert len(totals) == 1
